// SentencePiece's byte pair encoding: pieces merge by their scores. Internal to text/.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "pmkvq/text/subword_model.h"
#include "pmkvq/text/vocabulary.h"
#include "pmkvq/text/vocabulary_data.h"

namespace pmkvq {

// Starts from characters. Among neighbours whose texts are together a piece (normal or unused),
// those of the highest score merge first, the leftmost of equals. Unused pieces are cut again into
// the two that made them. A character that is no piece becomes the tokens of its bytes.
class PieceModel : public SubwordModel {
 public:
  // `vocabulary` outlives this and has a token for each byte (check). `scores` (finite) and `types`
  // by id; empty types: all are normal.
  PieceModel(const std::vector<float>& scores, const std::vector<TokenType>& types,
             const Vocabulary* vocabulary);

  void Encode(std::string_view piece, MergeBuffers* buffers,
              std::vector<int32_t>* ids) const override;

 private:
  class Pairs;

  // Of a piece by id: lower ranks merge first; kNoRank for what is never merged.
  std::vector<uint32_t> ranks_;
  std::vector<bool> is_unused_;
  bool has_unused_ = false;
  const Vocabulary* vocabulary_;
  ByteIds byte_ids_;
};

}  // namespace pmkvq
