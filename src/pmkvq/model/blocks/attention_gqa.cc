#include "pmkvq/model/blocks/attention_gqa.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "pmkvq/base/turns.h"
#include "pmkvq/kernels/attention/causal_attention.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/model/detail.h"
#include "pmkvq/model/ranks/shard.h"

namespace pmkvq {
using model_detail::AddTo;
using model_detail::DataOrNull;

// Rows of q [H, D], k [Hkv, D] and v [Hkv, D].
template <class Real>
struct AttentionGqa::Heads {
  Real* q = nullptr;
  Real* k = nullptr;
  Real* v = nullptr;
};

void AttentionGqa::Declare(WeightList& list) {
  const int64_t hidden = config_.hidden_size;
  const double offset = config_.norm_offset;
  list.Norm("attn.norm", hidden, weights_.norm, {offset});
  list.Matrix("attn.q", config_.q_dim(), hidden, weights_.q);
  list.Matrix("attn.k", config_.kv_dim(), hidden, weights_.k);
  list.Matrix("attn.v", config_.kv_dim(), hidden, weights_.v);
  list.ColumnMatrix("attn.o", hidden, config_.q_dim(), weights_.o, weights_.o_slices);
  if (config_.qkv_bias) {
    list.Bias("attn.q.bias", config_.q_dim(), weights_.q_bias);
    list.Bias("attn.k.bias", config_.kv_dim(), weights_.k_bias);
    list.Bias("attn.v.bias", config_.kv_dim(), weights_.v_bias);
  }
  if (config_.o_bias) list.Bias("attn.o.bias", hidden, weights_.o_bias);
  if (config_.qk_norm) {
    list.Norm("attn.q_norm", config_.head_dim, weights_.q_norm, {offset, config_.query_factor});
    list.Norm("attn.k_norm", config_.head_dim, weights_.k_norm, {offset});
  }
  if (config_.post_norms) list.Norm("attn.post_norm", hidden, weights_.post_norm, {offset});
}

double AttentionGqa::scale() const {
  return 1.0 / std::sqrt(static_cast<double>(config_.head_dim));
}

template <class Real>
void AttentionGqa::Project(const Real* x, int64_t rows, Real* h, const Heads<Real>& raw,
                           const Heads<Real>& out, int num_threads) const {
  RmsNorm(x, rows, config_.hidden_size, weights_.norm.data(), config_.rms_norm_eps, h, num_threads);
  const Projection<Real> projections[] = {{&weights_.q, DataOrNull(weights_.q_bias), raw.q},
                                          {&weights_.k, DataOrNull(weights_.k_bias), raw.k},
                                          {&weights_.v, DataOrNull(weights_.v_bias), out.v}};
  if constexpr (std::is_same_v<Real, float>) {
    if (shard_ != nullptr) {
      const SliceRange* const ranges[] = {&shard_->heads, &shard_->kv, &shard_->kv};
      SlicedProducts(h, rows, projections, ranges, num_threads);
    } else {
      MatMulShared<Real>(h, rows, projections, num_threads);
    }
  } else {
    MatMulShared<Real>(h, rows, projections, num_threads);
  }
  if (!config_.qk_norm) return;
  RmsNorm(raw.q, rows * config_.num_heads, config_.head_dim, weights_.q_norm.data(),
          config_.rms_norm_eps, out.q, num_threads);
  RmsNorm(raw.k, rows * config_.num_kv_heads, config_.head_dim, weights_.k_norm.data(),
          config_.rms_norm_eps, out.k, num_threads);
}

template <class Real>
void AttentionGqa::Rotate(const int64_t* positions, int64_t rows, const float* query_factors,
                          const float* key_factors, const Heads<Real>& heads,
                          int num_threads) const {
  ApplyRope(rope_, positions, rows, config_.num_heads, query_factors, heads.q, num_threads);
  ApplyRope(rope_, positions, rows, config_.num_kv_heads, key_factors, heads.k, num_threads);
}

template <class Real>
void AttentionGqa::ProjectRows(const Real* attention, int64_t rows, Real* h,
                               int num_threads) const {
  if constexpr (std::is_same_v<Real, float>) {
    if (shard_ != nullptr) {
      return SumOfSlices(attention, rows, shard_->q, weights_.o_slices, DataOrNull(weights_.o_bias),
                         h, *shard_, num_threads);
    }
  }
  MatMul(attention, rows, weights_.o, DataOrNull(weights_.o_bias), h, num_threads);
}

template <class Real>
void AttentionGqa::AddOutput(const Real* attention, int64_t rows, Real* h, Real* x,
                             int num_threads) const {
  ProjectRows(attention, rows, h, num_threads);
  if (!weights_.post_norm.empty()) {
    RmsNorm(h, rows, config_.hidden_size, weights_.post_norm.data(), config_.rms_norm_eps, h,
            num_threads);
  }
  AddTo(x, h, rows * config_.hidden_size);
}

struct AttentionGqa::ForwardBuffers {
  ForwardBuffers(const ModelConfig& config, const ForwardRows& rows)
      : q(rows.scratch->Take(rows.num_rows * config.q_dim())),
        k(rows.scratch->Take(rows.num_rows * config.kv_dim())),
        v(rows.scratch->Take(rows.num_rows * config.kv_dim())),
        attention(rows.scratch->Take(rows.num_rows * config.q_dim())),
        h(rows.scratch->Take(rows.max_slice_rows * config.hidden_size)),
        keys_before_rope(rows.extra_needs.keys_before_rope
                             ? rows.scratch->Take(rows.num_rows * config.kv_dim())
                             : nullptr),
        input(rows.extra_needs.attention_input
                  ? rows.scratch->Take(rows.num_rows * config.hidden_size)
                  : nullptr) {}

