// The scratch memory of one thread that attends few query rows (attention_decode.cc).
#pragma once

#include <cstdint>

#include "pmkvq/kernels/attention/attention_internal.h"

namespace pmkvq::internal {

inline constexpr int64_t kMaxLanes = 16;  // Of floats, in any instruction set compiled for.

// q of the fast mode, arranged for keys of one width: q[r, i] ~ factors[r, g] x integer.
struct IntegerQueries {
  int16_t* q;      // [R, D]
  float* factors;  // [R, D / G]
  float* sums;     // [R, D / G], of the rounded q.
};

// Pointers into it.
struct DecodeScratch {
  // With `memory` null only num_floats is of use.
  DecodeScratch(const AttentionShape& shape, const DecodeLayout& layout, float* memory);
  float* q;          // [R, D], times the attention scale.
  float* q_sums;     // [R, D / G], sums over groups of q.
  float* scores;     // [R, 128], then weights exp(score - max).
  float* products;   // [R, 128]: q . codes (per channel: q x step), then weights x step.
  float* tile;       // Keys [G, 32], values [32, padded G], or as many channels of
                     // keys [., 128] as fit.
  float* columns;    // 8 rows of keys, transposed, as stored.
  float* steps;      // [128]
  float* mins;       // [128]
  float* rescale;    // [R]
  int64_t* visible;  // [R], tokens of the block that a row sees: before this one,
  int64_t* hidden;   // [R], and from this one on.
  // Of the fast mode:
  uint32_t* integer_tile;
  int32_t* integer_sums;        // [R, 128]
  int16_t* weights;             // [R, 128], of rows that are summed up.
  float* weight_factors;        // [R]
  IntegerQueries integer_q[3];  // For keys of 8, 4 and 2 bits.
  int64_t num_floats = 0;
};

}  // namespace pmkvq::internal
