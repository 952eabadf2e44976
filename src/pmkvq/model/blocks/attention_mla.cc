#include "pmkvq/model/blocks/attention_mla.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/turns.h"
#include "pmkvq/kernels/attention/causal_attention.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/model/detail.h"

namespace pmkvq {
using model_detail::AddTo;

namespace {

// Copies `width` values of each of `rows` rows.
template <class Real>
void CopyRows(const Real* from, int64_t from_stride, int64_t rows, int64_t width, Real* to,
              int64_t to_stride) {
  for (int64_t t = 0; t < rows; ++t) {
    std::copy_n(from + t * from_stride, width, to + t * to_stride);
  }
}

template <class Real>
void ClearRows(int64_t rows, int64_t width, Real* x, int64_t stride) {
  for (int64_t t = 0; t < rows; ++t) std::fill_n(x + t * stride, width, Real{0});
}

}  // namespace

// What a block's input is projected to. Raw values are those in front of a norm; they may have the
// place of the others.
template <class Real>
struct AttentionMla::Projected {
  Real* h = nullptr;                  // [rows, E]
  Real* raw_query_latents = nullptr;  // [rows, rank], with a rank of queries
  Real* query_latents = nullptr;      // [rows, rank]
  Real* q = nullptr;                  // [rows, H, dn+dr]
  Real* kv = nullptr;                 // [rows, r+dr]
  Real* raw_latents = nullptr;        // [rows, r]
  Real* latents = nullptr;            // [rows, r]
  Real* rope_keys = nullptr;          // [rows, dr]
};

AttentionMla::AttentionMla(const ModelConfig& config, const RopeTable& rope, int64_t layer)
    : config_(config), mla_(config.mla.value()), rope_(rope), layer_(layer) {}

void AttentionMla::Declare(WeightList& list) {
  const int64_t hidden = config_.hidden_size;
  list.Norm("attn.norm", hidden, weights_.norm, {config_.norm_offset});
  if (mla_.query_rank == 0) {
    list.Matrix("attn.q", config_.q_dim(), hidden, weights_.q);
  } else {
    list.Matrix("attn.q_a", mla_.query_rank, hidden, weights_.q_a);
    list.Norm("attn.q_a_norm", mla_.query_rank, weights_.q_a_norm, {config_.norm_offset});
    list.Matrix("attn.q_b", config_.q_dim(), mla_.query_rank, weights_.q_b);
  }
  list.Matrix("attn.kv_a", stored_dim(), hidden, weights_.kv_a);
  list.Norm("attn.kv_a_norm", mla_.latent, weights_.kv_a_norm, {config_.norm_offset});
  if (mla_.split_up) {
    list.Matrix("attn.k_b", heads() * mla_.latent, mla_.nope_dim, weights_.k_b);
    list.Matrix("attn.v_b", heads() * mla_.value_dim, mla_.latent, weights_.v_b);
  } else {
    list.Matrix("attn.kv_b", heads() * (mla_.nope_dim + mla_.value_dim), mla_.latent,
                weights_.kv_b);
  }
  list.Matrix("attn.o", hidden, heads() * mla_.value_dim, weights_.o);
}

double AttentionMla::scale() const {
  return mla_.score_factor / std::sqrt(static_cast<double>(query_dim()));
}

HeadMatrices AttentionMla::KeyMatrices() const {
  if (mla_.split_up) return {&weights_.k_b, heads(), 0, mla_.latent, mla_.latent};
  return {&weights_.kv_b, heads(), 0, mla_.nope_dim, mla_.nope_dim + mla_.value_dim};
}

HeadMatrices AttentionMla::ValueMatrices() const {
  if (mla_.split_up) return {&weights_.v_b, heads(), 0, mla_.value_dim, mla_.value_dim};
  return {&weights_.kv_b, heads(), mla_.nope_dim, mla_.value_dim, mla_.nope_dim + mla_.value_dim};
}

template <class Real>
void AttentionMla::KeysOfLatents(const HeadRows<const Real>& x, int64_t rows,
                                 const HeadRows<Real>& y, int num_threads) const {
  const auto multiply = mla_.split_up ? &MultiplyHeadsTransposed<Real> : &MultiplyHeads<Real>;
  multiply(KeyMatrices(), x, rows, y, num_threads);
}

template <class Real>
void AttentionMla::LatentsOfKeys(const HeadRows<const Real>& x, int64_t rows,
                                 const HeadRows<Real>& y, int num_threads) const {
  const auto multiply = mla_.split_up ? &MultiplyHeads<Real> : &MultiplyHeadsTransposed<Real>;
  multiply(KeyMatrices(), x, rows, y, num_threads);
}

template <class Real>
void AttentionMla::Project(const Real* x, const int64_t* positions, int64_t rows,
                           const Projected<Real>& out, int num_threads) const {
  RmsNorm(x, rows, config_.hidden_size, weights_.norm.data(), config_.rms_norm_eps, out.h,
          num_threads);
  const bool has_rank = mla_.query_rank > 0;
  const Projection<Real> projections[] = {
      {has_rank ? &weights_.q_a : &weights_.q, nullptr, has_rank ? out.raw_query_latents : out.q},
      {&weights_.kv_a, nullptr, out.kv}};
  MatMulShared<Real>(out.h, rows, projections, num_threads);
  if (has_rank) {
    RmsNorm(out.raw_query_latents, rows, mla_.query_rank, weights_.q_a_norm.data(), mla_.norm_eps,
            out.query_latents, num_threads);
    MatMul<Real>(out.query_latents, rows, weights_.q_b, nullptr, out.q, num_threads);
  }
  const int64_t dr = mla_.rope_dim;
  RotateHeads(rope_, positions, rows,
              {heads(), heads() * query_dim(), query_dim(), mla_.rope_in_pairs},
              out.q + mla_.nope_dim, num_threads);
  CopyRows(out.kv, stored_dim(), rows, mla_.latent, out.raw_latents, mla_.latent);
  CopyRows(out.kv + mla_.latent, stored_dim(), rows, dr, out.rope_keys, dr);
  RmsNorm(out.raw_latents, rows, mla_.latent, weights_.kv_a_norm.data(), mla_.norm_eps, out.latents,
          num_threads);
  RotateHeads(rope_, positions, rows, {1, dr, dr, mla_.rope_in_pairs}, out.rope_keys, num_threads);
}

template <class Real>
void AttentionMla::ProjectRows(const Real* attention, int64_t rows, Real* out,
                               int num_threads) const {
  MatMul<Real>(attention, rows, weights_.o, /*bias=*/nullptr, out, num_threads);
}

struct AttentionMla::ForwardBuffers {
  ForwardBuffers(const AttentionMla& own, const ForwardRows& rows) {
    const MlaConfig& mla = own.mla_;
    const auto of_slice = [&](int64_t width) {
      return rows.scratch->Take(rows.max_slice_rows * width);
    };
    const auto of_all = [&](int64_t width) { return rows.scratch->Take(rows.num_rows * width); };
    slice.h = of_slice(own.config_.hidden_size);
    if (mla.query_rank > 0) slice.raw_query_latents = of_slice(mla.query_rank);
    slice.query_latents = slice.raw_query_latents;
    slice.q = of_slice(own.config_.q_dim());
    slice.kv = of_slice(own.stored_dim());
    latents = of_all(mla.latent);
    rope_keys = of_all(mla.rope_dim);
    queries = of_all(own.heads() * own.stored_dim());
    sums = of_all(own.heads() * mla.latent);
    attention = of_slice(own.heads() * mla.value_dim);
    if (rows.extra_needs.attention_input) input = of_all(own.config_.hidden_size);
  }

