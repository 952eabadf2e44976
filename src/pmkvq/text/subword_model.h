// Pieces of text to ids. Internal to text/.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

class Vocabulary;

// Immutable; may be used from several threads.
class SubwordModel {
 public:
  virtual ~SubwordModel() = default;

  // Appends the ids of `piece` (valid UTF-8, not empty), which are merged apart from other pieces.
  // Throws InvalidInput for a piece of 2 GiB and more, and for a byte without a token.
  virtual void Encode(std::string_view piece, std::vector<int32_t>* ids) const = 0;
};

// Ids of the tokens for single bytes: <0x0A> in a vocabulary of pieces. kNoToken where there is
// none.
using ByteIds = std::array<int32_t, 256>;
ByteIds FindByteIds(const Vocabulary& vocabulary);

// The byte that a piece stands for: 10 for <0x0A>; -1 for others.
int ByteOfPiece(std::string_view piece);

// Throws InvalidInput for a piece whose positions do not fit int32_t.
void CheckPieceSize(std::string_view piece);

}  // namespace pmkvq
