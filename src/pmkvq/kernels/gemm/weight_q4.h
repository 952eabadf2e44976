// Weights as 4-bit codes with a scale and a minimum per group, made once when a model is loaded.
//
// A group is 32 inputs of a row, the last one filled up; it is a block of Q4_1 (docs/formats.md):
// 20 bytes, 0.625 for each weight, which stand for scale * code + minimum. Scale and minimum, both
// F16, begin as those of the least and the greatest weight; least squares for the codes of a step
// give those of the next one, as long as the squared error falls. Codes are the nearest ones to the
// stored scale and minimum.
//
// This is WeightFormat::kQ4_1; products are those of block_product.h.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/gemm/weight_q8.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

// Owns the groups of one matrix.
struct Q4Weight {
  QuantizedBytes data;
  int64_t rows = 0;
  int64_t cols = 0;

  WeightView view() const { return {data.data(), WeightFormat::kQ4_1, rows, cols}; }
};

// `weight` is of any format; its rows may lie in pairs, those of `out` lie in order. Returns false
// when it holds a number whose group F16 cannot hold: an infinity, NaN, or beyond 65504; `out` is
// then of no use. The same on every machine and for every thread count.
[[nodiscard]] bool QuantizeWeightToQ4(const WeightView& weight, const ExecContext& exec,
                                      Q4Weight& out);

// Puts a group of 32 codes, 0 to 15, into its 20 bytes.
void StoreQ4Group(F16 scale, F16 minimum, const int32_t* codes, std::byte* out);

}  // namespace pmkvq