  Projected<float> slice;  // Of a slice; latents and rope keys lie in those of all rows.
  float* latents;          // [rows, r]
  float* rope_keys;        // [rows, dr]
  float* queries;          // [rows, H, r+dr], absorbed and scaled
  float* sums;             // [rows, H, r], of weighted latents
  float* attention;        // [slice rows, H, dv]
  float* input = nullptr;  // [rows, E], behind the norm; where a store needs that.
};

void AttentionMla::CountScratch(const ForwardRows& rows) const {
  const Scratch<float>::Frame frame(*rows.scratch);
  const ForwardBuffers buffers(*this, rows);
}

void AttentionMla::Forward(const ForwardRows& rows, KvStore& store, float* x) const {
  const Scratch<float>::Frame frame(*rows.scratch);
  const ForwardBuffers buffers(*this, rows);
  const int64_t hidden = config_.hidden_size;
  const int64_t r = mla_.latent;
  const int64_t dr = mla_.rope_dim;
  const int64_t stored = stored_dim();
  const auto factor = static_cast<float>(scale());
  for (const RowSlice& slice : rows.slices) {
    const int64_t first = slice.first_row;
    Projected<float> projected = buffers.slice;
    projected.latents = buffers.latents + first * r;
    projected.raw_latents = projected.latents;
    projected.rope_keys = buffers.rope_keys + first * dr;
    Project(x + first * hidden, rows.positions + first, slice.num_rows, projected,
            rows.num_threads);
    if (buffers.input != nullptr) {
      std::copy_n(projected.h, slice.num_rows * hidden, buffers.input + first * hidden);
    }
    float* const queries = buffers.queries + first * heads() * stored;
    LatentsOfKeys<float>({projected.q, heads() * query_dim(), query_dim()}, slice.num_rows,
                         {queries, heads() * stored, stored}, rows.num_threads);
    CopyRows(projected.q + mla_.nope_dim, query_dim(), slice.num_rows * heads(), dr, queries + r,
             stored);
    const int64_t count = slice.num_rows * heads() * stored;
    for (int64_t i = 0; i < count; ++i) queries[i] *= factor;
  }
  if (rows.extra_needs.block_input || buffers.input != nullptr) {
    KvExtras extras;
    if (rows.extra_needs.block_input) extras.block_input = x;
    extras.attention_input = buffers.input;
    extras.input_width = hidden;
    store.OfferExtras(layer_, extras);
  }
  {
    // Other Forwards of the store may move pages, so a pause comes before or after.
    const UnpausedScope pages_stay;
    store.AppendAndAttend(layer_, buffers.queries, buffers.latents, buffers.rope_keys,
                          buffers.sums);
  }
  for (const RowSlice& slice : rows.read_slices) {
    const float* const sums = buffers.sums + slice.first_row * heads() * r;
    MultiplyHeads<float>(ValueMatrices(), {sums, heads() * r, r}, slice.num_rows,
                         {buffers.attention, heads() * mla_.value_dim, mla_.value_dim},
                         rows.num_threads);
    ProjectRows<float>(buffers.attention, slice.num_rows, buffers.slice.h, rows.num_threads);
    AddTo(x + slice.first_row * hidden, buffers.slice.h, slice.num_rows * hidden);
  }
}

// A whole sequence, in the plain form. Queries, keys and values of heads have one width D, the
// larger one of theirs, with zeros behind the shorter ones: so they go through the attention of
// other models.
template <class Real>
class AttentionMla::Pass : public AttentionPass<Real> {
 public:
  Pass(const AttentionMla& attention, const SequenceRows<Real>& rows)
      : own_(attention),
        mla_(attention.mla_),
        rows_(rows),
        num_tokens_(rows.num_tokens()),
        num_threads_(rows.num_threads),
        width_(std::max(own_.query_dim(), mla_.value_dim)),
        shape_{num_tokens_, own_.heads(), own_.heads(), width_, attention.scale(), 0} {
    states_.h = Take(own_.config_.hidden_size);
    if (mla_.query_rank > 0) {
      states_.raw_query_latents = Take(mla_.query_rank);
      states_.query_latents = Take(mla_.query_rank);
    }
    states_.q = Take(own_.config_.q_dim());
    states_.kv = Take(own_.stored_dim());
    states_.raw_latents = Take(mla_.latent);
    states_.latents = Take(mla_.latent);
    states_.rope_keys = Take(mla_.rope_dim);
    queries_ = width_ == own_.query_dim() ? states_.q : Take(own_.heads() * width_);
    keys_ = Take(own_.heads() * width_);
    values_ = Take(own_.heads() * width_);
    attention_ = Take(own_.heads() * width_);
    outputs_ = Take(own_.heads() * mla_.value_dim);
  }

