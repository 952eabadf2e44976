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
  struct Merge {
    int32_t rank;  // Lower merges first.
    int32_t id;
  };

  explicit MergeTable(size_t num_merges);
  void Set(int32_t left, int32_t right, Merge merge);
  // Null when the pair does not merge.
  const Merge* Find(int32_t left, int32_t right) const;

 private:
  struct Slot {
    uint64_t key = kEmpty;
    Merge merge{};
  };
  static constexpr uint64_t kEmpty = ~uint64_t{0};  // No pair of ids: they are not negative.

  size_t SlotOf(uint64_t key) const;
  std::vector<Slot> slots_;  // A power of two, at most half full.
};

// The "model" of a tokenizer.json. Keeps a pointer to the vocabulary.
class BpeModel {
 public:
  // Throws Unsupported for model parts that change what byte-level BPE gives, InvalidInput for
  // merges of tokens that the vocabulary lacks.
  BpeModel(const JsonValue& model, const Vocabulary* vocabulary);

  // Appends the ids of `piece` (bytes, not empty). O(n log n) in its length.
  // Throws InvalidInput for a byte that no token stands for.
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
