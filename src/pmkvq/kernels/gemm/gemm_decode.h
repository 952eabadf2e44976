// Few-row products (decode): the vector kernels behind MatMul<float>. Internal to gemm/. Block
// formats are passed on to block_product.h; what follows is about the other ones.
//
// The dot product of one row of x with one row of W adds its terms in one fixed order: lane j of a
// single vector accumulator takes the elements of its lane chunk by chunk, then lanes are summed.
// Blocking for registers and caches shares loads between rows but never touches that order (sums
// that leave the registers do so unrounded), so the result's bits depend only on the two rows, the
// weight's format and the instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/gemm/gemm.h"

namespace pmkvq::internal {

// Rows of one call of the kernel: their packed copy should stay in the L2 cache.
inline constexpr int64_t kMaxPackedRows = 16;

// Ranges of outputs that begin at a multiple of it and have that many suit the kernel best.
inline constexpr int64_t kDecodeGrain = 60;

// Floats needed by PackDecodeRows.
size_t PackedDecodeFloats(int64_t num_rows, int64_t cols, WeightFormat format);

// Copies x [num_rows, cols] to the order in which the kernel for `format` reads it, zero-padded.
void PackDecodeRows(const float* x, int64_t num_rows, int64_t cols, WeightFormat format,
                    float* packed);

// Outputs [begin, end) of all rows: y [num_rows, weight.rows], `packed` as PackDecodeRows made it,
// with at most kMaxPackedRows rows (of block formats any number, which follow each other).
void DecodeMatMul(const float* packed, int64_t num_rows, const WeightView& weight,
                  const float* bias, int64_t begin, int64_t end, float* y);

// out [count] = floats of `count` consecutive weights of one row, from the beginning of a block on.
void ExpandToFloat(const std::byte* data, WeightFormat format, int64_t count, float* out);

// The HWY_TARGET that the functions above run now (tests prove with it what they tested).
int64_t DecodeKernelTarget();

}  // namespace pmkvq::internal