  void ComputeStates(const Real* x) override {
    own_.Project(x, rows_.positions.data(), num_tokens_, states_, num_threads_);
  }

  void AddToStates(const Real* delta_latents, const Real* delta_rope_keys) override {
    if (delta_latents != nullptr) AddTo(states_.latents, delta_latents, num_tokens_ * mla_.latent);
    if (delta_rope_keys == nullptr) return;
    AddTo(states_.rope_keys, delta_rope_keys, num_tokens_ * mla_.rope_dim);
  }

  void AddAttention(Real* x) override {
    AttentionOf(states_.latents, states_.rope_keys, states_.h);
    AddTo(x, states_.h, num_tokens_ * own_.config_.hidden_size);
  }

  void AttentionOf(const Real* latents, const Real* rope_keys, Real* out) override {
    FillHeads(latents, rope_keys);
    CausalAttention(shape_, queries_, keys_, values_, attention_, num_threads_);
    CopyRows(attention_, width_, num_rows_of_heads(), mla_.value_dim, outputs_, mla_.value_dim);
    own_.ProjectRows<Real>(outputs_, num_tokens_, out, num_threads_);
  }

  void AttentionGrad(const Real* dx) override;
  void ProjectionOutputGrad() override;
  typename AttentionPass<Real>::WeightGradients ProjectionWeightGrad(const Real* x) override;
  void InputGrad(const Real* x, Real* dx) override;

