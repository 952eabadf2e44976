// The search of key scales for latent blocks.
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <span>
#include <utility>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/fake_quant.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/calib/scale_grid.h"

namespace pmkvq {
namespace {

constexpr int64_t kRowsOfItem = 32;

// out = Q_b(x / scales) * scales; x, out [N, width of the stream], scales [width]. As a cache does
// it, which multiplies with 1 / scales.
void QuantizeScaled(const KvStream& stream, int bits, const float* scales, const float* x,
                    int64_t num_tokens, float* out, int num_threads) {
  const int64_t width = stream.values();
  std::vector<float> inverse;
  for (int64_t i = 0; i < width; ++i) inverse.push_back(1.0f / scales[i]);
  ParallelForRanges(num_threads, num_tokens, kRowsOfItem, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = 0; i < width; ++i)
        out[t * width + i] = x[t * width + i] * inverse[static_cast<size_t>(i)];
    }
    FakeQuantizeParallel(stream.group, bits, out + begin * width,
                         (end - begin) * width / stream.group, out + begin * width, 1);
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t i = 0; i < width; ++i) out[t * width + i] *= scales[i];
    }
  });
}

// Errors of one block's attention output over the grid. Buffers are reused between blocks.
class LatentSearch {
 public:
  LatentSearch(const CalibrationContext& context, const RepScaleOptions& options,
               Profile<float>& profile)
      : context_(context),
        options_(options),
        profile_(profile),
        geometry_(context.model->kv_geometry()),
        hidden_size_(context.model->config().hidden_size) {}

  // loss [c, k_r][grid + 1]: mean squared errors.
  void Run(const BlockStates<float>& states, const Tensor& max_keys, double* loss) {
    const KvBlockGeometry& block = geometry_.block(states.layer);
    exact_.resize(static_cast<size_t>(states.num_tokens * hidden_size_));
    out_.resize(exact_.size());
    profile_.AttentionOf(states.k, states.v, exact_.data());
    for (int n = 0; n <= options_.grid; ++n) {
      const Tensor scales = ScalesAt(max_keys, AlphaAt(n, options_.grid));
      const float* const of_latent = scales.As<float>();
      Quantize(block.k(), options_.k_bits, of_latent, states.k, states.num_tokens);
      loss[n] = ErrorOf(damaged_.data(), states.v);
      Quantize(block.v(), options_.v_bits, of_latent + block.latent_width(), states.v,
               states.num_tokens);
      loss[options_.grid + 1 + n] = ErrorOf(states.k, damaged_.data());
    }
  }

 private:
  void Quantize(const KvStream& stream, int bits, const float* scales, const float* x,
                int64_t num_tokens) {
    damaged_.resize(static_cast<size_t>(num_tokens * stream.values()));
    QuantizeScaled(stream, bits, scales, x, num_tokens, damaged_.data(), context_.num_threads);
  }

  double ErrorOf(const float* latents, const float* rope_keys) {
    profile_.AttentionOf(latents, rope_keys, out_.data());
    for (size_t i = 0; i < out_.size(); ++i) out_[i] -= exact_[i];
    const auto count = static_cast<int64_t>(out_.size());
    return SumOfSquares(out_.data(), count, context_.num_threads) / static_cast<double>(count);
  }

  const CalibrationContext& context_;
  const RepScaleOptions& options_;
  Profile<float>& profile_;
  const KvGeometry geometry_;
  const int64_t hidden_size_;
  AlignedVector<float> damaged_;      // [N, r] or [N, dr]
  AlignedVector<float> exact_, out_;  // [N, E]
};

}  // namespace

RepScales SearchLatentScales(const CalibrationContext& context, const std::vector<Tensor>& max_keys,
                             const RepScaleOptions& options) {
  const KvGeometry geometry = context.model->kv_geometry();
  const size_t points = static_cast<size_t>(options.grid) + 1;
  Profile<float> profile(*context.model, context.num_threads);
  LatentSearch search(context, options, profile);
  SampleLoopStep step;
  step.task = kRepScalesTask;
  step.options = fmt::format("latents, k_bits {} v_bits {} grid {} max_keys {}", options.k_bits,
                             options.v_bits, options.grid, HashTensors(max_keys));
  step.num_values = 2 * points * geometry.blocks.size();
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> values(step.num_values);
    profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
      const auto layer = static_cast<size_t>(states.layer);
      search.Run(states, max_keys[layer], values.data() + 2 * points * layer);
    });
    return values;
  };
  const std::vector<double> sums = LoopOverSamples(context, step);

  RepScales result;
  for (size_t layer = 0; layer < geometry.blocks.size(); ++layer) {
    const auto begin = sums.begin() + static_cast<ptrdiff_t>(2 * points * layer);
    const auto middle = begin + static_cast<ptrdiff_t>(points);
    result.loss.emplace_back(begin, middle);
    result.rope_loss.emplace_back(middle, middle + static_cast<ptrdiff_t>(points));
    result.alpha.push_back(BestAlpha(result.loss.back(), options.grid));
    result.rope_alpha.push_back(BestAlpha(result.rope_loss.back(), options.grid));
    Tensor scales = ScalesAt(max_keys[layer], result.alpha.back());
    const Tensor of_rope = ScalesAt(max_keys[layer], result.rope_alpha.back());
    const int64_t latent = geometry.blocks[layer].latent_width();
    std::copy(of_rope.As<float>() + latent, of_rope.As<float>() + of_rope.num_elements(),
              scales.As<float>() + latent);
    result.scales.push_back(std::move(scales));
  }
  return result;
}

}  // namespace pmkvq
