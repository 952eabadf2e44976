#include "pmkvq/model/blocks/mlp_dense.h"

#include <algorithm>
#include <type_traits>

#include "pmkvq/kernels/act/act.h"
#include "pmkvq/kernels/norm/norm.h"
#include "pmkvq/model/detail.h"
#include "pmkvq/model/ranks/shard.h"

namespace pmkvq {
using model_detail::AddTo;

namespace {
// Rows of a whole sequence that are computed at once, forward and backward, so that no [N, F] array
// exists.
constexpr int64_t kSequenceRows = 256;
}  // namespace

template <class Real>
struct MlpDense::Buffers {
  Buffers(const ModelConfig& config, int64_t rows, Scratch<Real>& scratch)
      : h(scratch.Take(rows * config.hidden_size)),
        gate(scratch.Take(rows * config.intermediate_size)),
        up(scratch.Take(rows * config.intermediate_size)) {}

  Real* h;     // [rows, E]; also the output of the projection back to E
  Real* gate;  // [rows, F]
  Real* up;    // [rows, F]
};

void MlpDense::Declare(WeightList& list) {
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  list.Norm("mlp.norm", hidden, weights_.norm, {config_.norm_offset});
  list.Matrix("mlp.gate", inner, hidden, weights_.gate);
  list.Matrix("mlp.up", inner, hidden, weights_.up);
  list.ColumnMatrix("mlp.down", hidden, inner, weights_.down, weights_.down_slices);
  if (config_.post_norms) {
    list.Norm("mlp.post_norm", hidden, weights_.post_norm, {config_.norm_offset});
  }
}

template <class Real>
void MlpDense::Project(const Real* x, int64_t rows, const Buffers<Real>& buffers,
                       int num_threads) const {
  RmsNorm(x, rows, config_.hidden_size, weights_.norm.data(), config_.rms_norm_eps, buffers.h,
          num_threads);
  const Projection<Real> projections[] = {{&weights_.gate, nullptr, buffers.gate},
                                          {&weights_.up, nullptr, buffers.up}};
  if constexpr (std::is_same_v<Real, float>) {
    if (shard_ != nullptr) {
      const SliceRange* const ranges[] = {&shard_->inner, &shard_->inner};
      return SlicedProducts(buffers.h, rows, projections, ranges, num_threads);
    }
  }
  MatMulShared<Real>(buffers.h, rows, projections, num_threads);
}

template <class Real>
void MlpDense::Gate(int64_t rows, const Buffers<Real>& buffers, Real* y, int num_threads) const {
  const int64_t count = rows * config_.intermediate_size;
  const bool is_silu = config_.activation == GateActivation::kSilu;
  const auto mul = is_silu ? &SiluMul<Real> : &GeluMul<Real>;
  mul(buffers.gate, buffers.up, count, y, num_threads);
}

template <class Real>
void MlpDense::Down(int64_t rows, const Buffers<Real>& buffers, int num_threads) const {
  if constexpr (std::is_same_v<Real, float>) {
    if (shard_ != nullptr) {
      return SumOfSlices(buffers.gate, rows, shard_->inner, weights_.down_slices, nullptr,
                         buffers.h, *shard_, num_threads);
    }
  }
  MatMul<Real>(buffers.gate, rows, weights_.down, nullptr, buffers.h, num_threads);
}

template <class Real>
void MlpDense::AddRows(int64_t rows, const Buffers<Real>& buffers, Real* x, int num_threads) const {
  Project<Real>(x, rows, buffers, num_threads);
  Gate<Real>(rows, buffers, buffers.gate, num_threads);
  Down(rows, buffers, num_threads);
  if (!weights_.post_norm.empty()) {
    RmsNorm(buffers.h, rows, config_.hidden_size, weights_.post_norm.data(), config_.rms_norm_eps,
            buffers.h, num_threads);
  }
  AddTo(x, buffers.h, rows * config_.hidden_size);
}

void MlpDense::Forward(const ForwardRows& rows, float* x) const {
  const Scratch<float>::Frame frame(*rows.scratch);
  const Buffers<float> buffers(config_, rows.max_slice_rows, *rows.scratch);
  for (const RowSlice& slice : rows.read_slices) {
    AddRows(slice.num_rows, buffers, x + slice.first_row * config_.hidden_size, rows.num_threads);
  }
}

void MlpDense::CountScratch(const ForwardRows& rows) const {
  const Scratch<float>::Frame frame(*rows.scratch);
  const Buffers<float> buffers(config_, rows.max_slice_rows, *rows.scratch);
}

template <class Real>
void MlpDense::ForwardSequence(const SequenceRows<Real>& rows, Real* x) const {
  const typename Scratch<Real>::Frame frame(*rows.scratch);
  const int64_t num_tokens = rows.num_tokens();
  const Buffers<Real> buffers(config_, std::min(num_tokens, kSequenceRows), *rows.scratch);
  for (int64_t begin = 0; begin < num_tokens; begin += kSequenceRows) {
    AddRows(std::min(kSequenceRows, num_tokens - begin), buffers, x + begin * config_.hidden_size,
            rows.num_threads);
  }
}

// Recomputes the intermediate values of the forward pass from x.
template <class Real>
void MlpDense::GradSequence(const SequenceRows<Real>& rows, const Real* x, Real* dx) const {
  const typename Scratch<Real>::Frame frame(*rows.scratch);
  const int64_t num_tokens = rows.num_tokens();
  const int64_t hidden = config_.hidden_size;
  const int64_t inner = config_.intermediate_size;
  const int64_t max_rows = std::min(num_tokens, kSequenceRows);
  const Buffers<Real> buffers(config_, max_rows, *rows.scratch);
  Real* dinner = rows.scratch->Take(max_rows * inner);
  const bool has_post_norm = !weights_.post_norm.empty();
  Real* of_normed = has_post_norm ? rows.scratch->Take(max_rows * hidden) : nullptr;
  const auto mul_grad =
      config_.activation == GateActivation::kSilu ? &SiluMulGrad<Real> : &GeluMulGrad<Real>;
  for (int64_t begin = 0; begin < num_tokens; begin += kSequenceRows) {
    const int64_t count = std::min(kSequenceRows, num_tokens - begin);
    const Real* slice = x + begin * hidden;
    Real* gradient = dx + begin * hidden;
    Project<Real>(slice, count, buffers, rows.num_threads);
    const Real* of_output = gradient;
    if (has_post_norm) {
      Gate<Real>(count, buffers, dinner, rows.num_threads);
      MatMul<Real>(dinner, count, weights_.down, nullptr, buffers.h, rows.num_threads);
      std::fill_n(of_normed, count * hidden, Real{0});
      RmsNormGrad(buffers.h, gradient, count, hidden, weights_.post_norm.data(),
                  config_.rms_norm_eps, of_normed, rows.num_threads);
      of_output = of_normed;
    }
    MatMulGradInput<Real>(of_output, count, weights_.down, dinner, /*accumulate=*/false,
                          rows.num_threads);
    mul_grad(buffers.gate, buffers.up, dinner, count * inner, buffers.gate, buffers.up,
             rows.num_threads);
    MatMulGradInput<Real>(buffers.gate, count, weights_.gate, buffers.h, /*accumulate=*/false,
                          rows.num_threads);
    MatMulGradInput<Real>(buffers.up, count, weights_.up, buffers.h, /*accumulate=*/true,
                          rows.num_threads);
    RmsNormGrad(slice, buffers.h, count, hidden, weights_.norm.data(), config_.rms_norm_eps,
                gradient, rows.num_threads);
  }
}

void MlpDense::Forward(const SequenceRows<float>& rows, float* x) const {
  ForwardSequence(rows, x);
}
void MlpDense::Forward(const SequenceRows<double>& rows, double* x) const {
  ForwardSequence(rows, x);
}
void MlpDense::Grad(const SequenceRows<float>& rows, const float* x, float* dx) const {
  GradSequence(rows, x, dx);
}
void MlpDense::Grad(const SequenceRows<double>& rows, const double* x, double* dx) const {
  GradSequence(rows, x, dx);
}

}  // namespace pmkvq
