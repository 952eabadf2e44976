#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/kernels/attention/scaled_key_attention.h"
#include "pmkvq/kv/key_scales.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/block_measures.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/research/calib/device_steps.h"
#include "pmkvq/research/calib/fake_quant.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/calib/scale_grid.h"

namespace pmkvq {
namespace {

constexpr double kSmallestScale = 1e-4;
constexpr double kLargestScale = 1e4;

// Of all blocks, [L, grid, Hkv, D/2].
std::vector<float> ScalesOfGrid(const std::vector<Tensor>& max_keys, int grid) {
  std::vector<float> all;
  for (const Tensor& tensor : max_keys) {
    for (int n = 0; n < grid; ++n) {
      const Tensor scales = ScalesAt(tensor, AlphaAt(n, grid));
      all.insert(all.end(), scales.As<float>(), scales.As<float>() + scales.num_elements());
    }
  }
  return all;
}

// Errors of one block's attention output over the grid. Buffers are reused between blocks.
class BlockSearch {
 public:
  BlockSearch(const CalibrationContext& context, const RepScaleOptions& options,
              Profile<float>& profile)
      : context_(context),
        options_(options),
        profile_(profile),
        geometry_(UniformOf(context.model->kv_geometry())),
        hidden_size_(context.model->config().hidden_size) {}

  // Mean squared error per grid point; `max_keys` [Hkv, D/2] of this block.
  //
  // The projection is linear: only the difference of the two attentions goes through it.
  void Run(const BlockStates<float>& states, const Tensor& max_keys, double* loss) {
    const int64_t num_tokens = states.num_tokens;
    const int64_t kv_count = num_tokens * geometry_.kv_dim();
    const int64_t out_count = num_tokens * hidden_size_;
    const CausalAttentionShape shape{num_tokens,
                                     geometry_.num_heads,
                                     geometry_.num_kv_heads,
                                     geometry_.head_dim,
                                     context_.model->attention_scale(),
                                     context_.model->config().sliding_window(states.layer)};
    Resize(num_tokens);
    CausalAttention(shape, states.q, states.k, states.v, exact_.data(), context_.num_threads);
    FakeQuantizeParallel(geometry_.group(), options_.v_bits, states.v, kv_count / geometry_.group(),
                         v_.data(), context_.num_threads);
    attention_.SetSequence(shape, geometry_.group(), states.k, v_.data(), context_.num_threads);
    for (int n = 0; n < options_.grid; ++n) {
      const Tensor scales = ScalesAt(max_keys, AlphaAt(n, options_.grid));
      attention_.Run(states.q, scales.As<float>(), options_.k_bits, exact_.data(), error_.data(),
                     context_.num_threads);
      profile_.ProjectAttention(states.layer, num_tokens, error_.data(), out_.data());
      loss[n] = SumOfSquares(out_.data(), out_count, context_.num_threads) /
                static_cast<double>(out_count);
    }
  }

 private:
  void Resize(int64_t num_tokens) {
    const auto rows = static_cast<size_t>(num_tokens);
    v_.resize(rows * static_cast<size_t>(geometry_.kv_dim()));
    exact_.resize(rows * static_cast<size_t>(geometry_.num_heads * geometry_.head_dim));
    error_.resize(exact_.size());
    out_.resize(rows * static_cast<size_t>(hidden_size_));
  }

  const CalibrationContext& context_;
  const RepScaleOptions& options_;
  Profile<float>& profile_;
  UniformKvGeometry geometry_;
  int64_t hidden_size_;
  ScaledKeyAttention attention_;
  AlignedVector<float> v_;              // Quantised, [N, Hkv, D]
  AlignedVector<float> exact_, error_;  // Attention, and its change by quantised keys, [N, H, D]
  AlignedVector<float> out_;            // The error after o_proj, [N, E]
};

void CheckArguments(const KvGeometry& geometry, const std::vector<Tensor>& max_keys,
                    const RepScaleOptions& options) {
  for (const auto& [name, bits] :
       {std::pair{"k-bits", options.k_bits}, std::pair{"v-bits", options.v_bits}}) {
    if (std::find(kWidths.begin(), kWidths.end(), bits) == kWidths.end()) {
      throw InvalidInput(kRepScalesTask,
                         fmt::format("{}: found {}, expected 16, 8, 4 or 2", name, bits));
    }
  }
  if (options.grid < 1) {
    throw InvalidInput(kRepScalesTask,
                       fmt::format("grid: found {}, expected at least 1", options.grid));
  }
  PMKVQ_CHECK(max_keys.size() == geometry.blocks.size());
  for (size_t i = 0; i < max_keys.size(); ++i) {
    PMKVQ_CHECK(max_keys[i].shape() == KeyScales::ShapeOf(geometry.blocks[i]));
  }
}

}  // namespace

double AlphaAt(int n, int grid) { return 1.0 - static_cast<double>(n) / grid; }

Tensor ScalesAt(const Tensor& max_keys, double alpha) {
  Tensor scales(DType::kF32, max_keys.shape());
  const float* from = max_keys.As<float>();
  std::transform(from, from + max_keys.num_elements(), scales.As<float>(), [alpha](float value) {
    const double scale = std::pow(static_cast<double>(value), alpha);
    return static_cast<float>(std::clamp(scale, kSmallestScale, kLargestScale));
  });
  return scales;
}

std::string HashTensors(const std::vector<Tensor>& tensors) {
  Hash128 hash;
  for (const Tensor& tensor : tensors) hash.Update(tensor.view().data, tensor.view().num_bytes());
  return hash.HexDigest();
}

double BestAlpha(const std::vector<double>& loss, int grid) {
  const auto best = std::min_element(loss.begin(), loss.end()) - loss.begin();
  return AlphaAt(static_cast<int>(best), grid);
}

RepScales SearchRepScales(const CalibrationContext& context, const std::vector<Tensor>& max_keys,
                          const RepScaleOptions& options) {
  const KvGeometry blocks = context.model->kv_geometry();
  CheckHasKeys(blocks);
  CheckDevice(*context.model);
  CheckArguments(blocks, max_keys, options);
  if (HasLatents(blocks)) return SearchLatentScales(context, max_keys, options);
  const UniformKvGeometry geometry = UniformOf(blocks);
  Profile<float> profile(*context.model, context.num_threads);
  BlockSearch search(context, options, profile);
  SampleLoopStep step;
  step.task = kRepScalesTask;
  step.options = fmt::format("k_bits {} v_bits {} grid {} max_keys {}", options.k_bits,
                             options.v_bits, options.grid, HashTensors(max_keys));
  step.num_values = static_cast<size_t>(geometry.num_layers * options.grid);
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> values(step.num_values);
    profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
      search.Run(states, max_keys[static_cast<size_t>(states.layer)],
                 values.data() + states.layer * options.grid);
    });
    return values;
  };
  if (context.model->device_model() != nullptr) {
    step.options += " on a device";
    step.process =
        ScaleErrorsOnDevice(*context.model, options, ScalesOfGrid(max_keys, options.grid));
  }
  const std::vector<double> sums = LoopOverSamples(context, step);

  RepScales result;
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    const auto begin = sums.begin() + layer * options.grid;
    std::vector<double> loss(begin, begin + options.grid);
    const double alpha = BestAlpha(loss, options.grid);
    result.alpha.push_back(alpha);
    result.scales.push_back(ScalesAt(max_keys[static_cast<size_t>(layer)], alpha));
    result.loss.push_back(std::move(loss));
  }
  return result;
}

}  // namespace pmkvq
