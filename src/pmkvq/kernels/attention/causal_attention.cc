#include "pmkvq/kernels/attention/causal_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/attention/packed_sequence.h"
#include "pmkvq/kernels/gemm/gemm.h"

namespace pmkvq {
namespace {

constexpr int64_t kQueryBlock = 128;

void CheckShape(const CausalAttentionShape& shape) {
  PMKVQ_CHECK(shape.num_tokens >= 0 && shape.head_dim > 0 && shape.sliding_window >= 0);
  PMKVQ_CHECK(shape.num_kv_heads > 0 && shape.num_heads % shape.num_kv_heads == 0);
}

// Softmax of the scores from `hidden` on and before `visible`, of `count`; the others become 0.
void SoftmaxRow(int64_t hidden, int64_t visible, int64_t count, double* scores) {
  const double max = *std::max_element(scores + hidden, scores + visible);
  double sum = 0.0;
  for (int64_t m = hidden; m < visible; ++m) sum += scores[m] = std::exp(scores[m] - max);
  for (int64_t m = hidden; m < visible; ++m) scores[m] /= sum;
  std::fill(scores, scores + hidden, 0.0);
  std::fill(scores + visible, scores + count, 0.0);
}

void SoftmaxRow(int64_t hidden, int64_t visible, int64_t count, float* scores) {
  float max = -std::numeric_limits<float>::infinity();
  float sum = 0.0f;
  float rescale = 1.0f;
  internal::OnlineSoftmax(1, count, count, {&visible, &hidden}, scores, &max, &sum, &rescale);
  for (int64_t m = hidden; m < visible; ++m) scores[m] /= sum;
}

// One block of query rows of one head, and the keys that it sees: those before `visible`.
template <class Real>
struct Block {
  const CausalAttentionShape& shape;
  int64_t head;
  int64_t first;
  int64_t rows;

  int64_t visible() const { return first + rows; }
  int64_t q_stride() const { return shape.num_heads * shape.head_dim; }
  int64_t kv_stride() const { return shape.num_kv_heads * shape.head_dim; }
  // Offsets of the block in [N, H, D], and of its KV head in [N, Hkv, D].
  int64_t q_offset() const { return first * q_stride() + head * shape.head_dim; }
  int64_t kv_offset() const {
    return head / (shape.num_heads / shape.num_kv_heads) * shape.head_dim;
  }

  // p [rows, visible] = softmax(scale * Q K^T + causal mask).
  void Probabilities(const Real* q, const Real* k, Real* p) const {
    BlasGemm<Real>(false, true, rows, visible(), shape.head_dim, static_cast<Real>(shape.scale),
                   q + q_offset(), q_stride(), k + kv_offset(), kv_stride(), Real{0}, p, visible());
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t hidden = internal::HiddenTokens(shape.sliding_window, first + r, 0, visible());
      SoftmaxRow(hidden, first + r + 1, visible(), p + r * visible());
    }
  }

