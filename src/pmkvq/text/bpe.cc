#include "pmkvq/text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq {

MergeTable::MergeTable(size_t num_merges) : slots_(num_merges * 10 / 7 + 1) {}

size_t MergeTable::SlotOf(int32_t left, int32_t right) const {
  const uint64_t key = uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
  // Fibonacci hashing; the high bits are the well mixed ones.
  const uint64_t hash = (key * 0x9e3779b97f4a7c15ull) >> 32;
  auto slot = static_cast<size_t>((hash * slots_.size()) >> 32);
  while (slots_[slot].left >= 0 && (slots_[slot].left != left || slots_[slot].right != right)) {
    slot = slot + 1 == slots_.size() ? 0 : slot + 1;
  }
  return slot;
}

void MergeTable::Set(int32_t left, int32_t right, const MergedPair& merged) {
  slots_[SlotOf(left, right)] = {left, right, merged};
}

namespace {

size_t NumMerges(const JsonValue& merges) {
  if (!merges.IsArray()) merges.Fail("an array");
  const size_t count = merges.size();
  if (count > limits::kMerges) merges.Fail(fmt::format("at most {} merges", limits::kMerges));
  return count;
}

using TokenPair = std::pair<std::string_view, std::string_view>;

// "a b" as its two tokens; nothing where there is not one space.
std::optional<TokenPair> CutMerge(std::string_view text) {
  const size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
    return std::nullopt;
  }
  return TokenPair{text.substr(0, space), text.substr(space + 1)};
}

// The two tokens of a merge, "a b" or ["a", "b"].
TokenPair MergePair(const JsonValue& merge) {
  if (merge.IsArray() && merge.size() == 2) {
    return {merge.At(size_t{0}).AsStringView(), merge.At(size_t{1}).AsStringView()};
  }
  const std::optional<TokenPair> pair = CutMerge(merge.IsString() ? merge.AsStringView() : "");
  if (!pair.has_value()) merge.Fail("\"a b\" or [\"a\", \"b\"]");
  return *pair;
}

bool HasAll(const ByteIds& ids) {
  return std::find(ids.begin(), ids.end(), Vocabulary::kNoToken) == ids.end();
}

}  // namespace

BpeModel::BpeModel(const JsonValue& model, const Vocabulary* vocabulary)
    : vocabulary_(vocabulary),
      where_(model.At("vocab").Where()),
      ignore_merges_(model.Has("ignore_merges") && model.At("ignore_merges").AsBool()),
      byte_ids_(FindByteIds(*vocabulary)),
      merges_(NumMerges(model.At("merges"))) {
  CheckSupported(model);
  const JsonValue merges = model.At("merges");
  const size_t count = merges.size();
  for (size_t i = 0; i < count; ++i) {
    const JsonValue merge = merges.At(i);
    const auto [left, right] = MergePair(merge);
    if (!AddMerge(left, right, static_cast<uint32_t>(i))) {
      merge.Fail("tokens that are in model.vocab, with the merged one");
    }
  }
}

BpeModel::BpeModel(const std::vector<std::string_view>& merges, const std::string& source,
                   const std::string& field, bool ignore_merges, const Vocabulary* vocabulary)
    : vocabulary_(vocabulary),
      where_(source),
      ignore_merges_(ignore_merges),
      byte_ids_(FindByteIds(*vocabulary)),
      merges_(merges.size()) {
  const auto fail = [&](size_t i, const char* expected) {
    throw InvalidInput(source, fmt::format("{}[{}]: found \"{}\", expected {}", field, i,
                                           merges[i].substr(0, 80), expected));
  };
  for (size_t i = 0; i < merges.size(); ++i) {
    const std::optional<TokenPair> pair = CutMerge(merges[i]);
    if (!pair.has_value()) fail(i, "two tokens with one space between them");
    if (!AddMerge(pair->first, pair->second, static_cast<uint32_t>(i))) {
      fail(i, "tokens that are there, with the merged one");
    }
  }
}

