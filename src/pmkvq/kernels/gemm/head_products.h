// Products of heads, each with a matrix of its own, for latent attention: from latents to keys and
// values of all heads, and from queries to latents.
//
// A row's bits depend neither on its neighbours, nor on the number of rows up to kDecodeRows, nor
// on the thread count; with more rows they are those of products through BLAS (gemm.h).
#pragma once

#include <cstdint>

#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

// The matrices of all heads within one weight: head h has the `rows` rows from h * stride + first
// on, [rows, cols]. Rows lie in order (pair_rows is 0).
struct HeadMatrices {
  const WeightView* weight = nullptr;
  int64_t num_heads = 0;
  int64_t first = 0;
  int64_t rows = 0;
  int64_t stride = 0;

  WeightView Of(int64_t head) const;
};

// Head h of row t lies from data + t * row_stride + h * head_stride on. A head stride of 0: all
// heads read the same values.
template <class Real>
struct HeadRows {
  Real* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

// y[t, h, n] = sum_k W_h[n, k] x[t, h, k]; heads of y do not overlap each other, nor x.
template <class Real>
void MultiplyHeads(const HeadMatrices& matrices, const HeadRows<const Real>& x, int64_t num_rows,
                   const HeadRows<Real>& y, const ExecContext& exec);

// y[t, h, k] = sum_n W_h[n, k] x[t, h, n]
template <class Real>
void MultiplyHeadsTransposed(const HeadMatrices& matrices, const HeadRows<const Real>& x,
                             int64_t num_rows, const HeadRows<Real>& y, const ExecContext& exec);

}  // namespace pmkvq
