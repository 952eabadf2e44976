// Scalar oracle of products of packed codes with 16-bit integers.
#include <algorithm>
#include <cmath>

#include "pmkvq/kernels/attention/integer_products.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq::internal::ref {
namespace {

int32_t CodeAt(const PackedRows& rows, int64_t row, int64_t column) {
  const auto* packed = reinterpret_cast<const uint8_t*>(rows.data + row * rows.row_bytes);
  return PackedCode(packed, rows.columns, rows.bits, column);
}

}  // namespace

float QuantizeToIntegers(const float* x, int64_t count, int16_t* integers) {
  float max = 0.0f;
  for (int64_t i = 0; i < count; ++i) max = std::max(max, std::abs(x[i]));
  if (max < kMinMagnitude) {
    std::fill_n(integers, count, int16_t{0});
    return 0.0f;
  }
  const float inverse = kMaxInteger / max;
  for (int64_t i = 0; i < count; ++i) {
    integers[i] = static_cast<int16_t>(std::nearbyint(x[i] * inverse));
  }
  return max / kMaxInteger;
}

void DotPackedRows(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride,
                   int32_t* sums) {
  for (int64_t r = 0; r < num_x; ++r) {
    for (int64_t t = 0; t < rows.num_rows; ++t) {
      int32_t sum = 0;
      for (int64_t d = 0; d < rows.columns; ++d) sum += x[r * x_stride + d] * CodeAt(rows, t, d);
      sums[r * kMaxIntegerRows + t] = sum;
    }
  }
}

void SumPackedRows(const PackedRows& rows, const int16_t* weights, int64_t num_x, int32_t* sums) {
  for (int64_t r = 0; r < num_x; ++r) {
    for (int64_t d = 0; d < rows.columns; ++d) {
      int32_t sum = 0;
      for (int64_t t = 0; t < rows.num_rows; ++t) {
        sum += weights[r * kMaxIntegerRows + t] * CodeAt(rows, t, d);
      }
      sums[r * rows.columns + d] = sum;
    }
  }
}

}  // namespace pmkvq::internal::ref
