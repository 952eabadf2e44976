// The vector kernels behind sampling.h and batch_sampler.h, compiled per instruction set. Internal
// to sampling/.
//
// A row of logits [V] is looked at in blocks of kSampleBlock tokens; the last one may be shorter.
#pragma once

#include <cstdint>

namespace pmkvq::internal {

constexpr int64_t kSampleBlock = 256;

constexpr int64_t NumSampleBlocks(int64_t vocab_size) {
  return (vocab_size + kSampleBlock - 1) / kSampleBlock;
}

// Writes the largest value of each block of x [count] to block_max, and returns the largest
// magnitude as bits: above kInfinityBits where there is a NaN. The maximum of a block with a NaN
// means nothing.
constexpr uint32_t kInfinityBits = 0x7f800000u;
uint32_t ScanBlocks(const float* x, int64_t count, float* block_max);

// exp(x_i - m), m the largest value of its block, summed over each block of x [count] into sums:
// exponentials in float, sums in double. `block_max` is that of ScanBlocks and finite. A sum is
// within 4e-7 of the exact one, relatively: the rounding of the distance, at most 2^-24 of it, and
// 1e-7 of the exponential. Its bits are the same on all instruction sets: those of
// ref::BlockExpSums.
void BlockExpSums(const float* x, int64_t count, const float* block_max, double* sums);

// exp((x_i - max) * scale), in double, summed over each block of x [count] into sums. `block_max`
// is that of ScanBlocks. Values below `cut` count as 0. All values are at most `max`, no NaN; `cut`
// is finite, and (cut - max) * scale is at least -80.

// Each sum is within kRoughSumError of the exact one (of what is not cut), relatively: 1.2e-7 of
// its exponential, and four additions in float at most. Its bits depend on the instruction set.
constexpr double kRoughSumError = 4e-7;
void RoughExpSums(const float* x, int64_t count, const float* block_max, float max, double scale,
                  float cut, float lowest_block, double* sums);

// To about 1e-15, with the same bits on all instruction sets: those of ref::ExpSums. Eight times
// the time.
void FineExpSums(const float* x, int64_t count, const float* block_max, float max, double scale,
                 float cut, double* sums);

// Writes the ids, beginning with first_id at x[0], of the values of x [count] that are at least
// `threshold` (not -inf), in ascending order; `ids` has room for `count`. Returns their number.
int64_t GatherAtLeast(const float* x, int64_t count, float threshold, int32_t first_id,
                      int32_t* ids);

// The HWY_TARGET that the functions above run now (tests prove with it what they tested).
int64_t SamplingKernelTarget();

}  // namespace pmkvq::internal

namespace pmkvq::ref {

// Scalar oracle of BlockExpSums, which defines its bits. A block whose maximum is -inf has sum 0.
void BlockExpSums(const float* x, int64_t count, const float* block_max, double* sums);
// The exponential of ExpSums: exp(x) to about 1e-15 for x in [-700, 0].
double ExpFixed(double x);
// Scalar oracle of FineExpSums, which defines its bits.
void ExpSums(const float* x, int64_t count, float max, double scale, float cut, double* sums);

}  // namespace pmkvq::ref