  float* q;
  float* k;
  float* v;
  float* attention;
  float* h;  // Of a slice.
  float* keys_before_rope;
  float* input;  // Of attention, behind its norm.
};

void AttentionGqa::CountScratch(const ForwardRows& rows) const {
  const Scratch<float>::Frame frame(*rows.scratch);
  const ForwardBuffers buffers(config_, rows);
}

void AttentionGqa::Forward(const ForwardRows& rows, KvStore& store, float* x) const {
  const Scratch<float>::Frame frame(*rows.scratch);
  const int64_t hidden = config_.hidden_size;
  const int64_t q_dim = config_.q_dim();
  const int64_t kv_dim = config_.kv_dim();
  const auto [q, k, v, attention, h, keys_before_rope, input] = ForwardBuffers(config_, rows);

  const KeyScales* scales = store.key_scales();
  for (const RowSlice& slice : rows.slices) {
    const int64_t first = slice.first_row;
    const Heads<float> heads{q + first * q_dim, k + first * kv_dim, v + first * kv_dim};
    Project(x + first * hidden, slice.num_rows, h, heads, heads, rows.num_threads);
    if (keys_before_rope != nullptr) {
      std::copy_n(heads.k, slice.num_rows * kv_dim, keys_before_rope + first * kv_dim);
    }
    if (input != nullptr) std::copy_n(h, slice.num_rows * hidden, input + first * hidden);
    Rotate(rows.positions + first, slice.num_rows,
           scales != nullptr ? scales->query_factors(layer_) : nullptr,
           scales != nullptr ? scales->key_factors(layer_) : nullptr, heads, rows.num_threads);
  }
  if (rows.extra_needs.of_blocks()) {
    KvExtras extras;
    extras.keys_before_rope = keys_before_rope;
    extras.attention_input = input;
    if (rows.extra_needs.block_input) extras.block_input = x;
    extras.input_width = hidden;
    store.OfferExtras(layer_, extras);
  }
  {
    // Other Forwards of the store may move pages, so a pause comes before or after.
    const UnpausedScope pages_stay;
    store.AppendAndAttend(layer_, q, k, v, attention);
  }
  for (const RowSlice& slice : rows.read_slices) {
    AddOutput(attention + slice.first_row * q_dim, slice.num_rows, h, x + slice.first_row * hidden,
              rows.num_threads);
  }
}

// A whole sequence.
template <class Real>
class AttentionGqa::Pass : public AttentionPass<Real> {
 public:
  Pass(const AttentionGqa& attention, const SequenceRows<Real>& rows)
      : own_(attention),
        config_(attention.config_),
        rows_(rows),
        num_tokens_(rows.num_tokens()),
        num_threads_(rows.num_threads),
        shape_{num_tokens_,      config_.num_heads, config_.num_kv_heads,
               config_.head_dim, attention.scale(), config_.sliding_window(attention.layer_)} {
    h_ = Take(config_.hidden_size);
    heads_ = {Take(config_.q_dim()), Take(config_.kv_dim()), Take(config_.kv_dim())};
    raw_ = heads_;
    attention_ = Take(config_.q_dim());
    if (!config_.qk_norm) return;
    raw_.q = Take(config_.q_dim());
    raw_.k = Take(config_.kv_dim());
  }

