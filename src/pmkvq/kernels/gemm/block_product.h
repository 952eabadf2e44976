// Products with stored blocks of 2 to 6 bits (PMKVQ_BLOCK_FORMATS of
// tensor/weight_format.h), and their expansion. Internal to gemm/.
//
// x is rounded to int8 in groups of 32, each with the scale max|x| / 127; codes of weights and of x
// are multiplied as integers, exactly, and all products of a scale of the weights (of 32 or 16) are
// one number. Numbers are made floats, scaled and added in one order, in 8 sums that are added in
// one order at the end. There are no fused operations: the bits depend on the two rows and the
// format only, not on the number of rows, and are the same on every instruction set. What rounding
// x costs is in docs/numerics.md.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/gemm/gemm.h"

namespace pmkvq::internal {

// Floats that PackBlockRows needs for each row.
size_t PackedBlockFloats(int64_t cols);

// Rounds x [num_rows, cols]; `packed` serves all block formats. A group that holds an infinity or
// NaN makes every product NaN.
void PackBlockRows(const float* x, int64_t num_rows, int64_t cols, float* packed);

// Outputs [begin, end) of all rows: y [num_rows, weight.rows].
void BlockMatMul(const float* packed, int64_t num_rows, const WeightView& weight, const float* bias,
                 int64_t begin, int64_t end, float* y);

// out [count] = `count` consecutive weights of one row, from the beginning of a block on: scales
// and minima are multiplied in float first, then with the code, then subtracted, as gguf-py does.
void ExpandBlocks(const std::byte* data, WeightFormat format, int64_t count, float* out);

// Whether the processor has dot products of bytes (AVX512_VNNI, AVX_VNNI) for the HWY_TARGET that
// runs now. SetDotBytes(false) does without, for tests.
bool HasDotBytes();
void SetDotBytes(bool allowed);

// The HWY_TARGET that the functions above run now.
int64_t BlockKernelTarget();

}  // namespace pmkvq::internal
