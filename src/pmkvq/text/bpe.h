// Byte pair encoding by a list of merges. Internal to text/.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/merge_loop.h"
#include "pmkvq/text/subword_model.h"
#include "pmkvq/text/vocabulary.h"

namespace pmkvq {

// (left id, right id) -> rank and id of the merged token. Open addressing, filled once.
class MergeTable {
 public:
  explicit MergeTable(size_t num_merges);
  // Lower ranks merge first.
  void Set(int32_t left, int32_t right, const MergedPair& merged);
  MergedPair Find(int32_t left, int32_t right) const { return slots_[SlotOf(left, right)].merged; }

 private:
  struct Slot {
    int32_t left = -1;  // -1: empty. Ids are not negative.
    int32_t right = -1;
    MergedPair merged;
  };

  size_t SlotOf(int32_t left, int32_t right) const;
  std::vector<Slot> slots_;  // At most 7 of 10 are taken.
};

// Keeps a pointer to the vocabulary. A piece begins as its bytes, or as its characters where the
// vocabulary has pieces; a character without a token begins as the tokens of its bytes (byte
// fallback).
class BpeModel : public SubwordModel {
 public:
  // The "model" of a tokenizer.json. Throws Unsupported for model parts that change the result,
  // InvalidInput for merges of tokens that the vocabulary lacks, and, with pieces, where a byte has
  // no token.
  BpeModel(const JsonValue& model, const Vocabulary* vocabulary);
  // Merges as "a b" in order of rank; `field` names them in the InvalidInput for wrong ones.
  BpeModel(const std::vector<std::string_view>& merges, const std::string& source,
           const std::string& field, bool ignore_merges, const Vocabulary* vocabulary);

  void Encode(std::string_view piece, MergeBuffers* buffers,
              std::vector<int32_t>* ids) const override;

 private:
  void CheckSupported(const JsonValue& model) const;
  // False when the vocabulary lacks one of the tokens, or the merged one.
  bool AddMerge(std::string_view left, std::string_view right, uint32_t rank);
  // Append the symbols that a piece begins as.
  void AddBytes(std::string_view piece, std::vector<MergeSymbol>* symbols) const;
  void AddCharacters(std::string_view piece, std::vector<MergeSymbol>* symbols) const;

  const Vocabulary* vocabulary_;
  std::string where_;
  bool ignore_merges_ = false;  // A piece that is a token is that token.
  ByteIds byte_ids_;
  MergeTable merges_;
  // Of AddMerge.
  std::string joined_;
  int32_t last_merged_ = -1;
};

}  // namespace pmkvq
