// Dense causal attention of one whole sequence and its gradient, for calibration.
//
//   P = softmax(scale * Q K^T + causal mask),  O = P V, per head; KV head g serves H / Hkv heads.
//
// With a sliding window W a row sees only the newest W tokens, itself among them.
// Real is float or double (used by the finite-difference tests). Query rows are processed in
// blocks, so scratch is O(block * N) a thread, not O(N^2); besides, float takes packed copies of k
// and v, and the gradient [H, N, D] twice. The float forward pass skips masked
// products, in its own vector kernels; other products go through BLAS. q, out, dq, dout: [N, H, D];
// k, v, dk, dv: [N, Hkv, D]. Deterministic for any number of threads. A CancelPoint
// (base/interrupt.h) stands between blocks of query rows; after Cancelled the results are
// incomplete.
#pragma once

#include <cstdint>

#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

struct CausalAttentionShape {
  int64_t num_tokens = 0;    // N
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // Hkv
  int64_t head_dim = 0;      // D
  double scale = 1.0;
  int64_t sliding_window = 0;  // W; 0: none.
};

template <class Real>
void CausalAttention(const CausalAttentionShape& shape, const Real* q, const Real* k, const Real* v,
                     Real* out, const ExecContext& exec);

// Gradients of a loss L given dout = dL/dO; q, k, v as in the forward call (P is recomputed).
// dq, dk, dv are overwritten.
template <class Real>
void CausalAttentionGrad(const CausalAttentionShape& shape, const Real* q, const Real* k,
                         const Real* v, const Real* dout, Real* dq, Real* dk, Real* dv,
                         const ExecContext& exec);

}  // namespace pmkvq
