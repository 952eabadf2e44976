#include "pmkvq/model/profile_block.h"

#include <algorithm>

#include "pmkvq/kernels/act/act.h"
#include "pmkvq/kernels/attention/causal_attention.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/model/detail.h"

namespace pmkvq {
using model_detail::AddTo;
using model_detail::DataOrNull;
using model_detail::GrowTo;

template <class Real>
ProfileBlock<Real>::ProfileBlock(const Model& model, int num_threads)
    : model_(model), config_(model.config()), num_threads_(num_threads) {}

template <class Real>
void ProfileBlock<Real>::Resize(int64_t num_tokens) {
  num_tokens_ = num_tokens;
  const int64_t q_count = num_tokens * config_.q_dim();
  const int64_t kv_count = num_tokens * config_.kv_dim();
  GrowTo(normed_, num_tokens * config_.hidden_size);
  for (AlignedVector<Real>* values : {&q_, &attention_, &dq_}) GrowTo(*values, q_count);
  for (AlignedVector<Real>* values : {&k_, &v_, &dk_, &dv_}) GrowTo(*values, kv_count);
  if (config_.qk_norm) {
    GrowTo(q_raw_, q_count);
    GrowTo(k_raw_, kv_count);
    GrowTo(raw_gradient_, q_count);
  }
  const int64_t mlp_rows = std::min(num_tokens, kMlpRows);
  for (AlignedVector<Real>* values : {&gate_, &up_, &inner_}) {
    GrowTo(*values, mlp_rows * config_.intermediate_size);
  }
}

template <class Real>
void ProfileBlock<Real>::ComputeStates(int64_t layer, std::span<const int64_t> positions,
                                       const Real* x) {
  const BlockWeights& block = model_.block(layer);
  const int64_t n = num_tokens_;
  RmsNorm(x, n, config_.hidden_size, block.attention_norm.data(), config_.rms_norm_eps,
          normed_.data(), num_threads_);
  AlignedVector<Real>& q = config_.qk_norm ? q_raw_ : q_;
  AlignedVector<Real>& k = config_.qk_norm ? k_raw_ : k_;
  const Real* h = normed_.data();
  MatMul(h, n, block.q_proj, DataOrNull(block.q_bias), q.data(), num_threads_);
  MatMul(h, n, block.k_proj, DataOrNull(block.k_bias), k.data(), num_threads_);
  MatMul(h, n, block.v_proj, DataOrNull(block.v_bias), v_.data(), num_threads_);
  if (config_.qk_norm) {
    RmsNorm(q.data(), n * config_.num_heads, config_.head_dim, block.q_norm.data(),
            config_.rms_norm_eps, q_.data(), num_threads_);
    RmsNorm(k.data(), n * config_.num_kv_heads, config_.head_dim, block.k_norm.data(),
            config_.rms_norm_eps, k_.data(), num_threads_);
  }
  ApplyRope(model_.rope(), positions.data(), n, config_.num_heads, nullptr, q_.data(),
            num_threads_);
  ApplyRope(model_.rope(), positions.data(), n, config_.num_kv_heads, nullptr, k_.data(),
            num_threads_);
}

template <class Real>
void ProfileBlock<Real>::AddToStates(const Real* delta_k, const Real* delta_v) {
  const int64_t count = num_tokens_ * config_.kv_dim();
  if (delta_k != nullptr) AddTo(k_.data(), delta_k, count);
  if (delta_v != nullptr) AddTo(v_.data(), delta_v, count);
}

template <class Real>
void ProfileBlock<Real>::AddAttention(int64_t layer, Real* x) {
  const BlockWeights& block = model_.block(layer);
  const CausalAttentionShape shape{num_tokens_, config_.num_heads, config_.num_kv_heads,
                                   config_.head_dim, model_.attention_scale()};
  CausalAttention(shape, q_.data(), k_.data(), v_.data(), attention_.data(), num_threads_);
  MatMul(attention_.data(), num_tokens_, block.o_proj, DataOrNull(block.o_bias), normed_.data(),
         num_threads_);
  AddTo(x, normed_.data(), num_tokens_ * config_.hidden_size);
}

template <class Real>
void ProfileBlock<Real>::AddMlp(int64_t layer, Real* x) {
  const BlockWeights& block = model_.block(layer);
  const int64_t size = config_.hidden_size;
  Real* h = normed_.data();
  for (int64_t begin = 0; begin < num_tokens_; begin += kMlpRows) {
    const int64_t rows = std::min(kMlpRows, num_tokens_ - begin);
    Real* slice = x + begin * size;
    RmsNorm(slice, rows, size, block.mlp_norm.data(), config_.rms_norm_eps, h, num_threads_);
    MatMul(h, rows, block.gate_proj, nullptr, gate_.data(), num_threads_);
    MatMul(h, rows, block.up_proj, nullptr, up_.data(), num_threads_);
    SiluMul(gate_.data(), up_.data(), rows * config_.intermediate_size, gate_.data(), num_threads_);
    MatMul(gate_.data(), rows, block.down_proj, nullptr, h, num_threads_);
    AddTo(slice, h, rows * size);
  }
}

template <class Real>
void ProfileBlock<Real>::MlpGrad(int64_t layer, const Real* x, Real* dx) {
  const BlockWeights& block = model_.block(layer);
  const int64_t size = config_.hidden_size;
  Real* h = normed_.data();
  for (int64_t begin = 0; begin < num_tokens_; begin += kMlpRows) {
    const int64_t rows = std::min(kMlpRows, num_tokens_ - begin);
    const Real* slice = x + begin * size;
    Real* gradient = dx + begin * size;
    RmsNorm(slice, rows, size, block.mlp_norm.data(), config_.rms_norm_eps, h, num_threads_);
    MatMul(h, rows, block.gate_proj, nullptr, gate_.data(), num_threads_);
    MatMul(h, rows, block.up_proj, nullptr, up_.data(), num_threads_);
    MatMulGradInput(gradient, rows, block.down_proj, inner_.data(), /*accumulate=*/false,
                    num_threads_);
    SiluMulGrad(gate_.data(), up_.data(), inner_.data(), rows * config_.intermediate_size,
                gate_.data(), up_.data(), num_threads_);
    MatMulGradInput(gate_.data(), rows, block.gate_proj, h, /*accumulate=*/false, num_threads_);
    MatMulGradInput(up_.data(), rows, block.up_proj, h, /*accumulate=*/true, num_threads_);
    RmsNormGrad(slice, h, rows, size, block.mlp_norm.data(), config_.rms_norm_eps, gradient,
                num_threads_);
  }
}

template <class Real>
void ProfileBlock<Real>::AttentionGrad(int64_t layer, const Real* dx) {
  const CausalAttentionShape shape{num_tokens_, config_.num_heads, config_.num_kv_heads,
                                   config_.head_dim, model_.attention_scale()};
  MatMulGradInput(dx, num_tokens_, model_.block(layer).o_proj, attention_.data(),
                  /*accumulate=*/false, num_threads_);
  CausalAttentionGrad(shape, q_.data(), k_.data(), v_.data(), attention_.data(), dq_.data(),
                      dk_.data(), dv_.data(), num_threads_);
}

template <class Real>
void ProfileBlock<Real>::ProjectionOutputGrad(int64_t layer, std::span<const int64_t> positions) {
  const BlockWeights& block = model_.block(layer);
  const int64_t n = num_tokens_;
  ApplyRopeGrad(model_.rope(), positions.data(), n, config_.num_heads, dq_.data(), num_threads_);
  ApplyRopeGrad(model_.rope(), positions.data(), n, config_.num_kv_heads, dk_.data(), num_threads_);
  if (config_.qk_norm) {
    NormGradPerHead(q_raw_, config_.num_heads, block.q_norm, dq_);
    NormGradPerHead(k_raw_, config_.num_kv_heads, block.k_norm, dk_);
  }
}

template <class Real>
void ProfileBlock<Real>::ProjectionWeightGrad(int64_t layer, const Real* x) {
  const int64_t n = num_tokens_;
  const int64_t outputs = config_.kv_dim();
  const int64_t inputs = config_.hidden_size;
  Real* h = normed_.data();
  RmsNorm(x, n, inputs, model_.block(layer).attention_norm.data(), config_.rms_norm_eps, h,
          num_threads_);
  GrowTo(dk_weight_, outputs * inputs);
  GrowTo(dv_weight_, outputs * inputs);
  // y = h W^T: dL/dW = dy^T h.
  BlasGemm<Real>(true, false, outputs, inputs, n, Real{1}, dk_.data(), outputs, h, inputs, Real{0},
                 dk_weight_.data(), inputs);
  BlasGemm<Real>(true, false, outputs, inputs, n, Real{1}, dv_.data(), outputs, h, inputs, Real{0},
                 dv_weight_.data(), inputs);
}

template <class Real>
void ProfileBlock<Real>::InputGrad(int64_t layer, const Real* x, Real* dx) {
  const BlockWeights& block = model_.block(layer);
  const int64_t n = num_tokens_;
  Real* dh = normed_.data();
  MatMulGradInput(dq_.data(), n, block.q_proj, dh, /*accumulate=*/false, num_threads_);
  MatMulGradInput(dk_.data(), n, block.k_proj, dh, /*accumulate=*/true, num_threads_);
  MatMulGradInput(dv_.data(), n, block.v_proj, dh, /*accumulate=*/true, num_threads_);
  RmsNormGrad(x, dh, n, config_.hidden_size, block.attention_norm.data(), config_.rms_norm_eps, dx,
              num_threads_);
}

// gradient: dL/d(norm's output) becomes dL/d(norm's input), `raw`.
template <class Real>
void ProfileBlock<Real>::NormGradPerHead(const AlignedVector<Real>& raw, int64_t num_heads,
                                         const std::vector<float>& weight,
                                         AlignedVector<Real>& gradient) {
  const int64_t rows = num_tokens_ * num_heads;
  const int64_t count = rows * config_.head_dim;
  std::fill_n(raw_gradient_.begin(), count, Real{0});
  RmsNormGrad(raw.data(), gradient.data(), rows, config_.head_dim, weight.data(),
              config_.rms_norm_eps, raw_gradient_.data(), num_threads_);
  std::copy_n(raw_gradient_.begin(), count, gradient.begin());
}

template <class Real>
BlockStates<Real> ProfileBlock<Real>::States(int64_t layer, bool with_gradients) const {
  return {layer,
          num_tokens_,
          q_.data(),
          k_.data(),
          v_.data(),
          with_gradients ? dk_.data() : nullptr,
          with_gradients ? dv_.data() : nullptr};
}

template class ProfileBlock<float>;
template class ProfileBlock<double>;

}  // namespace pmkvq
