#include "pmkvq/model/profile.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/kernels/gemm/unrounded_products.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/kernels/softmax_xent/softmax_xent.h"
#include "pmkvq/model/detail.h"
#include "pmkvq/model/ranks/model_ranks.h"

namespace pmkvq {
namespace {

// Rows of logits held at once: a vocabulary may have 152k entries.
constexpr int64_t kHeadRows = 64;

template <class Real>
bool AllFinite(const Real* x, int64_t count) {
  bool finite = true;
  for (int64_t i = 0; i < count; ++i) finite &= std::isfinite(x[i]);
  return finite;
}

}  // namespace

std::vector<int64_t> StretchedPositions(int64_t num_tokens, int64_t effective_len) {
  PMKVQ_CHECK(num_tokens > 0 && effective_len > 0 && effective_len % num_tokens == 0);
  const int64_t step = effective_len / num_tokens;
  std::vector<int64_t> positions(static_cast<size_t>(num_tokens));
  for (int64_t t = 0; t < num_tokens; ++t) positions[static_cast<size_t>(t)] = t * step;
  return positions;
}

template <class Real>
struct Profile<Real>::Impl {
  Impl(const Model& profiled, int threads)
      : model(profiled), config(profiled.config()), num_threads(threads) {}

  const Model& model;
  const ModelConfig& config;
  const int num_threads;
  Scratch<Real> scratch;
  AlignedVector<Real> x;         // [N, E], the residual stream
  AlignedVector<Real> dx;        // [N, E], its gradient
  AlignedVector<Real> inputs;    // [L, N, E], ForwardBackward only
  AlignedVector<Real> normed;    // [kHeadRows, E], the head's input; in backward its gradient
  AlignedVector<Real> logits;    // [kHeadRows, V]
  std::vector<double> row_loss;  // [kHeadRows]
  AttentionPass<Real>* visited = nullptr;  // Of the block whose visitor runs.

