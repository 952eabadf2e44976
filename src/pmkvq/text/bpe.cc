#include "pmkvq/text/bpe.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/text/byte_alphabet.h"

namespace pmkvq {

MergeTable::MergeTable(size_t num_merges)
    : slots_(num_merges * 10 / 7 + 1), merged_ids_(num_merges) {}

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

void MergeTable::Set(int32_t left, int32_t right, int32_t rank, int32_t merged_id) {
  slots_[SlotOf(left, right)] = {left, right, rank};
  merged_ids_[static_cast<size_t>(rank)] = merged_id;
}

int32_t MergeTable::FindRank(int32_t left, int32_t right) const {
  return slots_[SlotOf(left, right)].rank;
}

namespace {

size_t NumMerges(const JsonValue& merges) {
  if (!merges.IsArray()) merges.Fail("an array");
  const size_t count = merges.size();
  if (count > limits::kMerges) merges.Fail(fmt::format("at most {} merges", limits::kMerges));
  return count;
}

}  // namespace

BpeModel::BpeModel(const JsonValue& model, const Vocabulary* vocabulary)
    : vocabulary_(vocabulary),
      where_(model.At("vocab").Where()),
      ignore_merges_(model.Has("ignore_merges") && model.At("ignore_merges").AsBool()),
      merges_(NumMerges(model.At("merges"))) {
  for (size_t byte = 0; byte < 256; ++byte) {
    const char character = static_cast<char>(byte);
    byte_ids_[byte] = vocabulary_->FindInModel(BytesToAlphabet({&character, 1}));
  }
  CheckSupported(model);
  LoadMerges(model.At("merges"));
}

void BpeModel::CheckSupported(const JsonValue& model) const {
  const auto refuse = [](const JsonValue& value, const char* expected) {
    throw Unsupported(value.Where(), fmt::format("found {}, expected {}", value.Dump(), expected));
  };
  if (model.Has("type") && model.At("type").AsString() != "BPE") refuse(model.At("type"), "BPE");
  if (model.Has("dropout") && model.At("dropout").AsDouble() != 0) refuse(model.At("dropout"), "0");
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"}) {
    if (model.Has(key) && !model.At(key).AsString().empty()) refuse(model.At(key), "\"\"");
  }
  if (model.Has("byte_fallback") && model.At("byte_fallback").AsBool()) {
    refuse(model.At("byte_fallback"), "false: SentencePiece-style tokenizers are not supported");
  }
  // With a token for each byte there is nothing unknown, and unk_token has no meaning.
  const bool has_all_bytes =
      std::find(byte_ids_.begin(), byte_ids_.end(), Vocabulary::kNoToken) == byte_ids_.end();
  if (model.Has("unk_token") && !has_all_bytes) refuse(model.At("unk_token"), "null");
}

namespace {

// The two tokens of a merge, "a b" or ["a", "b"].
std::pair<std::string_view, std::string_view> MergePair(const JsonValue& merge) {
  if (merge.IsArray() && merge.size() == 2) {
    return {merge.At(size_t{0}).AsStringView(), merge.At(size_t{1}).AsStringView()};
  }
  const std::string_view text = merge.IsString() ? merge.AsStringView() : "";
  const size_t space = text.find(' ');
  if (space == std::string_view::npos || text.find(' ', space + 1) != std::string_view::npos) {
    merge.Fail("\"a b\" or [\"a\", \"b\"]");
  }
  return {text.substr(0, space), text.substr(space + 1)};
}

}  // namespace

void BpeModel::LoadMerges(const JsonValue& merges) {
  const size_t count = merges.size();
  std::string joined;
  for (size_t i = 0; i < count; ++i) {
    const JsonValue merge = merges.At(i);
    const auto [left, right] = MergePair(merge);
    joined.assign(left).append(right);
    const int32_t left_id = vocabulary_->FindInModel(left);
    const int32_t right_id = vocabulary_->FindInModel(right);
    const int32_t merged_id = vocabulary_->FindInModel(joined);
    if (left_id < 0 || right_id < 0 || merged_id < 0) {
      merge.Fail("tokens that are in model.vocab, with the merged one");
    }
    merges_.Set(left_id, right_id, static_cast<int32_t>(i), merged_id);
  }
}

