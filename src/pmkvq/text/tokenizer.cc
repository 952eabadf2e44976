#include "pmkvq/text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <unordered_set>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/added_tokens.h"
#include "pmkvq/text/bpe.h"
#include "pmkvq/text/normalizer.h"
#include "pmkvq/text/pre_tokenizer.h"
#include "pmkvq/text/tokenizer_config.h"
#include "pmkvq/text/vocabulary.h"

namespace pmkvq {
namespace {

constexpr size_t kMaxEndTokens = 64;  // Before or after a text.

AddedToken ParseAddedToken(const JsonValue& json) {
  AddedToken token;
  token.id = static_cast<int32_t>(json.At("id").AsInt(0, Vocabulary::kMaxId));
  token.content = json.At("content").AsString();
  if (token.content.empty()) json.At("content").Fail("a token that is not empty");
  token.special = json.BoolOr("special", false);
  token.normalized = json.BoolOr("normalized", !token.special);
  token.single_word = json.BoolOr("single_word", false);
  token.lstrip = json.BoolOr("lstrip", false);
  token.rstrip = json.BoolOr("rstrip", false);
  return token;
}

void CheckVersion(const JsonValue& root) {
  if (!root.Has("version")) return;
  const JsonValue version = root.At("version");
  if (version.AsString() != "1.0") {
    throw Unsupported(version.Where(), fmt::format("found {}, expected 1.0", version.Dump()));
  }
}

// ByteLevel, alone or as the only part of a Sequence.
void CheckDecoder(const JsonValue& json) {
  const std::string type = json.At("type").AsString();
  if (type == "ByteLevel") return;
  if (type == "Sequence") {
    const JsonValue parts = json.At("decoders");
    if (parts.IsArray() && parts.size() == 1) return CheckDecoder(parts.At(size_t{0}));
    throw Unsupported(parts.Where(),
                      fmt::format("found {} parts, expected ByteLevel only", parts.size()));
  }
  throw Unsupported(json.Where(), fmt::format("found \"{}\", expected ByteLevel", type));
}

// Ids that are put before and after a text.
struct Ends {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};

// Those of a TemplateProcessing, around its sequence "A".
Ends TemplateEnds(const JsonValue& json) {
  const JsonValue parts = json.At("single");
  if (!parts.IsArray()) parts.Fail("an array");
  Ends ends;
  bool has_sequence = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    const JsonValue part = parts.At(i);
    if (part.Has("Sequence") && !has_sequence) {
      has_sequence = true;
    } else if (part.Has("SpecialToken")) {
      const std::string name = part.At("SpecialToken").At("id").AsString();
      const JsonValue ids = json.At("special_tokens").At(name).At("ids");
      if (!ids.IsArray()) ids.Fail("an array of ids");
      std::vector<int32_t>& side = has_sequence ? ends.suffix : ends.prefix;
      for (size_t k = 0; k < ids.size(); ++k) {
        side.push_back(static_cast<int32_t>(ids.At(k).AsInt(0, Vocabulary::kMaxId)));
      }
      if (side.size() > kMaxEndTokens) ids.Fail(fmt::format("at most {} ids", kMaxEndTokens));
    } else {
      throw Unsupported(part.Where(), fmt::format("found {}, expected special tokens around one "
                                                  "sequence",
                                                  part.Dump().substr(0, 80)));
    }
  }
  return ends;
}

Ends EndsOf(const JsonValue& json) {
  if (json.IsNull()) return {};
  const std::string type = json.At("type").AsString();
  if (type == "ByteLevel") return {};  // Changes offsets only.
  if (type == "TemplateProcessing") return TemplateEnds(json);
  if (type != "Sequence") {
    throw Unsupported(
        json.Where(),
        fmt::format("found \"{}\", expected ByteLevel, TemplateProcessing or Sequence", type));
  }
  const JsonValue parts = json.At("processors");
  if (!parts.IsArray()) parts.Fail("an array");
  Ends ends;
  for (size_t i = 0; i < parts.size(); ++i) {
    // A later processor puts its tokens around those of the earlier ones.
    const Ends outer = EndsOf(parts.At(i));
    ends.prefix.insert(ends.prefix.begin(), outer.prefix.begin(), outer.prefix.end());
    ends.suffix.insert(ends.suffix.end(), outer.suffix.begin(), outer.suffix.end());
    if (ends.prefix.size() + ends.suffix.size() > kMaxEndTokens) {
      parts.Fail(fmt::format("at most {} special tokens", kMaxEndTokens));
    }
  }
  return ends;
}

bool StartsWith(const std::vector<int32_t>& ids, const std::vector<int32_t>& prefix) {
  return ids.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), ids.begin());
}

