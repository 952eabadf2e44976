#include "pmkvq/kernels/gemm/head_products.h"

#include <algorithm>
#include <optional>
#include <type_traits>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/gemm/unrounded_products.h"

namespace pmkvq {
namespace {

// Of one thread: a multiplication with a float that is in its cache.
constexpr double kNsPerMultiplication = 0.1;

// Rows of one head behind each other.
template <class Real>
struct Buffers {
  AlignedVector<Real> x;
  AlignedVector<Real> y;
  AlignedVector<Real> weights;  // Of a matrix, as floats.
};

template <class Real>
Buffers<Real>& ThreadBuffers() {
  thread_local Buffers<Real> buffers;
  return buffers;
}

template <class Real>
Real* Room(AlignedVector<Real>& values, int64_t count) {
  if (std::ssize(values) < count) values.resize(static_cast<size_t>(count));
  return values.data();
}

// y [num_rows, cols] += x [num_rows] row, for rows of x that lie `stride` apart.
void AddMultiples(const float* row, int64_t cols, const float* x, int64_t stride, int64_t num_rows,
                  float* y) {
  for (int64_t t = 0; t < num_rows; ++t, y += cols) {
    const float factor = x[t * stride];
    for (int64_t k = 0; k < cols; ++k) y[k] += factor * row[k];
  }
}

// The sum over n in order, for any number of rows.
void AddRowsOf(const WeightView& weight, const float* x, int64_t num_rows, float* y) {
  // With 512 columns, as in all published models, the sums of so many rows take 16 KiB: half of L1.
  constexpr int64_t kRowsAtOnce = 8;
  const int64_t cols = weight.cols;
  const bool keeps_all = num_rows > kRowsAtOnce;  // The weights are expanded once.
  float* const floats = Room(ThreadBuffers<float>().weights, (keeps_all ? weight.rows : 1) * cols);
  std::fill_n(y, num_rows * cols, 0.0f);
  for (int64_t first = 0; first < num_rows; first += kRowsAtOnce) {
    const int64_t count = std::min(kRowsAtOnce, num_rows - first);
    for (int64_t n = 0; n < weight.rows; ++n) {
      float* const row = keeps_all ? floats + n * cols : floats;
      if (first == 0) ExpandRow(weight, n, row);
      AddMultiples(row, cols, x + first * weight.rows + n, weight.rows, count, y + first * cols);
    }
  }
}

template <class Real>
void MultiplyTransposed(const WeightView& weight, const Real* x, int64_t num_rows, Real* y) {
  if constexpr (std::is_same_v<Real, float>) {
    if (num_rows <= kDecodeRows) return AddRowsOf(weight, x, num_rows, y);
  }
  MatMulGradInput(x, num_rows, weight, y, /*accumulate=*/false, 1);
}

// Calls product(matrix, x, y) for each head, x [num_rows, in] and y [num_rows, out] without gaps.
template <class Real, class Product>
void ForHeads(const HeadMatrices& matrices, int64_t in, int64_t out, const HeadRows<const Real>& x,
              int64_t num_rows, const HeadRows<Real>& y, const ExecContext& exec,
              const Product& product) {
  const double ns = static_cast<double>(matrices.num_heads * num_rows * in * out);
  const int threads = UsefulThreads(exec.num_threads, ns * kNsPerMultiplication);
  const bool are_unrounded = UnroundedProducts::AreAskedFor();
  ParallelFor(threads, matrices.num_heads, [&](int64_t head, int /*worker*/) {
    std::optional<UnroundedProducts> unrounded;
    if (are_unrounded) unrounded.emplace();
    const Real* from = x.data + head * x.head_stride;
    Real* const to = y.data + head * y.head_stride;
    const bool gathers = num_rows > 1 && x.row_stride != in;
    const bool scatters = num_rows > 1 && y.row_stride != out;
    if (gathers) {
      Real* const packed = Room(ThreadBuffers<Real>().x, num_rows * in);
      for (int64_t t = 0; t < num_rows; ++t) {
        std::copy_n(from + t * x.row_stride, in, packed + t * in);
      }
      from = packed;
    }
    Real* const result = scatters ? Room(ThreadBuffers<Real>().y, num_rows * out) : to;
    product(matrices.Of(head), from, result);
    if (!scatters) return;
    for (int64_t t = 0; t < num_rows; ++t) {
      std::copy_n(result + t * out, out, to + t * y.row_stride);
    }
  });
}

}  // namespace

WeightView HeadMatrices::Of(int64_t head) const {
  PMKVQ_CHECK(weight->pair_rows == 0 && head >= 0 && head < num_heads);
  const int64_t begin = head * stride + first;
  PMKVQ_CHECK(begin + rows <= weight->rows);
  WeightView view = *weight;
  view.data += begin * RowBytes(weight->format, weight->cols);
  view.rows = rows;
  return view;
}

template <class Real>
void MultiplyHeads(const HeadMatrices& matrices, const HeadRows<const Real>& x, int64_t num_rows,
                   const HeadRows<Real>& y, const ExecContext& exec) {
  ForHeads(matrices, matrices.weight->cols, matrices.rows, x, num_rows, y, exec,
           [&](const WeightView& weight, const Real* from, Real* to) {
             MatMul<Real>(from, num_rows, weight, /*bias=*/nullptr, to, 1);
           });
}

template <class Real>
void MultiplyHeadsTransposed(const HeadMatrices& matrices, const HeadRows<const Real>& x,
                             int64_t num_rows, const HeadRows<Real>& y, const ExecContext& exec) {
  ForHeads(matrices, matrices.rows, matrices.weight->cols, x, num_rows, y, exec,
           [&](const WeightView& weight, const Real* from, Real* to) {
             MultiplyTransposed<Real>(weight, from, num_rows, to);
           });
}

#define PMKVQ_INSTANTIATE(Real)                                                                 \
  template void MultiplyHeads<Real>(const HeadMatrices&, const HeadRows<const Real>&, int64_t,  \
                                    const HeadRows<Real>&, const ExecContext&);                 \
  template void MultiplyHeadsTransposed<Real>(const HeadMatrices&, const HeadRows<const Real>&, \
                                              int64_t, const HeadRows<Real>&, const ExecContext&);
PMKVQ_INSTANTIATE(float)
PMKVQ_INSTANTIATE(double)
#undef PMKVQ_INSTANTIATE

}  // namespace pmkvq
