#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/gemm/gemm.h"

namespace pmkvq::ref {
namespace {

double WeightAt(const WeightView& weight, int64_t row, int64_t col) {
  const size_t index = static_cast<size_t>(row * weight.cols + col);
  switch (weight.dtype) {
    case DType::kBF16:
      return ToFloat(reinterpret_cast<const BF16*>(weight.data)[index]);
    case DType::kF16:
      return ToFloat(reinterpret_cast<const F16*>(weight.data)[index]);
    default:
      return reinterpret_cast<const float*>(weight.data)[index];
  }
}

}  // namespace

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
