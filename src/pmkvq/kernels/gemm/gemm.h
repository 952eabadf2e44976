// Products with weight matrices kept in their stored type.
//
//   MatMul:          y[t, n] = sum_k x[t, k] * W[n, k] (+ bias[n])
//   MatMulGradInput: dx[t, k] = sum_n dy[t, n] * W[n, k]
//
// W [N, K] (nn.Linear's layout) is in one of the formats of tensor/weight_format.h. Plain formats
// need the alignment of their element type, quantised ones none. x, y, dx, dy are row-major floats
// (or doubles).
//
// Up to kDecodeRows rows: own vector kernels; the weight is read from memory once for all rows. A
// row's bits depend neither on its neighbours, nor on the number of rows, nor on the thread count.
// Products of floats with block formats (IsBlockFormat) round x to 8 bits (block_product.h), have
// the same bits on every instruction set, and all that is said above with any number of rows.
// More rows, other formats, unrounded x: W is expanded in fixed tiles of output rows and multiplied
// by BLAS on one thread per tile; bits depend on the number of rows, not on the thread count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "pmkvq/tensor/device/device.h"
#include "pmkvq/tensor/device/exec_context.h"
#include "pmkvq/tensor/weight_format.h"

namespace pmkvq {

// Beyond it BLAS is faster, where it knows the processor.
inline constexpr int64_t kDecodeRows = 64;

// A weight matrix: `rows` = N outputs, `cols` = K inputs.
struct WeightView {
  const std::byte* data = nullptr;
  WeightFormat format = WeightFormat::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  // Where not 0, rows of each so many (the rows of a head) lie in pairs: rows i and
  // i + pair_rows / 2, which RoPE rotates together, are stored as rows 2 i and 2 i + 1. Even, and a
  // divisor of `rows`. Products have the bits that they have with rows in order.
  int64_t pair_rows = 0;
  DeviceId device = {};  // That the data lie on, and that computes products with them.

  // Which of the stored rows is row `row`.
  int64_t StoredRow(int64_t row) const {
    if (pair_rows == 0) return row;
    const int64_t in_head = row % pair_rows;
    const int64_t half = pair_rows / 2;
    return row - in_head + in_head % half * 2 + in_head / half;
  }
  size_t num_bytes() const { return static_cast<size_t>(rows * RowBytes(format, cols)); }
};

// The functions below throw Unsupported when the program has no code for the weight's device.

// `bias` [N] may be null. x [num_rows, K], y [num_rows, N]; y must not overlap x.
// Real is float or double (double: for the finite-difference tests of calibration).
template <class Real>
void MatMul(const Real* x, int64_t num_rows, const WeightView& weight, const float* bias, Real* y,
            const ExecContext& exec);

// One of several products with the same x: as the arguments of MatMul.
template <class Real>
struct Projection {
  const WeightView* weight = nullptr;
  const float* bias = nullptr;
  Real* y = nullptr;
};

// MatMul of x with each of `projections`, which have the same K: the same bits, but x is prepared
// and threads are started once. For the projections to q, k and v, and to gate and up.
template <class Real>
void MatMulShared(const Real* x, int64_t num_rows, std::span<const Projection<Real>> projections,
                  const ExecContext& exec);

// dx [num_rows, K] is overwritten, or added to when `accumulate`.
template <class Real>
void MatMulGradInput(const Real* dy, int64_t num_rows, const WeightView& weight, Real* dx,
                     bool accumulate, const ExecContext& exec);

// Converts one row of a weight to floats: out [cols] (embedding look-up).
template <class Real>
void ExpandRow(const WeightView& weight, int64_t row, Real* out);

// C [m, n] = alpha * op(A) op(B) + beta * C, row-major, leading dimensions in elements; one thread.
// The only door to BLAS for other ops.
template <class Real>
void BlasGemm(bool transpose_a, bool transpose_b, int64_t m, int64_t n, int64_t k, Real alpha,
              const Real* a, int64_t lda, const Real* b, int64_t ldb, Real beta, Real* c,
              int64_t ldc);

namespace ref {
// One weight, by the formula of its format: a float.
double WeightAt(const WeightView& weight, int64_t row, int64_t col);
// Scalar oracle: double accumulation, one element at a time.
template <class Real>
void MatMul(const Real* x, int64_t num_rows, const WeightView& weight, const float* bias, Real* y);
}  // namespace ref

}  // namespace pmkvq