  // ds [rows, visible]: dL/dP on entry, dL/d(Q K^T) on return.
  void ScoreGradient(const Real* p, Real* ds) const {
    for (int64_t r = 0; r < rows; ++r) {
      const Real* p_row = p + r * visible();
      Real* ds_row = ds + r * visible();
      Real dot = 0;
      for (int64_t m = 0; m < visible(); ++m) dot += p_row[m] * ds_row[m];
      for (int64_t m = 0; m < visible(); ++m) {
        ds_row[m] = p_row[m] * (ds_row[m] - dot) * static_cast<Real>(shape.scale);
      }
    }
  }
};

template <class Real>
Block<Real> MakeBlock(const CausalAttentionShape& shape, int64_t head, int64_t index) {
  const int64_t first = index * kQueryBlock;
  return {shape, head, first, std::min(kQueryBlock, shape.num_tokens - first)};
}

int64_t NumBlocks(const CausalAttentionShape& shape) {
  return (shape.num_tokens + kQueryBlock - 1) / kQueryBlock;
}

// dk and dv of one query head, [N, D] each; the heads of a KV head are added up afterwards.
template <class Real>
struct HeadGradient {
  Real* dk;
  Real* dv;
};

// Sets dq, and adds the contributions of one block to dk and dv. p and ds are scratch [kQueryBlock,
// N].
template <class Real>
void AddBlockGradient(const Block<Real>& block, const Real* q, const Real* k, const Real* v,
                      const Real* dout, Real* dq, const HeadGradient<Real>& sum, Real* p,
                      Real* ds) {
  const int64_t dim = block.shape.head_dim;
  const int64_t rows = block.rows;
  const int64_t visible = block.visible();
  const int64_t q_stride = block.q_stride();
  const int64_t kv_stride = block.kv_stride();
  const int64_t qo = block.q_offset();
  const int64_t kvo = block.kv_offset();
  block.Probabilities(q, k, p);
  BlasGemm<Real>(true, false, visible, dim, rows, Real{1}, p, visible, dout + qo, q_stride, Real{1},
                 sum.dv, dim);
  BlasGemm<Real>(false, true, rows, visible, dim, Real{1}, dout + qo, q_stride, v + kvo, kv_stride,
                 Real{0}, ds, visible);
  block.ScoreGradient(p, ds);
  BlasGemm<Real>(false, false, rows, dim, visible, Real{1}, ds, visible, k + kvo, kv_stride,
                 Real{0}, dq + qo, q_stride);
  BlasGemm<Real>(true, false, visible, dim, rows, Real{1}, ds, visible, q + qo, q_stride, Real{1},
                 sum.dk, dim);
}

// out [N, Hkv, D] = sums of parts [H, N, D] over the query heads of each KV head, in order.
template <class Real>
void SumHeads(const CausalAttentionShape& shape, const Real* parts, Real* out) {
  const int64_t heads_per_kv = shape.num_heads / shape.num_kv_heads;
  const int64_t dim = shape.head_dim;
  std::fill_n(out, shape.num_tokens * shape.num_kv_heads * dim, Real{0});
  for (int64_t head = 0; head < shape.num_heads; ++head) {
    for (int64_t n = 0; n < shape.num_tokens; ++n) {
      const Real* part = parts + (head * shape.num_tokens + n) * dim;
      Real* sum = out + (n * shape.num_kv_heads + head / heads_per_kv) * dim;
      for (int64_t i = 0; i < dim; ++i) sum[i] += part[i];
    }
  }
}

void Attend(const CausalAttentionShape& shape, const float* q, const float* k, const float* v,
            float* out, const ExecContext& exec) {
  AlignedVector<float> keys;
  AlignedVector<float> values;
  AlignedVector<float> scratch;
  internal::PackKeys(shape, k, keys, exec);
  internal::PackValues(shape, v, values, exec);
  internal::AttendPacked(
      {.shape = shape, .q = q, .keys = keys.data(), .values = values.data(), .out = out}, scratch,
      exec);
}

void Attend(const CausalAttentionShape& shape, const double* q, const double* k, const double* v,
            double* out, const ExecContext& exec) {
  const int64_t num_items = NumBlocks(shape) * shape.num_heads;
  const int64_t p_size = kQueryBlock * shape.num_tokens;
  const int threads = std::max(exec.num_threads, 1);
  AlignedVector<double> scratch(static_cast<size_t>(threads * p_size));
  ParallelFor(threads, num_items, [&](int64_t i, int worker) {
    const int64_t item = num_items - 1 - i;  // Longest blocks first.
    const Block<double> block =
        MakeBlock<double>(shape, item % shape.num_heads, item / shape.num_heads);
    double* p = scratch.data() + worker * p_size;
    block.Probabilities(q, k, p);
    BlasGemm<double>(false, false, block.rows, shape.head_dim, block.visible(), double{1}, p,
                     block.visible(), v + block.kv_offset(), block.kv_stride(), double{0},
                     out + block.q_offset(), block.q_stride());
  });
}

}  // namespace

template <class Real>
void CausalAttention(const CausalAttentionShape& shape, const Real* q, const Real* k, const Real* v,
                     Real* out, const ExecContext& exec) {
  CheckShape(shape);
  Attend(shape, q, k, v, out, exec);
}

template <class Real>
void CausalAttentionGrad(const CausalAttentionShape& shape, const Real* q, const Real* k,
                         const Real* v, const Real* dout, Real* dq, Real* dk, Real* dv,
                         const ExecContext& exec) {
  CheckShape(shape);
  const int64_t head_size = shape.num_tokens * shape.head_dim;
  const int64_t p_size = kQueryBlock * shape.num_tokens;
  const int threads = static_cast<int>(std::clamp<int64_t>(exec.num_threads, 1, shape.num_heads));
  AlignedVector<Real> dk_parts(static_cast<size_t>(shape.num_heads * head_size));
  AlignedVector<Real> dv_parts(dk_parts.size());
  AlignedVector<Real> scratch(static_cast<size_t>(threads * 2 * p_size));
  ParallelFor(threads, shape.num_heads, [&](int64_t head, int worker) {
    Real* p = scratch.data() + worker * 2 * p_size;
    const HeadGradient<Real> sum{dk_parts.data() + head * head_size,
                                 dv_parts.data() + head * head_size};
    for (int64_t index = 0; index < NumBlocks(shape); ++index) {
      CancelPoint();  // One head of a long sequence takes minutes.
      AddBlockGradient(MakeBlock<Real>(shape, head, index), q, k, v, dout, dq, sum, p, p + p_size);
    }
  });
  SumHeads(shape, dk_parts.data(), dk);
  SumHeads(shape, dv_parts.data(), dv);
}

template void CausalAttention(const CausalAttentionShape&, const float*, const float*, const float*,
                              float*, const ExecContext&);
template void CausalAttention(const CausalAttentionShape&, const double*, const double*,
                              const double*, double*, const ExecContext&);
template void CausalAttentionGrad(const CausalAttentionShape&, const float*, const float*,
                                  const float*, const float*, float*, float*, float*,
                                  const ExecContext&);
template void CausalAttentionGrad(const CausalAttentionShape&, const double*, const double*,
                                  const double*, const double*, double*, double*, double*,
                                  const ExecContext&);

}  // namespace pmkvq