  SequenceRows<Real> Start(std::span<const int32_t> tokens, std::span<const int64_t> positions);
  void Embed(std::span<const int32_t> tokens, Real* out) const;
  void RunBlock(int64_t layer, const SequenceRows<Real>& rows, Real* in_out,
                const Visitor& visitor);
  void CheckFinite(const Real* values, int64_t num_tokens, const std::string& what) const;
  double Loss(std::span<const int32_t> tokens, bool with_gradient);
  double Backward(std::span<const int32_t> tokens, std::span<const int64_t> positions,
                  const Visitor& visitor, const ProjectionVisitor& projection_visitor);
  double HeadRows(const int32_t* targets, int64_t first_row, int64_t rows, const double* weight);
};

template <class Real>
void Profile<Real>::Impl::Embed(std::span<const int32_t> tokens, Real* out) const {
  const auto n = static_cast<int64_t>(tokens.size());
  for (int64_t t = 0; t < n; ++t) {
    const int32_t token = tokens[static_cast<size_t>(t)];
    PMKVQ_CHECK_MSG(token >= 0 && token < config.vocab_size, "token id out of range");
    model_detail::EmbedToken(model, token, out + t * config.hidden_size);
  }
  CheckFinite(out, n, "embedding");
}

// Embeds the tokens.
template <class Real>
SequenceRows<Real> Profile<Real>::Impl::Start(std::span<const int32_t> tokens,
                                              std::span<const int64_t> positions) {
  PMKVQ_CHECK(tokens.size() >= 2 && tokens.size() == positions.size());
  x.resize(tokens.size() * static_cast<size_t>(config.hidden_size));
  Embed(tokens, x.data());
  return {positions, &scratch, num_threads};
}

template <class Real>
void Profile<Real>::Impl::RunBlock(int64_t layer, const SequenceRows<Real>& rows, Real* in_out,
                                   const Visitor& visitor) {
  const typename Scratch<Real>::Frame frame(scratch);
  const auto attention = model.attention(layer).Start(rows);
  attention->ComputeStates(in_out);
  if (visitor) {
    visited = attention.get();
    visitor(attention->States());
    visited = nullptr;
  }
  attention->AddAttention(in_out);
  model.mlp(layer).Forward(rows, in_out);
  CheckFinite(in_out, rows.num_tokens(), fmt::format("block {}", layer));
}

template <class Real>
void Profile<Real>::Impl::CheckFinite(const Real* values, int64_t num_tokens,
                                      const std::string& what) const {
  const int64_t count = num_tokens * config.hidden_size;
  if (AllFinite(values, count)) return;
  const Real* end = values + count;
  const Real* bad = std::find_if(values, end, [](Real value) { return !std::isfinite(value); });
  throw InvalidInput(
      model.checkpoint().folder(),
      fmt::format("{}: found {} at token {}, expected finite values (NaN or infinity among "
                  "the weights)",
                  what, static_cast<double>(*bad), (bad - values) / config.hidden_size));
}

// Mean cross entropy of the N - 1 predictions; with gradient, dx [N, E] becomes dL/dx.
template <class Real>
double Profile<Real>::Impl::Loss(std::span<const int32_t> tokens, bool with_gradient) {
  const int64_t num_predictions = static_cast<int64_t>(tokens.size()) - 1;
  const int64_t max_rows = std::min(kHeadRows, num_predictions);
  normed.resize(static_cast<size_t>(max_rows * config.hidden_size));
  logits.resize(static_cast<size_t>(max_rows * config.vocab_size));
  row_loss.resize(static_cast<size_t>(max_rows));
  if (with_gradient) dx.assign(x.size(), Real{0});
  const double weight = 1.0 / static_cast<double>(num_predictions);
  double sum = 0.0;
  for (int64_t begin = 0; begin < num_predictions; begin += kHeadRows) {
    const int64_t rows = std::min(kHeadRows, num_predictions - begin);
    sum += HeadRows(tokens.data() + begin + 1, begin, rows, with_gradient ? &weight : nullptr);
  }
  const double loss = sum * weight;
  if (!std::isfinite(loss)) {
    throw InvalidInput(model.checkpoint().folder(),
                       fmt::format("output head: found loss {}, expected a finite value (NaN or "
                                   "infinity among the weights)",
                                   loss));
  }
  return loss;
}

// Sum of the cross entropies of some rows; where `weight` is given, also the rows' gradient of
// weight times that sum.
template <class Real>
double Profile<Real>::Impl::HeadRows(const int32_t* targets, int64_t first_row, int64_t rows,
                                     const double* weight) {
  const Real* input = x.data() + first_row * config.hidden_size;
  RmsNorm(input, rows, config.hidden_size, model.final_norm().data(), config.rms_norm_eps,
          normed.data(), num_threads);
  MatMul(normed.data(), rows, model.output_head(), nullptr, logits.data(), num_threads);
  ParallelFor(num_threads, rows, [&](int64_t r, int /*worker*/) {
    Real* row = logits.data() + r * config.vocab_size;
    row_loss[static_cast<size_t>(r)] =
        weight == nullptr ? CrossEntropy(row, config.vocab_size, targets[r])
                          : CrossEntropyGrad(row, config.vocab_size, targets[r], *weight);
  });
  double sum = 0.0;
  for (int64_t r = 0; r < rows; ++r) sum += row_loss[static_cast<size_t>(r)];
  if (weight != nullptr) {
    MatMulGradInput(logits.data(), rows, model.output_head(), normed.data(), /*accumulate=*/false,
                    num_threads);
    RmsNormGrad(input, normed.data(), rows, config.hidden_size, model.final_norm().data(),
                config.rms_norm_eps, dx.data() + first_row * config.hidden_size, num_threads);
  }
  return sum;
}

template <class Real>
Profile<Real>::Profile(const Model& model, int num_threads)
    : impl_(std::make_unique<Impl>(model, num_threads)) {
  RefuseShards(model, "profile");
}

template <class Real>
Profile<Real>::~Profile() = default;

template <class Real>
double Profile<Real>::Forward(std::span<const int32_t> tokens, std::span<const int64_t> positions,
                              const Visitor& visitor) {
  const UnroundedProducts unrounded;
  Impl& impl = *impl_;
  const SequenceRows<Real> rows = impl.Start(tokens, positions);
  for (int64_t layer = 0; layer < impl.config.num_layers; ++layer) {
    impl.RunBlock(layer, rows, impl.x.data(), visitor);
  }
  return impl.Loss(tokens, /*with_gradient=*/false);
}

template <class Real>
void Profile<Real>::Embed(std::span<const int32_t> tokens, Real* x) {
  impl_->Embed(tokens, x);
}

template <class Real>
void Profile<Real>::RunBlock(int64_t layer, std::span<const int64_t> positions, Real* x) {
  const UnroundedProducts unrounded;
  impl_->RunBlock(layer, {positions, &impl_->scratch, impl_->num_threads}, x, nullptr);
}

// Forward, then backward for one visitor or the other.
template <class Real>
double Profile<Real>::Impl::Backward(std::span<const int32_t> tokens,
                                     std::span<const int64_t> positions, const Visitor& visitor,
                                     const ProjectionVisitor& projection_visitor) {
  const UnroundedProducts unrounded;
  const SequenceRows<Real> rows = Start(tokens, positions);
  const auto size = static_cast<int64_t>(x.size());
  inputs.resize(static_cast<size_t>(size * config.num_layers));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    std::copy_n(x.data(), size, inputs.data() + layer * size);
    RunBlock(layer, rows, x.data(), nullptr);
  }
  const double loss = Loss(tokens, /*with_gradient=*/true);
  for (int64_t layer = config.num_layers - 1; layer >= 0; --layer) {
    const typename Scratch<Real>::Frame frame(scratch);
    const Real* input = inputs.data() + layer * size;
    std::copy_n(input, size, x.data());
    const auto attention = model.attention(layer).Start(rows);
    attention->ComputeStates(input);
    attention->AddAttention(x.data());
    model.mlp(layer).Grad(rows, x.data(), dx.data());
    attention->AttentionGrad(dx.data());
    CheckFinite(dx.data(), rows.num_tokens(), fmt::format("gradient of block {}", layer));
    if (visitor) visitor(attention->States());
    if (layer == 0 && !projection_visitor) break;
    attention->ProjectionOutputGrad();
    if (projection_visitor) {
      const auto gradients = attention->ProjectionWeightGrad(input);
      projection_visitor({layer, gradients.k, gradients.v});
    }
    if (layer > 0) attention->InputGrad(input, dx.data());
  }
  return loss;
}

