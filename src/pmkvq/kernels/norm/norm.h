// RMS normalisation: y = x / sqrt(mean(x^2) + eps) * weight, per row, and its gradient.
#pragma once

#include <cstdint>

#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

// x, y [num_rows, size], weight [size]; y may equal x. Real is float or double. Rows are
// independent: a row's bits do not depend on num_rows or the thread count.
template <class Real>
void RmsNorm(const Real* x, int64_t num_rows, int64_t size, const float* weight, double eps,
             Real* y, const ExecContext& exec);

// dx [num_rows, size] += dL/dx given dy = dL/dy.
template <class Real>
void RmsNormGrad(const Real* x, const Real* dy, int64_t num_rows, int64_t size, const float* weight,
                 double eps, Real* dx, const ExecContext& exec);

}  // namespace pmkvq
