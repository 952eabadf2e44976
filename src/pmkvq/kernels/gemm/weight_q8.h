// Weights as int8 codes with one scale per group, made once when a model is loaded.
//
// A row of K inputs is cut into groups of kQ8Group; the last one is filled up with zero codes. A
// group is stored as 34 bytes, groups and rows follow each other without gaps:
//
//   bytes 0..31   codes, int8, -127..127
//   bytes 32..33  scale, BF16, little endian, >= 0
//
// and stands for the weights code * scale: 1.0625 bytes for each. The scale is max|w| / 127,
// rounded up to BF16, and codes are rounded (half to even) against the stored scale, so a weight
// errs by at most half a scale. A code has 7 bits and a scale 8, so code * scale is exact in a
// float: every path that expands a group sees the same weights.
//
// This is WeightFormat::kQ8; `rows` and `cols` of a WeightView count weights as ever.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

inline constexpr int64_t kQ8Group = LayoutOf(WeightFormat::kQ8).block_values;
inline constexpr int64_t kQ8GroupBytes = LayoutOf(WeightFormat::kQ8).block_bytes;
static_assert(kQ8GroupBytes == kQ8Group + 2);

// Bytes that a resize adds are left as the memory is: the threads that write them next then touch
// its pages first, in place of one thread that fills gigabytes with zeros.
struct UnfilledAllocator : AlignedAllocator<std::byte> {
  template <class U>
  struct rebind {
    using other = UnfilledAllocator;
  };
  void construct(std::byte* /*place*/) {}
  void construct(std::byte* place, std::byte value) { *place = value; }
};

using QuantizedBytes = std::vector<std::byte, UnfilledAllocator>;

// Owns the groups of one matrix.
struct Q8Weight {
  QuantizedBytes data;
  int64_t rows = 0;
  int64_t cols = 0;

  WeightView view() const { return {data.data(), WeightFormat::kQ8, rows, cols}; }
};

// `weight` is of any other format; its rows may lie in pairs, those of `out` lie in order. Returns
// false when it holds an infinity or NaN, for which there are no codes; `out` is then of no use.
// The same on every instruction set and for every thread count.
[[nodiscard]] bool QuantizeWeight(const WeightView& weight, const ExecContext& exec, Q8Weight& out);

// One row: `weights` [cols rounded up to groups], those beyond cols zero, to out [RowBytes(kQ8,
// cols)]. False as above. For weights that come from elsewhere than a WeightView.
[[nodiscard]] bool QuantizeRow(const float* weights, int64_t cols, std::byte* out);
// The greatest |weight - code * scale| of a row that QuantizeRow has made.
float RowError(const float* weights, int64_t cols, const std::byte* quantized);

namespace internal {
// The HWY_TARGET that QuantizeWeight runs now.
int64_t Q8KernelTarget();
}  // namespace internal

namespace ref {
// Scalar oracle: bit-equal.
bool QuantizeWeight(const WeightView& weight, Q8Weight& out);
}  // namespace ref

}  // namespace pmkvq
