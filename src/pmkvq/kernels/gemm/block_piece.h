// 256 values of a row of x as products with stored blocks read them. Internal to gemm/.
//
// A group is 32 values, which have one scale. Vectors are thought of as four parts of 16 bytes:
// part q of every vector here belongs to groups q and 4 + q of the piece. So all that a product
// does, sums and transpositions too, stays within the 16 bytes of a part, and looks the same in
// registers of 16, 32 and 64 bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/base/aligned.h"

namespace pmkvq::internal {

inline constexpr size_t kPieceValues = 256;
inline constexpr size_t kGroupValues = 32;

struct PackedPiece {
  // Values 16 half to 16 half + 15 of group 4 four + q are at byte 128 four + 64 half + 16 q.
  alignas(kAlignment) int8_t codes[kPieceValues];
  // Number 4 q + i is that of group q (i even) or 4 + q (i odd).
  float scales[16];
  float sums[16];            // Sums of codes, times their scale.
  int32_t half_sums[2][16];  // Sums of the codes of each half of a group.
};
static_assert(sizeof(PackedPiece) == 512);

inline size_t NumPieces(int64_t cols) {
  return (static_cast<size_t>(cols) + kPieceValues - 1) / kPieceValues;
}

}  // namespace pmkvq::internal
