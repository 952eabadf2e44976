// Causal attention of one sequence, repeated with keys of different scales, quantised each time:
// the inner loop of the search for key scales.
//
//   out = softmax(scale * (q s) Q_b(k / s)^T + causal mask) v - reference
//
// Keys are transposed and values packed once per sequence. Memory: three copies of [N, Hkv, D]
// and scratch of a block of query rows a thread. Deterministic for any number of threads.
#pragma once

#include <cstdint>

#include "pmkvq/base/aligned.h"
#include "pmkvq/kernels/attention/causal_attention.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

class ScaledKeyAttention {
 public:
  // Copies k and v [N, Hkv, D]. `group`: values per quantisation group, divides D.
  void SetSequence(const CausalAttentionShape& shape, int64_t group, const float* k, const float* v,
                   const ExecContext& exec);

  // q, reference, out [N, H, D]; scales [Hkv, D/2], positive, one per channel pair (i, i + D/2).
  // k_bits: 16, 8, 4 or 2. After SetSequence.
  void Run(const float* q, const float* scales, int k_bits, const float* reference, float* out,
           const ExecContext& exec);

 private:
  void QuantizeKeys(const float* scales, int k_bits, const ExecContext& exec);

  CausalAttentionShape shape_;
  int64_t group_ = 0;
  AlignedVector<float> keys_;    // Unscaled, packed in panels as the next two.
  AlignedVector<float> scaled_;  // Q_b(k / s)
  AlignedVector<float> values_;
  AlignedVector<float> divisors_;  // [Hkv, D]
  AlignedVector<float> scratch_;
};

}  // namespace pmkvq