  BlockStates<Real> States() const override {
    return {own_.layer_,       num_tokens_, nullptr,      states_.latents,
            states_.rope_keys, of_latents_, of_rope_keys_};
  }

 private:
  Real* Take(int64_t width) { return rows_.scratch->Take(num_tokens_ * width); }
  int64_t num_rows_of_heads() const { return num_tokens_ * own_.heads(); }
  HeadRows<Real> HeadsIn(Real* x) const { return {x, own_.heads() * width_, width_}; }

  // Queries of all heads from the states, keys and values from these.
  void FillHeads(const Real* latents, const Real* rope_keys);
  // The gradient of latents from those of keys and values [N, H, D].
  void LatentGrad(const Real* of_keys, const Real* of_values);

  const AttentionMla& own_;
  const MlaConfig& mla_;
  const SequenceRows<Real> rows_;
  const int64_t num_tokens_;
  const int num_threads_;
  const int64_t width_;  // D
  const CausalAttentionShape shape_;

  Projected<Real> states_;
  Real* queries_ = nullptr;    // [N, H, D]
  Real* keys_ = nullptr;       // [N, H, D]
  Real* values_ = nullptr;     // [N, H, D]
  Real* attention_ = nullptr;  // [N, H, D]; in backward its gradient
  Real* outputs_ = nullptr;    // [N, H, dv]; in backward its gradient

