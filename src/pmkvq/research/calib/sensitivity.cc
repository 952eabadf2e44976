#include <fmt/format.h>

#include <cmath>
#include <cstddef>

#include "pmkvq/base/error.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/block_measures.h"
#include "pmkvq/research/calib/device_steps.h"
#include "pmkvq/research/calib/fake_quant.h"
#include "pmkvq/research/calib/sample_loop.h"

namespace pmkvq {
namespace {

const char* NameOf(const KvBlockGeometry& block, size_t side) {
  if (block.is_latent()) return side == 0 ? "latents" : "rope keys";
  return side == 0 ? "keys" : "values";
}

size_t ValueIndex(size_t side, size_t width, size_t layer, size_t num_layers) {
  return (side * kWidths.size() + width) * num_layers + layer;
}

// A loop of `task` over values of which the first ones are damages. `keys`: the largest keys
// follow.
std::vector<double> LoopOverGradients(const CalibrationContext& context, const char* task,
                                      bool with_keys) {
  const KvGeometry geometry = context.model->kv_geometry();
  if (with_keys) CheckHasKeys(geometry);
  CheckDevice(*context.model);
  Profile<float> profile(*context.model, context.num_threads);
  SampleLoopStep step;
  step.task = task;
  step.num_sums = NumDamages(geometry.num_layers());
  step.num_values = step.num_sums + (with_keys ? NumMaxKeys(geometry) : 0);
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> values(step.num_values);
    const std::span<double> damages = std::span(values).first(step.num_sums);
    const std::span<double> keys = std::span(values).subspan(step.num_sums);
    profile.ForwardBackward(tokens, positions, [&](const BlockStates<float>& states) {
      MeasureDamages(geometry, states, context.num_threads, damages);
      if (with_keys) MeasureKeys(geometry, states, keys);
    });
    return values;
  };
  if (context.model->device_model() != nullptr) {
    step.options = "on a device";
    step.process = SensitivityOnDevice(*context.model, with_keys);
  }
  return LoopOverSamples(context, step);
}

}  // namespace

size_t NumDamages(int64_t num_layers) {
  return 2 * kWidths.size() * static_cast<size_t>(num_layers);
}

void MeasureDamages(const KvGeometry& geometry, const BlockStates<float>& states, int num_threads,
                    std::span<double> values) {
  const KvBlockGeometry& block = geometry.block(states.layer);
  for (const size_t side : {size_t{0}, size_t{1}}) {
    const KvStream& stream = block.streams[side];
    const int64_t count = states.num_tokens * stream.values();
    const float* x = side == 0 ? states.k : states.v;
    const float* gradient = side == 0 ? states.dk : states.dv;
    for (size_t w = 0; w < kWidths.size(); ++w) {
      const double sum = QuantizationDamage(stream.group, kWidths[w], x, gradient,
                                            count / stream.group, num_threads);
      if (!std::isfinite(sum)) {
        throw InvalidInput("sensitivity",
                           fmt::format("block {}: {} or their gradient are not finite, expected "
                                       "finite weights",
                                       states.layer, NameOf(block, side)));
      }
      values[ValueIndex(side, w, static_cast<size_t>(states.layer),
                        static_cast<size_t>(geometry.num_layers()))] =
          sum / static_cast<double>(count);
    }
  }
}

Sensitivity SensitivityFrom(int64_t num_blocks, std::span<const double> sums, size_t num_samples) {
  const auto num_layers = static_cast<size_t>(num_blocks);
  Sensitivity sensitivity;
  for (size_t w = 0; w < kWidths.size(); ++w) {
    std::vector<double> k(num_layers);
    std::vector<double> v(num_layers);
    for (size_t layer = 0; layer < num_layers; ++layer) {
      k[layer] = sums[ValueIndex(0, w, layer, num_layers)] / static_cast<double>(num_samples);
      v[layer] = sums[ValueIndex(1, w, layer, num_layers)] / static_cast<double>(num_samples);
    }
    sensitivity.k.push_back(std::move(k));
    sensitivity.v.push_back(std::move(v));
  }
  return sensitivity;
}

Sensitivity MeasureSensitivity(const CalibrationContext& context) {
  const std::vector<double> sums = LoopOverGradients(context, "sensitivity", /*with_keys=*/false);
  return SensitivityFrom(context.model->kv_geometry().num_layers(), sums,
                         context.samples->tokens.size());
}

SensitivityAndKeys MeasureSensitivityAndKeys(const CalibrationContext& context) {
  const KvGeometry geometry = context.model->kv_geometry();
  const std::vector<double> values =
      LoopOverGradients(context, "sensitivity and max-keys", /*with_keys=*/true);
  return {SensitivityFrom(geometry.num_layers(), values, context.samples->tokens.size()),
          MaxKeysFrom(geometry, RopeInPairs(*context.model),
                      std::span(values).subspan(NumDamages(geometry.num_layers())))};
}

}  // namespace pmkvq
