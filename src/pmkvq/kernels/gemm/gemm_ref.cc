#include <algorithm>
#include <cmath>
#include <cstring>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/gemm/weight_q8.h"

namespace pmkvq::ref {
namespace {

// The smallest BF16 that is not below `value` >= 0.
BF16 RoundUpToBf16(float value) {
  BF16 nearest = ToBF16(value);
  if (ToFloat(nearest) < value) ++nearest.bits;
  return nearest;
}

// `count` weights of `row` from `col` on, the rest of the group is zero. False: one is not finite.
bool QuantizeGroup(const WeightView& weight, int64_t row, int64_t col, int64_t count,
                   std::byte* out) {
  float largest = 0.0f;
  for (int64_t k = 0; k < count; ++k) {
    const auto value = static_cast<float>(WeightAt(weight, row, col + k));
    if (!std::isfinite(value)) return false;
    largest = std::max(largest, std::abs(value));
  }
  const BF16 scale = RoundUpToBf16(largest / 127.0f);
  std::memset(out, 0, kQ8Group);
  std::memcpy(out + kQ8Group, &scale, sizeof(scale));
  if (scale.bits == 0) return true;
  for (int64_t k = 0; k < count; ++k) {
    const auto value = static_cast<float>(WeightAt(weight, row, col + k));
    const auto code = static_cast<int8_t>(std::nearbyint(value / ToFloat(scale)));
    std::memcpy(out + k, &code, sizeof(code));
  }
  return true;
}

}  // namespace

bool QuantizeWeight(const WeightView& weight, Q8Weight& out) {
  out.rows = weight.rows;
  out.cols = weight.cols;
  out.data.assign(static_cast<size_t>(weight.rows * RowBytes(WeightFormat::kQ8, weight.cols)),
                  std::byte{0});
  std::byte* group = out.data.data();
  bool finite = true;
  for (int64_t row = 0; row < weight.rows; ++row) {
    for (int64_t col = 0; col < weight.cols; col += kQ8Group, group += kQ8GroupBytes) {
      const int64_t count = std::min(kQ8Group, weight.cols - col);
      finite = QuantizeGroup(weight, row, col, count, group) && finite;
    }
  }
  return finite;
}

template <class Real>
void MatMul(const Real* x, int64_t num_rows, const WeightView& weight, const float* bias, Real* y) {
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t n = 0; n < weight.rows; ++n) {
      double sum = 0.0;
      for (int64_t k = 0; k < weight.cols; ++k) {
        sum += static_cast<double>(x[t * weight.cols + k]) * WeightAt(weight, n, k);
      }
      if (bias != nullptr) sum += static_cast<double>(bias[n]);
      y[t * weight.rows + n] = static_cast<Real>(sum);
    }
  }
}

template void MatMul<float>(const float*, int64_t, const WeightView&, const float*, float*);
template void MatMul<double>(const double*, int64_t, const WeightView&, const float*, double*);

}  // namespace pmkvq::ref