  Real* of_queries_ = nullptr;    // [N, H, dn+dr], gradient of q
  Real* of_latents_ = nullptr;    // [N, r]
  Real* of_rope_keys_ = nullptr;  // [N, dr]
  Real* of_kv_ = nullptr;         // [N, r+dr], of the projection's output
};

template <class Real>
void AttentionMla::Pass<Real>::FillHeads(const Real* latents, const Real* rope_keys) {
  const int64_t dn = mla_.nope_dim;
  const int64_t dr = mla_.rope_dim;
  const int64_t query_dim = own_.query_dim();
  if (queries_ != states_.q) {
    CopyRows(states_.q, query_dim, num_rows_of_heads(), query_dim, queries_, width_);
    ClearRows(num_rows_of_heads(), width_ - query_dim, queries_ + query_dim, width_);
  }
  const HeadRows<const Real> rows{latents, mla_.latent, 0};
  own_.KeysOfLatents<Real>(rows, num_tokens_, HeadsIn(keys_), num_threads_);
  MultiplyHeads<Real>(own_.ValueMatrices(), rows, num_tokens_, HeadsIn(values_), num_threads_);
  for (int64_t t = 0; t < num_tokens_; ++t) {
    Real* key = keys_ + t * own_.heads() * width_;
    for (int64_t head = 0; head < own_.heads(); ++head, key += width_) {
      std::copy_n(rope_keys + t * dr, dr, key + dn);
    }
  }
  ClearRows(num_rows_of_heads(), width_ - query_dim, keys_ + query_dim, width_);
  ClearRows(num_rows_of_heads(), width_ - mla_.value_dim, values_ + mla_.value_dim, width_);
}

template <class Real>
void AttentionMla::Pass<Real>::AttentionGrad(const Real* dx) {
  const int64_t query_dim = own_.query_dim();
  if (of_latents_ == nullptr) {
    of_queries_ = Take(own_.config_.q_dim());
    of_latents_ = Take(mla_.latent);
    of_rope_keys_ = Take(mla_.rope_dim);
  }
  MatMulGradInput(dx, num_tokens_, own_.weights_.o, outputs_, /*accumulate=*/false, num_threads_);
  CopyRows(outputs_, mla_.value_dim, num_rows_of_heads(), mla_.value_dim, attention_, width_);
  ClearRows(num_rows_of_heads(), width_ - mla_.value_dim, attention_ + mla_.value_dim, width_);
  const typename Scratch<Real>::Frame frame(*rows_.scratch);
  Real* const dq = Take(own_.heads() * width_);
  Real* const dk = Take(own_.heads() * width_);
  Real* const dv = Take(own_.heads() * width_);
  CausalAttentionGrad(shape_, queries_, keys_, values_, attention_, dq, dk, dv, num_threads_);
  CopyRows(dq, width_, num_rows_of_heads(), query_dim, of_queries_, query_dim);
  LatentGrad(dk, dv);
  const int64_t dr = mla_.rope_dim;
  std::fill_n(of_rope_keys_, num_tokens_ * dr, Real{0});
  for (int64_t t = 0; t < num_tokens_; ++t) {
    const Real* key = dk + t * own_.heads() * width_ + mla_.nope_dim;
    for (int64_t head = 0; head < own_.heads(); ++head, key += width_) {
      AddTo(of_rope_keys_ + t * dr, key, dr);
    }
  }
}

template <class Real>
void AttentionMla::Pass<Real>::LatentGrad(const Real* of_keys, const Real* of_values) {
  const int64_t dn = mla_.nope_dim;
  const int64_t dv = mla_.value_dim;
  const int64_t rows = num_rows_of_heads();
  const typename Scratch<Real>::Frame frame(*rows_.scratch);
  const AttentionMlaWeights& weights = own_.weights_;
  if (!mla_.split_up) {
    Real* const both = Take(own_.heads() * (dn + dv));
    CopyRows(of_keys, width_, rows, dn, both, dn + dv);
    CopyRows(of_values, width_, rows, dv, both + dn, dn + dv);
    MatMulGradInput(both, num_tokens_, weights.kv_b, of_latents_, /*accumulate=*/false,
                    num_threads_);
    return;
  }
  Real* const values = Take(own_.heads() * dv);
  CopyRows(of_values, width_, rows, dv, values, dv);
  MatMulGradInput(values, num_tokens_, weights.v_b, of_latents_, /*accumulate=*/false,
                  num_threads_);
  Real* const keys = Take(dn);
  Real* const of_head = Take(mla_.latent);
  for (int64_t head = 0; head < own_.heads(); ++head) {
    CopyRows(of_keys + head * width_, own_.heads() * width_, num_tokens_, dn, keys, dn);
    MatMul<Real>(keys, num_tokens_, own_.KeyMatrices().Of(head), nullptr, of_head, num_threads_);
    AddTo(of_latents_, of_head, num_tokens_ * mla_.latent);
  }
}

template <class Real>
void AttentionMla::Pass<Real>::ProjectionOutputGrad() {
  const int64_t* const positions = rows_.positions.data();
  const int64_t r = mla_.latent;
  const int64_t dr = mla_.rope_dim;
  RotateHeadsGrad(own_.rope_, positions, num_tokens_,
                  {own_.heads(), own_.config_.q_dim(), own_.query_dim(), mla_.rope_in_pairs},
                  of_queries_ + mla_.nope_dim, num_threads_);
  RotateHeadsGrad(own_.rope_, positions, num_tokens_, {1, dr, dr, mla_.rope_in_pairs},
                  of_rope_keys_, num_threads_);
  if (of_kv_ == nullptr) of_kv_ = Take(own_.stored_dim());
  const typename Scratch<Real>::Frame frame(*rows_.scratch);
  Real* const of_raw = Take(r);
  std::fill_n(of_raw, num_tokens_ * r, Real{0});
  RmsNormGrad(states_.raw_latents, of_latents_, num_tokens_, r, own_.weights_.kv_a_norm.data(),
              mla_.norm_eps, of_raw, num_threads_);
  CopyRows(of_raw, r, num_tokens_, r, of_kv_, own_.stored_dim());
  CopyRows(of_rope_keys_, dr, num_tokens_, dr, of_kv_ + r, own_.stored_dim());
}

// The rows of Wa that make latents, and those that make rope keys.
template <class Real>
typename AttentionPass<Real>::WeightGradients AttentionMla::Pass<Real>::ProjectionWeightGrad(
    const Real* x) {
  const int64_t outputs = own_.stored_dim();
  const int64_t inputs = own_.config_.hidden_size;
  RmsNorm(x, num_tokens_, inputs, own_.weights_.norm.data(), own_.config_.rms_norm_eps, states_.h,
          num_threads_);
  Real* const gradient = rows_.scratch->Take(outputs * inputs);
  // y = h W^T: dL/dW = dy^T h.
  BlasGemm<Real>(true, false, outputs, inputs, num_tokens_, Real{1}, of_kv_, outputs, states_.h,
                 inputs, Real{0}, gradient, inputs);
  return {gradient, gradient + mla_.latent * inputs};
}

template <class Real>
void AttentionMla::Pass<Real>::InputGrad(const Real* x, Real* dx) {
  const AttentionMlaWeights& weights = own_.weights_;
  Real* const dh = states_.h;
  MatMulGradInput(of_kv_, num_tokens_, weights.kv_a, dh, /*accumulate=*/false, num_threads_);
  if (mla_.query_rank == 0) {
    MatMulGradInput(of_queries_, num_tokens_, weights.q, dh, /*accumulate=*/true, num_threads_);
  } else {
    const typename Scratch<Real>::Frame frame(*rows_.scratch);
    const int64_t rank = mla_.query_rank;
    Real* const of_normed = Take(rank);
    Real* const of_raw = Take(rank);
    MatMulGradInput(of_queries_, num_tokens_, weights.q_b, of_normed, /*accumulate=*/false,
                    num_threads_);
    std::fill_n(of_raw, num_tokens_ * rank, Real{0});
    RmsNormGrad(states_.raw_query_latents, of_normed, num_tokens_, rank, weights.q_a_norm.data(),
                mla_.norm_eps, of_raw, num_threads_);
    MatMulGradInput(of_raw, num_tokens_, weights.q_a, dh, /*accumulate=*/true, num_threads_);
  }
  RmsNormGrad(x, dh, num_tokens_, own_.config_.hidden_size, weights.norm.data(),
              own_.config_.rms_norm_eps, dx, num_threads_);
}

std::unique_ptr<AttentionPass<float>> AttentionMla::Start(const SequenceRows<float>& rows) const {
  return std::make_unique<Pass<float>>(*this, rows);
}

std::unique_ptr<AttentionPass<double>> AttentionMla::Start(const SequenceRows<double>& rows) const {
  return std::make_unique<Pass<double>>(*this, rows);
}

void AttentionMla::ProjectOutput(const float* attention, int64_t num_rows, float* out,
                                 int num_threads) const {
  ProjectRows<float>(attention, num_rows, out, num_threads);
}

void AttentionMla::ProjectOutput(const double* attention, int64_t num_rows, double* out,
                                 int num_threads) const {
  ProjectRows<double>(attention, num_rows, out, num_threads);
}

}  // namespace pmkvq