  void ComputeStates(const Real* x) override {
    own_.Project(x, num_tokens_, h_, raw_, heads_, num_threads_);
    own_.Rotate(rows_.positions.data(), num_tokens_, nullptr, nullptr, heads_, num_threads_);
  }

  void AddToStates(const Real* delta_k, const Real* delta_v) override {
    const int64_t count = num_tokens_ * config_.kv_dim();
    if (delta_k != nullptr) AddTo(heads_.k, delta_k, count);
    if (delta_v != nullptr) AddTo(heads_.v, delta_v, count);
  }

  void AddAttention(Real* x) override {
    CausalAttention(shape_, heads_.q, heads_.k, heads_.v, attention_, num_threads_);
    own_.AddOutput(attention_, num_tokens_, h_, x, num_threads_);
  }

  void AttentionOf(const Real* k, const Real* v, Real* out) override {
    CausalAttention(shape_, heads_.q, k, v, attention_, num_threads_);
    own_.ProjectRows(attention_, num_tokens_, out, num_threads_);
  }

  void AttentionGrad(const Real* dx) override;
  void ProjectionOutputGrad() override;
  typename AttentionPass<Real>::WeightGradients ProjectionWeightGrad(const Real* x) override;
  void InputGrad(const Real* x, Real* dx) override;

  BlockStates<Real> States() const override {
    return {own_.layer_, num_tokens_, heads_.q, heads_.k, heads_.v, gradients_.k, gradients_.v};
  }

 private:
  Real* Take(int64_t width) { return rows_.scratch->Take(num_tokens_ * width); }
  void NormGradPerHead(const Real* raw, int64_t num_heads, const std::vector<float>& weight,
                       Real* gradient);

  const AttentionGqa& own_;
  const ModelConfig& config_;
  const SequenceRows<Real> rows_;
  const int64_t num_tokens_;
  const int num_threads_;
  const CausalAttentionShape shape_;

