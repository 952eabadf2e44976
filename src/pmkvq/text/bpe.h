// Byte pair encoding of one piece of text. Internal to text/.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/vocabulary.h"

namespace pmkvq {

// (left id, right id) -> rank and id of the merged token. Open addressing, filled once.
class MergeTable {
 public:
  static constexpr int32_t kNoMerge = -1;

  explicit MergeTable(size_t num_merges);
  // `rank` is below num_merges; lower ones merge first.
  void Set(int32_t left, int32_t right, int32_t rank, int32_t merged_id);
  // kNoMerge when the pair does not merge.
  int32_t FindRank(int32_t left, int32_t right) const;
  int32_t MergedId(int32_t rank) const { return merged_ids_[static_cast<size_t>(rank)]; }

 private:
  struct Slot {
    int32_t left = -1;  // -1: empty. Ids are not negative.
    int32_t right = -1;
    int32_t rank = kNoMerge;
  };

  size_t SlotOf(int32_t left, int32_t right) const;
  std::vector<Slot> slots_;  // At most 7 of 10 are taken.
  std::vector<int32_t> merged_ids_;
};

// The "model" of a tokenizer.json. Keeps a pointer to the vocabulary.
class BpeModel {
 public:
  // Throws Unsupported for model parts that change the result of byte-level BPE, InvalidInput for
  // merges of tokens that the vocabulary lacks.
  BpeModel(const JsonValue& model, const Vocabulary* vocabulary);

  // Appends the ids of `piece` (bytes, not empty). O(n log n) in its length.
  // Throws InvalidInput for a byte without a token.
  void Encode(std::string_view piece, std::vector<int32_t>* ids) const;

 private:
  void CheckSupported(const JsonValue& model) const;
  void LoadMerges(const JsonValue& merges);

  const Vocabulary* vocabulary_;
  std::string where_;
  bool ignore_merges_ = false;  // A piece that is a token is that token.
  std::array<int32_t, 256> byte_ids_{};
  MergeTable merges_;
};

}  // namespace pmkvq
