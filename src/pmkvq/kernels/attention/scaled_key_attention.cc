#include "pmkvq/kernels/attention/scaled_key_attention.h"

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/attention/packed_sequence.h"
#include "pmkvq/kernels/kv_quant/fake_quant_columns.h"

namespace pmkvq {

void ScaledKeyAttention::SetSequence(const CausalAttentionShape& shape, int64_t group,
                                     const float* k, const float* v, const ExecContext& exec) {
  PMKVQ_CHECK(group > 0 && shape.head_dim % group == 0 && shape.head_dim % 2 == 0);
  shape_ = shape;
  group_ = group;
  internal::PackKeys(shape, k, keys_, exec);
  internal::PackValues(shape, v, values_, exec);
  scaled_.resize(keys_.size());
  divisors_.resize(static_cast<size_t>(shape.num_kv_heads * shape.head_dim));
}

// Panels of keys are [D][P]: each column holds D / group groups.
void ScaledKeyAttention::QuantizeKeys(const float* scales, int k_bits, const ExecContext& exec) {
  const int64_t dim = shape_.head_dim;
  const int64_t half = dim / 2;
  for (int64_t head = 0; head < shape_.num_kv_heads; ++head) {
    float* divisor = divisors_.data() + head * dim;
    std::copy_n(scales + head * half, half, divisor);
    std::copy_n(scales + head * half, half, divisor + half);
  }
  const int64_t width = internal::PanelWidth();
  const int64_t num_panels = internal::NumKeyPanels(shape_);
  ParallelFor(exec.num_threads, shape_.num_kv_heads * num_panels,
              [&](int64_t item, int /*worker*/) {
                const float* divisor = divisors_.data() + item / num_panels * dim;
                const float* panel = keys_.data() + item * dim * width;
                float* out = scaled_.data() + item * dim * width;
                for (int64_t i = 0; i < dim; i += group_) {
                  FakeQuantizeColumns(group_, k_bits, panel + i * width, divisor + i, width,
                                      out + i * width);
                }
              });
}

void ScaledKeyAttention::Run(const float* q, const float* scales, int k_bits,
                             const float* reference, float* out, const ExecContext& exec) {
  QuantizeKeys(scales, k_bits, exec);
  internal::AttendPacked({.shape = shape_,
                          .q = q,
                          .q_factors = scales,
                          .keys = scaled_.data(),
                          .values = values_.data(),
                          .subtract = reference,
                          .out = out},
                         scratch_, exec);
}

}  // namespace pmkvq