template <class Real>
double Profile<Real>::ForwardBackward(std::span<const int32_t> tokens,
                                      std::span<const int64_t> positions, const Visitor& visitor) {
  return impl_->Backward(tokens, positions, visitor, nullptr);
}

template <class Real>
double Profile<Real>::ProjectionBackward(std::span<const int32_t> tokens,
                                         std::span<const int64_t> positions,
                                         const ProjectionVisitor& visitor) {
  return impl_->Backward(tokens, positions, nullptr, visitor);
}

template <class Real>
double Profile<Real>::PerturbedLoss(std::span<const int32_t> tokens,
                                    std::span<const int64_t> positions, int64_t layer,
                                    const Real* delta_k, const Real* delta_v) {
  const UnroundedProducts unrounded;
  Impl& impl = *impl_;
  const SequenceRows<Real> rows = impl.Start(tokens, positions);
  for (int64_t i = 0; i < impl.config.num_layers; ++i) {
    const typename Scratch<Real>::Frame frame(impl.scratch);
    const auto attention = impl.model.attention(i).Start(rows);
    attention->ComputeStates(impl.x.data());
    if (i == layer) attention->AddToStates(delta_k, delta_v);
    attention->AddAttention(impl.x.data());
    impl.model.mlp(i).Forward(rows, impl.x.data());
  }
  return impl.Loss(tokens, /*with_gradient=*/false);
}

template <class Real>
void Profile<Real>::AttentionOf(const Real* k, const Real* v, Real* out) {
  PMKVQ_CHECK_MSG(impl_->visited != nullptr, "no block is visited");
  impl_->visited->AttentionOf(k, v, out);
}

template <class Real>
void Profile<Real>::ProjectAttention(int64_t layer, int64_t num_tokens, const Real* attention,
                                     Real* out) {
  impl_->model.attention(layer).ProjectOutput(attention, num_tokens, out, impl_->num_threads);
}

template class Profile<float>;
template class Profile<double>;

}  // namespace pmkvq