bool EndsWith(const std::vector<int32_t>& ids, const std::vector<int32_t>& suffix) {
  return ids.size() >= suffix.size() && std::equal(suffix.rbegin(), suffix.rend(), ids.rbegin());
}

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

struct Tokenizer::Impl {
  explicit Impl(const JsonValue& root)
      : source(root.Where()),
        vocabulary(root.At("model").At("vocab")),
        bpe(root.At("model"), &vocabulary),
        normalizer(root.Find("normalizer")),
        pre_tokenizer(root.Find("pre_tokenizer")),
        ends(EndsOf(root.Find("post_processor"))) {
    CheckVersion(root);
    CheckDecoder(root.At("decoder"));
    if (root.Has("added_tokens")) LoadAddedTokens(root.At("added_tokens"));
    for (const std::vector<int32_t>* side : {&ends.prefix, &ends.suffix}) {
      for (const int32_t id : *side) {
        if (!vocabulary.IsValid(id)) {
          root.At("post_processor").Fail(fmt::format("no unknown id {}", id));
        }
      }
    }
  }

  // Replaces the tokens that tokenizer.json puts around a text.
  void SetEnds(const TextEnds& given) {
    const auto set = [&](const std::string& token, const std::optional<JsonValue>& from,
                         std::vector<int32_t>* side) {
      const int32_t id = token.empty() ? Vocabulary::kNoToken : vocabulary.Find(token);
      if (id == Vocabulary::kNoToken && !token.empty()) {
        // A default of the class that this vocabulary does not have.
        if (!from.has_value()) return;
        from->Fail("a token of tokenizer.json");
      }
      side->clear();
      if (id != Vocabulary::kNoToken) side->push_back(id);
    };
    set(given.bos, given.bos_value, &ends.prefix);
    set(given.eos, given.eos_value, &ends.suffix);
  }

  void LoadAddedTokens(const JsonValue& tokens) {
    if (!tokens.IsArray()) tokens.Fail("an array");
    const size_t count = tokens.size();
    if (count > limits::kAddedTokens) {
      tokens.Fail(fmt::format("at most {} added tokens", limits::kAddedTokens));
    }
    for (size_t i = 0; i < count; ++i) {
      const JsonValue json = tokens.At(i);
      AddedToken token = ParseAddedToken(json);
      vocabulary.Add(token, json);
      if (!token.normalized) {
        raw_matcher.Add(token);
        continue;
      }
      token.content = normalizer.Normalize(token.content);
      if (!normalized_contents.insert(token.content).second) {
        json.At("content").Fail("a token that no other one equals after normalisation");
      }
      normalized_matcher.Add(token);
    }
  }

  std::vector<int32_t> Encode(std::string_view text, const std::vector<ByteRange>& literal) const {
    CheckUtf8(text, "text");
    std::vector<int32_t> ids;
    for (const Segment& segment : raw_matcher.Split(text, literal)) {
      if (segment.id >= 0) {
        ids.push_back(segment.id);
        continue;
      }
      const std::string normalized = normalizer.Normalize(segment.text);
      const auto begin = static_cast<size_t>(segment.text.data() - text.data());
      const std::vector<ByteRange> ranges = NormalizedRanges(
          segment.text, normalized, RangesWithin(literal, {begin, begin + segment.text.size()}));
      for (const Segment& part : normalized_matcher.Split(normalized, ranges)) {
        if (part.id >= 0) {
          ids.push_back(part.id);
        } else {
          EncodePieces(part.text, &ids);
        }
      }
    }
    return ids;
  }

  // Where `ranges` of `text` lie in `normalized`. Characters that are composed across the border of
  // a range belong to both sides: the whole text counts as written by the user then.
  std::vector<ByteRange> NormalizedRanges(std::string_view text, const std::string& normalized,
                                          const std::vector<ByteRange>& ranges) const {
    if (normalized == text) return ranges;
    std::vector<ByteRange> result;
    std::string joined;
    size_t done = 0;
    for (const ByteRange& range : ranges) {
      joined += normalizer.Normalize(text.substr(done, range.begin - done));
      const size_t begin = joined.size();
      joined += normalizer.Normalize(text.substr(range.begin, range.end - range.begin));
      if (joined.size() > begin) result.push_back({begin, joined.size()});
      done = range.end;
    }
    joined += normalizer.Normalize(text.substr(done));
    if (joined == normalized || ranges.empty()) return result;
    return {{0, normalized.size()}};
  }

