#include "pmkvq/text/tokenizer_parts.h"

#include <algorithm>
#include <utility>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/merge_loop.h"

namespace pmkvq {
namespace {

// The parts of `ranges` inside of `window`, counted from its begin.
std::vector<ByteRange> RangesWithin(const std::vector<ByteRange>& ranges, const ByteRange& window) {
  std::vector<ByteRange> inside;
  auto range = std::partition_point(ranges.begin(), ranges.end(),
                                    [&](const ByteRange& r) { return r.end <= window.begin; });
  for (; range != ranges.end() && range->begin < window.end; ++range) {
    inside.push_back({std::max(range->begin, window.begin) - window.begin,
                      std::min(range->end, window.end) - window.begin});
  }
  return inside;
}

}  // namespace

void TokenizerParts::Add(AddedToken token, const FailToken& fail) {
  const Vocabulary::InsertResult result = vocabulary.Add(token);
  if (result != Vocabulary::InsertResult::kInserted) {
    const bool is_about_id = result == Vocabulary::InsertResult::kIdIsTaken ||
                             result == Vocabulary::InsertResult::kIdTooLarge;
    fail(is_about_id ? "id" : "content", vocabulary.Expected(result));
  }
  contents_.insert(token.content);
  if (!token.normalized) {
    raw_matcher_.Add(token);
    return;
  }
  std::string normalized = normalizer.Normalize(token.content);
  // The library of tokenizer.json decodes the normalised text, and does not know it for a special
  // token. (Byte-level decoders get it wrong there: it would go through the byte alphabet.)
  if (pieces.has_value() && normalized != token.content) vocabulary.Respell(token.id, normalized);
  token.content = std::move(normalized);
  if (token.content.empty() || normalized_contents_.count(token.content) > 0) {
    fail("content", "a token that no other one equals after normalisation");
  }
  AddInNormalizedText(token);
}

void TokenizerParts::AddInNormalizedText(const AddedToken& token) {
  contents_.insert(token.content);
  normalized_contents_.insert(token.content);
  normalized_matcher_.Add(token);
}

void TokenizerParts::AddFromConfig(const std::vector<ConfigToken>& tokens) {
  for (const ConfigToken& each : tokens) {
    if (contents_.count(each.token.content) > 0) continue;
    AddedToken token = each.token;
    const int32_t own_id = vocabulary.FindInModel(token.content);
    if (own_id != Vocabulary::kNoToken) token.id = own_id;
    // One that only has a role ("pad_token") and is not in the vocabulary.
    if (token.id == Vocabulary::kNoToken) continue;
    Add(std::move(token),
        [&](const char*, const std::string& expected) { each.json.Fail(expected); });
  }
}

void TokenizerParts::SetEnds(const TextEnds& given) {
  const auto set = [&](const std::string& token, const std::optional<JsonValue>& from,
                       std::vector<int32_t>* side) {
    const int32_t id = token.empty() ? Vocabulary::kNoToken : vocabulary.Find(token);
    if (id == Vocabulary::kNoToken && !token.empty()) {
      // A default of the class that this vocabulary does not have.
      if (!from.has_value()) return;
      from->Fail("a token of the tokenizer");
    }
    side->clear();
    if (id != Vocabulary::kNoToken) side->push_back(id);
  };
  set(given.bos, given.bos_value, &prefix);
  set(given.eos, given.eos_value, &suffix);
}

std::vector<int32_t> TokenizerParts::Encode(std::string_view text,
                                            const std::vector<ByteRange>& literal) const {
  CheckUtf8(text, "text");
  std::vector<int32_t> ids;
  for (const Segment& segment : raw_matcher_.Split(text, literal)) {
    if (segment.id >= 0) {
      ids.push_back(segment.id);
      continue;
    }
    const std::string normalized = normalizer.Normalize(segment.text);
    const auto begin = static_cast<size_t>(segment.text.data() - text.data());
    const std::vector<ByteRange> ranges = NormalizedRanges(
        segment.text, normalized, RangesWithin(literal, {begin, begin + segment.text.size()}));
    for (const Segment& part : normalized_matcher_.Split(normalized, ranges)) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        EncodePieces(part.text, begin == 0 && part.text.data() == normalized.data(), &ids);
      }
    }
  }
  return ids;
}

// Where `ranges` of `text` lie in `normalized`. Characters that are composed across the border of
// a range belong to both sides: the whole text counts as written by the user then.
std::vector<ByteRange> TokenizerParts::NormalizedRanges(
    std::string_view text, const std::string& normalized,
    const std::vector<ByteRange>& ranges) const {
  if (normalized == text) return ranges;
  std::vector<ByteRange> result;
  std::string joined;
  size_t done = 0;
  const auto append = [&](std::string_view part) {
    joined += normalizer.Normalize(part, joined.empty());
  };
  for (const ByteRange& range : ranges) {
    append(text.substr(done, range.begin - done));
    const size_t begin = joined.size();
    append(text.substr(range.begin, range.end - range.begin));
    if (joined.size() > begin) result.push_back({begin, joined.size()});
    done = range.end;
  }
  append(text.substr(done));
  if (joined == normalized || ranges.empty()) return result;
  return {{0, normalized.size()}};
}

void TokenizerParts::EncodePieces(std::string_view text, bool at_start,
                                  std::vector<int32_t>* ids) const {
  const Pieces cut = pre_tokenizer.Split(text, at_start);
  MergeBuffers buffers;
  for (const std::string_view piece : cut.views) {
    CancelPoint();
    if (!merges_stay_in_words) {
      model->Encode(piece, &buffers, ids);
      continue;
    }
    // The same ids as those of the whole, with short lists to merge in.
    for (size_t begin = 0; begin < piece.size();) {
      const size_t end = WordEnd(piece, begin);
      model->Encode(piece.substr(begin, end - begin), &buffers, ids);
      begin = end;
    }
  }
}

}  // namespace pmkvq
