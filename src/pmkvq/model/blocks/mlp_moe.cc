#include "pmkvq/model/blocks/mlp_moe.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <type_traits>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/act/act.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/model/detail.h"
#include "pmkvq/model/ranks/shard.h"

namespace pmkvq {
using model_detail::AddTo;
using model_detail::DataOrNull;

namespace {

// Rows of a whole sequence that are computed at once, forward and backward.
constexpr int64_t kSequenceRows = 256;

int64_t WidestExpert(const MoeConfig& moe) { return std::max(moe.expert_size, moe.shared_size); }

// y [size] += weight * x
template <class Real>
void AddScaled(Real weight, const Real* x, int64_t size, Real* y) {
  for (int64_t i = 0; i < size; ++i) y[i] += weight * x[i];
}

}  // namespace

template <class Real>
struct MlpMoe::Buffers {
  Buffers(const ModelConfig& config, int64_t rows, Scratch<Real>& scratch, bool of_ranks = false)
      : h(scratch.Take(rows * config.hidden_size)),
        scores(scratch.Take(rows * config.moe->num_experts)),
        weights(scratch.Take(rows * config.moe->num_chosen)),
        gathered(scratch.Take(rows * config.hidden_size)),
        gate(scratch.Take(rows * WidestExpert(*config.moe))),
        up(scratch.Take(rows * WidestExpert(*config.moe))),
        experts(scratch.TakeInts(rows * config.moe->num_chosen)),
        order(scratch.TakeInts(rows * config.moe->num_chosen)),
        first(scratch.TakeInts(config.moe->num_experts + 1)),
        sum(of_ranks ? scratch.Take(rows * config.hidden_size) : nullptr) {}

  Real* h;           // [rows, E]
  Real* scores;      // [rows, n]
  Real* weights;     // [rows, k]
  Real* gathered;    // [rows, E]: rows of h that an expert computes, then its results.
  Real* gate;        // [rows, F], F that of the experts, or of the shared one
  Real* up;          // [rows, F]
  int32_t* experts;  // [rows, k]
  int32_t* order;    // [rows * k] and
  int32_t* first;    // [n + 1]: GroupByExpert.
  Real* sum;         // [rows, E] of all slices; null without them.
};

template <class Real>
struct MlpMoe::GradBuffers {
  GradBuffers(const ModelConfig& config, int64_t rows, Scratch<Real>& scratch)
      : dh(scratch.Take(rows * config.hidden_size)),
        dinner(scratch.Take(rows * WidestExpert(*config.moe))),
        gated(scratch.Take(rows * config.moe->expert_size)),
        dweights(scratch.Take(rows * config.moe->num_chosen)),
        dlogits(scratch.Take(rows * config.moe->num_experts)) {}