  void EncodePieces(std::string_view text, std::vector<int32_t>* ids) const {
    const Pieces pieces = pre_tokenizer.Split(text);
    for (const std::string_view piece : pieces.views) {
      CancelPoint();
      bpe.Encode(piece, ids);
    }
  }

  [[noreturn]] void FailUnknown(int32_t id) const {
    throw InvalidInput(
        source, fmt::format("id {}: no such token, expected less than {}", id, vocabulary.size()));
  }

  std::string source;
  Vocabulary vocabulary;
  BpeModel bpe;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  Ends ends;
  std::unordered_set<std::string> normalized_contents;
  AddedTokenMatcher raw_matcher;         // Searches the text as given.
  AddedTokenMatcher normalized_matcher;  // Searches the parts between, after normalisation.
};

Tokenizer::Tokenizer() = default;
Tokenizer::~Tokenizer() = default;

std::shared_ptr<const Tokenizer> Tokenizer::Load(const std::string& path) {
  const bool is_folder = std::filesystem::is_directory(path);
  const std::string file = is_folder ? JoinPath(path, "tokenizer.json") : path;
  if (is_folder && !FileExists(file) && FileExists(JoinPath(path, "tokenizer.model"))) {
    throw Unsupported(path,
                      "found tokenizer.model: SentencePiece tokenizers are not supported; "
                      "expected tokenizer.json");
  }
  const std::shared_ptr<Tokenizer> tokenizer(new Tokenizer());
  tokenizer->impl_ = MakeImpl(JsonValue::ParseFile(file));
  if (is_folder) {
    const std::optional<TextEnds> ends = ReadTextEnds(path);
    if (ends.has_value()) tokenizer->impl_->SetEnds(*ends);
  }
  return tokenizer;
}

std::unique_ptr<Tokenizer::Impl> Tokenizer::MakeImpl(const JsonValue& root) {
  if (!root.IsObject()) root.Fail("an object");
  return std::make_unique<Impl>(root);
}

std::shared_ptr<const Tokenizer> Tokenizer::Parse(std::string_view json,
                                                  const std::string& source) {
  const std::shared_ptr<Tokenizer> tokenizer(new Tokenizer());
  tokenizer->impl_ = MakeImpl(JsonValue::Parse(json, source));
  return tokenizer;
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool parse_special) const {
  if (parse_special || text.empty()) return impl_->Encode(text, {});
  return impl_->Encode(text, {{0, text.size()}});
}

std::vector<int32_t> Tokenizer::Encode(const MarkedText& text) const {
  return impl_->Encode(text.text, text.input);
}

std::vector<int32_t> Tokenizer::EncodeWhole(std::string_view text, bool parse_special) const {
  std::vector<int32_t> ids = Encode(text, parse_special);
  const Ends& ends = impl_->ends;
  if (!StartsWith(ids, ends.prefix)) {
    ids.insert(ids.begin(), ends.prefix.begin(), ends.prefix.end());
  }
  if (!EndsWith(ids, ends.suffix)) {
    ids.insert(ids.end(), ends.suffix.begin(), ends.suffix.end());
  }
  return ids;
}

const std::vector<int32_t>& Tokenizer::prefix_ids() const { return impl_->ends.prefix; }
const std::vector<int32_t>& Tokenizer::suffix_ids() const { return impl_->ends.suffix; }

std::string Tokenizer::Decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string text;
  for (const int32_t id : ids) {
    CancelPoint();
    if (!impl_->vocabulary.IsValid(id)) impl_->FailUnknown(id);
    if (!skip_special || !impl_->vocabulary.IsSpecial(id)) text += impl_->vocabulary.Bytes(id);
  }
  return text;
}

std::string Tokenizer::TokenBytes(int32_t id) const {
  if (!impl_->vocabulary.IsValid(id)) impl_->FailUnknown(id);
  return std::string(impl_->vocabulary.Bytes(id));
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return impl_->vocabulary.IsValid(id) && impl_->vocabulary.IsSpecial(id);
}

bool Tokenizer::IsValid(int32_t id) const { return impl_->vocabulary.IsValid(id); }

int32_t Tokenizer::TokenId(std::string_view token) const { return impl_->vocabulary.Find(token); }

int32_t Tokenizer::vocab_size() const { return impl_->vocabulary.size(); }

}  // namespace pmkvq