  Real* h_ = nullptr;          // [N, E]; also the output of a projection to E
  Heads<Real> heads_;          // [N, H, D], [N, Hkv, D]
  Heads<Real> raw_;            // Before the per-head norm; heads_ without it.
  Real* attention_ = nullptr;  // [N, H, D]; in backward its gradient
  Heads<Real> gradients_;      // Of heads_, later of the projections' outputs.
};

template <class Real>
void AttentionGqa::Pass<Real>::AttentionGrad(const Real* dx) {
  if (gradients_.q == nullptr) {
    gradients_ = {Take(config_.q_dim()), Take(config_.kv_dim()), Take(config_.kv_dim())};
  }
  const typename Scratch<Real>::Frame frame(*rows_.scratch);
  if (!own_.weights_.post_norm.empty()) {
    // dx becomes the gradient of what is normed, which is computed once more.
    own_.ProjectRows(attention_, num_tokens_, h_, num_threads_);
    Real* of_input = Take(config_.hidden_size);
    std::fill_n(of_input, num_tokens_ * config_.hidden_size, Real{0});
    RmsNormGrad(h_, dx, num_tokens_, config_.hidden_size, own_.weights_.post_norm.data(),
                config_.rms_norm_eps, of_input, num_threads_);
    dx = of_input;
  }
  MatMulGradInput(dx, num_tokens_, own_.weights_.o, attention_, /*accumulate=*/false, num_threads_);
  CausalAttentionGrad(shape_, heads_.q, heads_.k, heads_.v, attention_, gradients_.q, gradients_.k,
                      gradients_.v, num_threads_);
}

template <class Real>
void AttentionGqa::Pass<Real>::ProjectionOutputGrad() {
  const int64_t* positions = rows_.positions.data();
  ApplyRopeGrad(own_.rope_, positions, num_tokens_, config_.num_heads, gradients_.q, num_threads_);
  ApplyRopeGrad(own_.rope_, positions, num_tokens_, config_.num_kv_heads, gradients_.k,
                num_threads_);
  if (!config_.qk_norm) return;
  NormGradPerHead(raw_.q, config_.num_heads, own_.weights_.q_norm, gradients_.q);
  NormGradPerHead(raw_.k, config_.num_kv_heads, own_.weights_.k_norm, gradients_.k);
}

template <class Real>
typename AttentionPass<Real>::WeightGradients AttentionGqa::Pass<Real>::ProjectionWeightGrad(
    const Real* x) {
  const int64_t outputs = config_.kv_dim();
  const int64_t inputs = config_.hidden_size;
  RmsNorm(x, num_tokens_, inputs, own_.weights_.norm.data(), config_.rms_norm_eps, h_,
          num_threads_);
  Real* k = rows_.scratch->Take(outputs * inputs);
  Real* v = rows_.scratch->Take(outputs * inputs);
  // y = h W^T: dL/dW = dy^T h.
  BlasGemm<Real>(true, false, outputs, inputs, num_tokens_, Real{1}, gradients_.k, outputs, h_,
                 inputs, Real{0}, k, inputs);
  BlasGemm<Real>(true, false, outputs, inputs, num_tokens_, Real{1}, gradients_.v, outputs, h_,
                 inputs, Real{0}, v, inputs);
  return {k, v};
}

template <class Real>
void AttentionGqa::Pass<Real>::InputGrad(const Real* x, Real* dx) {
  const AttentionGqaWeights& weights = own_.weights_;
  MatMulGradInput(gradients_.q, num_tokens_, weights.q, h_, /*accumulate=*/false, num_threads_);
  MatMulGradInput(gradients_.k, num_tokens_, weights.k, h_, /*accumulate=*/true, num_threads_);
  MatMulGradInput(gradients_.v, num_tokens_, weights.v, h_, /*accumulate=*/true, num_threads_);
  RmsNormGrad(x, h_, num_tokens_, config_.hidden_size, weights.norm.data(), config_.rms_norm_eps,
              dx, num_threads_);
}

// gradient: dL/d(norm's output) becomes dL/d(norm's input), `raw`.
template <class Real>
void AttentionGqa::Pass<Real>::NormGradPerHead(const Real* raw, int64_t num_heads,
                                               const std::vector<float>& weight, Real* gradient) {
  const typename Scratch<Real>::Frame frame(*rows_.scratch);
  const int64_t rows = num_tokens_ * num_heads;
  const int64_t count = rows * config_.head_dim;
  Real* raw_gradient = rows_.scratch->Take(count);
  std::fill_n(raw_gradient, count, Real{0});
  RmsNormGrad(raw, gradient, rows, config_.head_dim, weight.data(), config_.rms_norm_eps,
              raw_gradient, num_threads_);
  std::copy_n(raw_gradient, count, gradient);
}

std::unique_ptr<AttentionPass<float>> AttentionGqa::Start(const SequenceRows<float>& rows) const {
  return std::make_unique<Pass<float>>(*this, rows);
}

std::unique_ptr<AttentionPass<double>> AttentionGqa::Start(const SequenceRows<double>& rows) const {
  return std::make_unique<Pass<double>>(*this, rows);
}

void AttentionGqa::ProjectOutput(const float* attention, int64_t num_rows, float* out,
                                 int num_threads) const {
  MatMul<float>(attention, num_rows, weights_.o, /*bias=*/nullptr, out, num_threads);
}

void AttentionGqa::ProjectOutput(const double* attention, int64_t num_rows, double* out,
                                 int num_threads) const {
  MatMul<double>(attention, num_rows, weights_.o, /*bias=*/nullptr, out, num_threads);
}

}  // namespace pmkvq