namespace {

constexpr int32_t kNone = -1;

// The tokens of a piece while pairs are merged: a doubly linked list in an array. A token that was
// merged into the one before it has id kNone.
struct Symbol {
  int32_t id;
  int32_t previous;
  int32_t next;
};

class MergeLoop {
 public:
  MergeLoop(const MergeTable& table, std::vector<Symbol> symbols)
      : table_(table), symbols_(std::move(symbols)) {
    for (size_t i = 0; i + 1 < symbols_.size(); ++i) {
      const int32_t rank = RankAt(static_cast<int32_t>(i));
      if (rank != MergeTable::kNoMerge) {
        queue_.push_back(Candidate(rank, static_cast<int32_t>(i)));
      }
    }
    std::make_heap(queue_.begin(), queue_.end(), std::greater<>());
  }

  // Merges the pair of the lowest rank, the leftmost of equals, until none is left.
  void Run() {
    while (!queue_.empty()) {
      std::pop_heap(queue_.begin(), queue_.end(), std::greater<>());
      const uint64_t candidate = queue_.back();
      queue_.pop_back();
      const auto position = static_cast<int32_t>(candidate & 0xffffffffu);
      const int32_t rank = RankAt(position);
      // Candidates are not taken out when one of their tokens changes.
      if (rank == MergeTable::kNoMerge || Candidate(rank, position) != candidate) continue;
      Apply(position, table_.MergedId(rank));
    }
  }

  void AppendIds(std::vector<int32_t>* ids) const {
    for (const Symbol& symbol : symbols_) {
      if (symbol.id != kNone) ids->push_back(symbol.id);
    }
  }

 private:
  static uint64_t Candidate(int32_t rank, int32_t position) {
    return uint64_t{static_cast<uint32_t>(rank)} << 32 | static_cast<uint32_t>(position);
  }

  Symbol& At(int32_t position) { return symbols_[static_cast<size_t>(position)]; }

  // The rank of the merge of the token at `position` with the next; kNoMerge for none.
  int32_t RankAt(int32_t position) {
    const Symbol& symbol = At(position);
    if (symbol.id == kNone || symbol.next == kNone) return MergeTable::kNoMerge;
    return table_.FindRank(symbol.id, At(symbol.next).id);
  }

  void Apply(int32_t position, int32_t merged_id) {
    Symbol& left = At(position);
    Symbol& right = At(left.next);
    left.id = merged_id;
    left.next = right.next;
    right.id = kNone;
    if (left.next != kNone) At(left.next).previous = position;
    if (left.previous != kNone) Push(left.previous);
    Push(position);
  }

  void Push(int32_t position) {
    const int32_t rank = RankAt(position);
    if (rank != MergeTable::kNoMerge) {
      queue_.push_back(Candidate(rank, position));
      std::push_heap(queue_.begin(), queue_.end(), std::greater<>());
    }
  }

  const MergeTable& table_;
  std::vector<Symbol> symbols_;
  std::vector<uint64_t> queue_;  // A heap of rank << 32 | position.
};

}  // namespace

void BpeModel::Encode(std::string_view piece, std::vector<int32_t>* ids) const {
  if (ignore_merges_) {
    const int32_t id = vocabulary_->FindInModel(BytesToAlphabet(piece));
    if (id != Vocabulary::kNoToken) {
      ids->push_back(id);
      return;
    }
  }
  if (piece.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
    throw InvalidInput("text", "more than 2 GiB without a place to cut it");
  }
  const auto size = static_cast<int32_t>(piece.size());
  std::vector<Symbol> symbols(piece.size());
  for (int32_t i = 0; i < size; ++i) {
    const auto byte = static_cast<unsigned char>(piece[static_cast<size_t>(i)]);
    const int32_t id = byte_ids_[byte];
    if (id == Vocabulary::kNoToken) {
      throw InvalidInput(where_, fmt::format("no token for the byte 0x{:02X} of the text", byte));
    }
    symbols[static_cast<size_t>(i)] = {id, i - 1, i + 1 < size ? i + 1 : kNone};
  }
  MergeLoop loop(merges_, std::move(symbols));
  loop.Run();
  loop.AppendIds(ids);
}

}  // namespace pmkvq