  Real* dh;        // [rows, E]
  Real* dinner;    // [rows, F]
  Real* gated;     // [rows, F]
  Real* dweights;  // [rows, k]
  Real* dlogits;   // [rows, n]
};

MlpMoe::MlpMoe(const ModelConfig& config, const ModelShard* shard)
    : config_(config), moe_(config.moe.value()), shard_(shard) {
  PMKVQ_CHECK_MSG(!config.post_norms, "no family has experts and norms behind them");
  rule_.num_experts = moe_.num_experts;
  rule_.num_chosen = moe_.num_chosen;
  rule_.score = moe_.score == ExpertScore::kSoftmax ? RouterScore::kSoftmax : RouterScore::kSigmoid;
  rule_.normalize = moe_.normalize;
  rule_.factor = moe_.weight_factor;
  rule_.num_groups = moe_.num_groups;
  rule_.num_chosen_groups = moe_.num_chosen_groups;
  rule_.group_top = moe_.group_top;
  weights_.experts.resize(static_cast<size_t>(moe_.num_experts));
}

void MlpMoe::Declare(WeightList& list) {
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = moe_.expert_size;
  list.Norm("mlp.norm", hidden, weights_.norm, {config_.norm_offset});
  list.Router("mlp.router", moe_.num_experts, hidden, weights_.router);
  if (moe_.choice_bias) list.Bias("mlp.router.bias", moe_.num_experts, weights_.router_bias);
  for (size_t i = 0; i < weights_.experts.size(); ++i) {
    MlpMoeWeights::Expert& expert = weights_.experts[i];
    list.Expert(fmt::format("mlp.experts.{}.gate", i), inner, hidden, expert.gate);
    list.Expert(fmt::format("mlp.experts.{}.up", i), inner, hidden, expert.up);
    list.Expert(fmt::format("mlp.experts.{}.down", i), hidden, inner, expert.down);
  }
  if (moe_.shared_size == 0) return;
  list.Matrix("mlp.shared.gate", moe_.shared_size, hidden, weights_.shared.gate);
  list.Matrix("mlp.shared.up", moe_.shared_size, hidden, weights_.shared.up);
  list.ColumnMatrix("mlp.shared.down", hidden, moe_.shared_size, weights_.shared.down,
                    weights_.shared_down_slices);
}

const float* MlpMoe::RouterBias() const { return DataOrNull(weights_.router_bias); }

// In pieces of kDecodeRows rows, in which the bits of a product do not depend on their number: in a
// longer chunk a row then chooses as it does elsewhere, where its h is the same.
template <class Real>
void MlpMoe::Route(const Real* h, int64_t num_rows, Real* scores, int32_t* experts, Real* weights,
                   int num_threads) const {
  for (int64_t row = 0; row < num_rows; row += kDecodeRows) {
    MatMul<Real>(h + row * config_.hidden_size, std::min(kDecodeRows, num_rows - row),
                 weights_.router, nullptr, scores + row * moe_.num_experts, num_threads);
  }
  RouteRows<Real>(rule_, RouterBias(), num_rows, scores, experts, weights);
}

template <class Real>
void MlpMoe::Prepare(const Real* x, int64_t rows, const Buffers<Real>& buffers,
                     int num_threads) const {
  RmsNorm(x, rows, config_.hidden_size, weights_.norm.data(), config_.rms_norm_eps, buffers.h,
          num_threads);
  Route(buffers.h, rows, buffers.scores, buffers.experts, buffers.weights, num_threads);
  GroupByExpert({buffers.experts, static_cast<size_t>(rows * moe_.num_chosen)}, moe_.num_experts,
                buffers.first, buffers.order);
}

template <class Real>
int64_t MlpMoe::Gather(int64_t expert, const Buffers<Real>& buffers, const Real* source,
                       Real* rows) const {
  const int64_t hidden = config_.hidden_size;
  const int32_t end = buffers.first[expert + 1];
  for (int32_t i = buffers.first[expert]; i < end; ++i, rows += hidden) {
    std::copy_n(source + buffers.order[i] / moe_.num_chosen * hidden, hidden, rows);
  }
  return end - buffers.first[expert];
}

template <class Real>
void MlpMoe::Project(const MlpMoeWeights::Expert& expert, const Real* h, int64_t count,
                     const Buffers<Real>& buffers, int num_threads) const {
  const Projection<Real> projections[] = {{&expert.gate, nullptr, buffers.gate},
                                          {&expert.up, nullptr, buffers.up}};
  MatMulShared<Real>(h, count, projections, num_threads);
}

template <class Real>
void MlpMoe::Gate(int64_t count, const Buffers<Real>& buffers, Real* y, int num_threads) const {
  const bool is_silu = config_.activation == GateActivation::kSilu;
  const auto mul = is_silu ? &SiluMul<Real> : &GeluMul<Real>;
  mul(buffers.gate, buffers.up, count, y, num_threads);
}

// In pieces of kDecodeRows rows, in which the bits of a product do not depend on their number: what
// an expert makes of a row does not depend on the others that chose it. These kernels also are the
// faster ones for one or two hundred rows, which is what an expert has of a long chunk.
template <class Real>
void MlpMoe::Run(const MlpMoeWeights::Expert& expert, const Real* h, int64_t count,
                 const Buffers<Real>& buffers, Real* y, int num_threads) const {
  const int64_t hidden = config_.hidden_size;
  for (int64_t row = 0; row < count; row += kDecodeRows) {
    const int64_t rows = std::min(kDecodeRows, count - row);
    Project<Real>(expert, h + row * hidden, rows, buffers, num_threads);
    Gate<Real>(rows * expert.down.cols, buffers, buffers.gate, num_threads);
    MatMul<Real>(buffers.gate, rows, expert.down, nullptr, y + row * hidden, num_threads);
  }
}

template <class Real>
void MlpMoe::AddExpert(int64_t e, const Buffers<Real>& buffers, Real* y, int num_threads) const {
  const int64_t hidden = config_.hidden_size;
  const int64_t count = Gather<Real>(e, buffers, buffers.h, buffers.gathered);
  if (count == 0) return;
  Run<Real>(weights_.experts[static_cast<size_t>(e)], buffers.gathered, count, buffers,
            buffers.gathered, num_threads);
  for (int64_t i = 0; i < count; ++i) {
    const int32_t place = buffers.order[buffers.first[e] + i];
    AddScaled(buffers.weights[place], buffers.gathered + i * hidden, hidden,
              y + place / moe_.num_chosen * hidden);
  }
}

// A row's experts are added in their order, whatever the other rows choose.
template <class Real>
void MlpMoe::AddRows(int64_t rows, const Buffers<Real>& buffers, Real* x, int num_threads) const {
  Prepare<Real>(x, rows, buffers, num_threads);
  if constexpr (std::is_same_v<Real, float>) {
    if (shard_ != nullptr) return AddRowsOfRanks(rows, buffers, x, num_threads);
  }
  for (int64_t e = 0; e < moe_.num_experts; ++e) AddExpert<Real>(e, buffers, x, num_threads);
  if (moe_.shared_size == 0) return;
  Run<Real>(weights_.shared, buffers.h, rows, buffers, buffers.gathered, num_threads);
  AddTo(x, buffers.gathered, rows * config_.hidden_size);
}

void MlpMoe::AddRowsOfRanks(int64_t rows, const Buffers<float>& buffers, float* x,
                            int num_threads) const {
  const int64_t count = rows * config_.hidden_size;
  const auto leaf = [&](size_t index, float* values) {
    SumOfSlice(index, rows, buffers, values, num_threads);
  };
  SumOfLeaves(count, shard_->experts.num_slices(), std::cref(leaf), buffers.sum, *shard_,
              num_threads);
  AddTo(x, buffers.sum, count);
}

void MlpMoe::SumOfSlice(size_t index, int64_t rows, const Buffers<float>& buffers, float* values,
                        int num_threads) const {
  const int64_t count = rows * config_.hidden_size;
  std::fill_n(values, count, 0.0f);
  const int64_t first = shard_->experts.begin() + shard_->experts.offset(index);
  for (int64_t e = first; e < first + shard_->experts.size(index); ++e) {
    AddExpert<float>(e, buffers, values, num_threads);
  }
  if (moe_.shared_size == 0 || shard_->shared.size(index) == 0) return;
  MlpMoeWeights::Expert slice = weights_.shared;
  slice.down = weights_.shared_down_slices[index];
  for (WeightView* const matrix : {&slice.gate, &slice.up}) {
    matrix->data += shard_->shared.offset(index) * RowBytes(matrix->format, matrix->cols);
    matrix->rows = shard_->shared.size(index);
  }
  Run<float>(slice, buffers.h, rows, buffers, buffers.gathered, num_threads);
  AddTo(values, buffers.gathered, count);
}

void MlpMoe::Forward(const ForwardRows& rows, float* x) const {
  const Scratch<float>::Frame frame(*rows.scratch);
  const Buffers<float> buffers(config_, rows.max_slice_rows, *rows.scratch, shard_ != nullptr);
  for (const RowSlice& slice : rows.read_slices) {
    AddRows(slice.num_rows, buffers, x + slice.first_row * config_.hidden_size, rows.num_threads);
  }
}

void MlpMoe::CountScratch(const ForwardRows& rows) const {
  const Scratch<float>::Frame frame(*rows.scratch);
  const Buffers<float> buffers(config_, rows.max_slice_rows, *rows.scratch, shard_ != nullptr);
}

template <class Real>
void MlpMoe::ForwardSequence(const SequenceRows<Real>& rows, Real* x) const {
  const typename Scratch<Real>::Frame frame(*rows.scratch);
  const int64_t num_tokens = rows.num_tokens();
  const Buffers<Real> buffers(config_, std::min(num_tokens, kSequenceRows), *rows.scratch);
  for (int64_t begin = 0; begin < num_tokens; begin += kSequenceRows) {
    AddRows(std::min(kSequenceRows, num_tokens - begin), buffers, x + begin * config_.hidden_size,
            rows.num_threads);
  }
}

template <class Real>
void MlpMoe::GateGrad(int64_t count, const Buffers<Real>& buffers, const Real* dinner,
                      int num_threads) const {
  const auto mul_grad =
      config_.activation == GateActivation::kSilu ? &SiluMulGrad<Real> : &GeluMulGrad<Real>;
  mul_grad(buffers.gate, buffers.up, dinner, count, buffers.gate, buffers.up, num_threads);
}

template <class Real>
void MlpMoe::GradShared(int64_t rows, const Buffers<Real>& buffers,
                        const GradBuffers<Real>& gradients, const Real* dx, int num_threads) const {
  const MlpMoeWeights::Expert& expert = weights_.shared;
  Project<Real>(expert, buffers.h, rows, buffers, num_threads);
  MatMulGradInput<Real>(dx, rows, expert.down, gradients.dinner, /*accumulate=*/false, num_threads);
  GateGrad<Real>(rows * moe_.shared_size, buffers, gradients.dinner, num_threads);
  for (const auto& [weight, gradient] :
       {std::pair{&expert.gate, buffers.gate}, std::pair{&expert.up, buffers.up}}) {
    MatMulGradInput<Real>(gradient, rows, *weight, gradients.dh, /*accumulate=*/true, num_threads);
  }
}

// Of a row's result y: y += w a Wdown, a = act(gate) * up. With b = dy Wdown^T the gradient of w is
// b . a, and that of a is w b.
template <class Real>
void MlpMoe::GradExpert(int64_t e, const Buffers<Real>& buffers, const GradBuffers<Real>& gradients,
                        const Real* dx, int num_threads) const {
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = moe_.expert_size;
  const int64_t count = Gather<Real>(e, buffers, buffers.h, buffers.gathered);
  if (count == 0) return;
  const MlpMoeWeights::Expert& expert = weights_.experts[static_cast<size_t>(e)];
  Project<Real>(expert, buffers.gathered, count, buffers, num_threads);
  Gate<Real>(count * inner, buffers, gradients.gated, num_threads);
  Gather<Real>(e, buffers, dx, buffers.gathered);
  MatMulGradInput<Real>(buffers.gathered, count, expert.down, gradients.dinner,
                        /*accumulate=*/false, num_threads);
  const int32_t* const order = buffers.order + buffers.first[e];
  for (int64_t i = 0; i < count; ++i) {
    const Real weight = buffers.weights[order[i]];
    Real* const dinner = gradients.dinner + i * inner;
    Real dot{0};
    for (int64_t j = 0; j < inner; ++j) {
      dot += dinner[j] * gradients.gated[i * inner + j];
      dinner[j] *= weight;
    }
    gradients.dweights[order[i]] = dot;
  }
  GateGrad<Real>(count * inner, buffers, gradients.dinner, num_threads);
  MatMulGradInput<Real>(buffers.gate, count, expert.gate, buffers.gathered, /*accumulate=*/false,
                        num_threads);
  MatMulGradInput<Real>(buffers.up, count, expert.up, buffers.gathered, /*accumulate=*/true,
                        num_threads);
  for (int64_t i = 0; i < count; ++i) {
    AddScaled(Real{1}, buffers.gathered + i * hidden, hidden,
              gradients.dh + order[i] / moe_.num_chosen * hidden);
  }
}

// Recomputes the intermediate values of the forward pass from x.
template <class Real>
void MlpMoe::GradSequence(const SequenceRows<Real>& rows, const Real* x, Real* dx) const {
  const typename Scratch<Real>::Frame frame(*rows.scratch);
  const int64_t num_tokens = rows.num_tokens();
  const int64_t hidden = config_.hidden_size;
  const int64_t max_rows = std::min(num_tokens, kSequenceRows);
  const Buffers<Real> buffers(config_, max_rows, *rows.scratch);
  const GradBuffers<Real> gradients(config_, max_rows, *rows.scratch);
  for (int64_t begin = 0; begin < num_tokens; begin += kSequenceRows) {
    const int64_t count = std::min(kSequenceRows, num_tokens - begin);
    const Real* slice = x + begin * hidden;
    Real* const gradient = dx + begin * hidden;
    Prepare<Real>(slice, count, buffers, rows.num_threads);
    std::fill_n(gradients.dh, count * hidden, Real{0});
    for (int64_t e = 0; e < moe_.num_experts; ++e) {
      GradExpert<Real>(e, buffers, gradients, gradient, rows.num_threads);
    }
    if (moe_.shared_size > 0) {
      GradShared<Real>(count, buffers, gradients, gradient, rows.num_threads);
    }
    RouteRowsGrad<Real>(rule_, count, buffers.scores, buffers.experts, gradients.dweights,
                        gradients.dlogits);
    MatMulGradInput<Real>(gradients.dlogits, count, weights_.router, gradients.dh,
                          /*accumulate=*/true, rows.num_threads);
    RmsNormGrad(slice, gradients.dh, count, hidden, weights_.norm.data(), config_.rms_norm_eps,
                gradient, rows.num_threads);
  }
}

void MlpMoe::Forward(const SequenceRows<float>& rows, float* x) const { ForwardSequence(rows, x); }
void MlpMoe::Forward(const SequenceRows<double>& rows, double* x) const {
  ForwardSequence(rows, x);
}
void MlpMoe::Grad(const SequenceRows<float>& rows, const float* x, float* dx) const {
  GradSequence(rows, x, dx);
}
void MlpMoe::Grad(const SequenceRows<double>& rows, const double* x, double* dx) const {
  GradSequence(rows, x, dx);
}

template void MlpMoe::Route<float>(const float*, int64_t, float*, int32_t*, float*, int) const;
template void MlpMoe::Route<double>(const double*, int64_t, double*, int32_t*, double*, int) const;

}  // namespace pmkvq