void BpeModel::CheckSupported(const JsonValue& model) const {
  const auto refuse = [](const JsonValue& value, const char* expected) {
    throw Unsupported(value.Where(), fmt::format("found {}, expected {}", value.Dump(), expected));
  };
  if (model.Has("dropout") && model.At("dropout").AsDouble() != 0) refuse(model.At("dropout"), "0");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model.Has(key) && !model.At(key).AsString().empty()) refuse(model.At(key), "\"\"");
  }
  // With a token for each byte there is nothing unknown, and unk_token has no meaning.
  if (HasAll(byte_ids_)) return;
  if (vocabulary_->alphabet() == TokenAlphabet::kPieces) {
    const auto missing = std::find(byte_ids_.begin(), byte_ids_.end(), Vocabulary::kNoToken);
    model.At("byte_fallback")
        .Fail(fmt::format("false, or a token for every byte in model.vocab, but <0x{:02X}> is not "
                          "there",
                          missing - byte_ids_.begin()));
  }
  if (model.Has("unk_token")) refuse(model.At("unk_token"), "null");
}

bool BpeModel::AddMerge(std::string_view left, std::string_view right, uint32_t rank) {
  const int32_t left_id = vocabulary_->FindInModel(left);
  const int32_t right_id = vocabulary_->FindInModel(right);
  if (left_id < 0 || right_id < 0) return false;
  // Most vocabularies list merged tokens in the order of the merges.
  int32_t merged_id = last_merged_ + 1;
  if (!vocabulary_->IsJoined(merged_id, left_id, right_id)) {
    joined_.assign(left).append(right);
    merged_id = vocabulary_->FindInModel(joined_);
    if (merged_id < 0) return false;
  }
  last_merged_ = merged_id;
  merges_.Set(left_id, right_id, {rank, merged_id});
  return true;
}

namespace {

struct TablePairs {
  const MergeTable* table;

  MergedPair Find(int32_t, int32_t left, int32_t right) const { return table->Find(left, right); }
};

// Appends a symbol to the list.
void Append(int32_t id, std::vector<MergeSymbol>* symbols) {
  const auto position = static_cast<int32_t>(symbols->size());
  if (position > 0) symbols->back().next = position;
  symbols->push_back({id, position - 1, MergeSymbol::kNone, {}});
}

}  // namespace

void BpeModel::AddBytes(std::string_view piece, std::vector<MergeSymbol>* symbols) const {
  for (const char character : piece) {
    const auto byte = static_cast<unsigned char>(character);
    if (byte_ids_[byte] == Vocabulary::kNoToken) {
      throw InvalidInput(where_, fmt::format("no token for the byte 0x{:02X} of the text", byte));
    }
    Append(byte_ids_[byte], symbols);
  }
}

void BpeModel::AddCharacters(std::string_view piece, std::vector<MergeSymbol>* symbols) const {
  size_t length = 0;
  for (size_t i = 0; i < piece.size(); i += length) {
    DecodeUtf8(piece, i, &length);
    const std::string_view character = piece.substr(i, length);
    const int32_t id = vocabulary_->FindBytes(character);
    if (id != Vocabulary::kNoToken) {
      Append(id, symbols);
    } else {
      for (const char byte : character) {
        Append(byte_ids_[static_cast<unsigned char>(byte)], symbols);
      }
    }
  }
}

void BpeModel::Encode(std::string_view piece, MergeBuffers* buffers,
                      std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    const int32_t id = vocabulary_->FindBytes(piece);
    if (id != Vocabulary::kNoToken) {
      ids->push_back(id);
      return;
    }
  }
  CheckPieceSize(piece);
  buffers->symbols.clear();
  if (vocabulary_->alphabet() == TokenAlphabet::kBytes) {
    AddBytes(piece, &buffers->symbols);
  } else {
    AddCharacters(piece, &buffers->symbols);
  }
  MergeLoop<TablePairs>({&merges_}, buffers).Run();
  for (const MergeSymbol& symbol : buffers->symbols) {
    if (symbol.value != MergeSymbol::kGone) ids->push_back(symbol.value);
  }
}

}  // namespace pmkvq
