#include <fmt/format.h>

#include <cmath>
#include <cstddef>

#include "pmkvq/base/error.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/research/calib/fake_quant.h"
#include "pmkvq/research/calib/sample_loop.h"

namespace pmkvq {
namespace {

// Values of a sample: [K, V][width in kWidths][block].
size_t ValueIndex(size_t side, size_t width, size_t layer, size_t num_layers) {
  return (side * kWidths.size() + width) * num_layers + layer;
}

// Adds the damage to one block's keys (side 0) or values (side 1) at every width.
void AddDamage(const UniformKvGeometry& geometry, const BlockStates<float>& states, size_t side,
               int num_threads, std::vector<double>& values) {
  const float* x = side == 0 ? states.k : states.v;
  const float* gradient = side == 0 ? states.dk : states.dv;
  const int64_t count = states.num_tokens * geometry.kv_dim();
  for (size_t w = 0; w < kWidths.size(); ++w) {
    const double sum = QuantizationDamage(geometry.group(), kWidths[w], x, gradient,
                                          count / geometry.group(), num_threads);
    if (!std::isfinite(sum)) {
      throw InvalidInput("sensitivity",
                         fmt::format("block {}: {} or their gradient are not finite, expected "
                                     "finite weights",
                                     states.layer, side == 0 ? "keys" : "values"));
    }
    values[ValueIndex(side, w, static_cast<size_t>(states.layer),
                      static_cast<size_t>(geometry.num_layers))] = sum / static_cast<double>(count);
  }
}

}  // namespace

Sensitivity MeasureSensitivity(const CalibrationContext& context) {
  const UniformKvGeometry geometry = UniformOf(context.model->kv_geometry());
  const auto num_layers = static_cast<size_t>(geometry.num_layers);
  Profile<float> profile(*context.model, context.num_threads);
  SampleLoopStep step;
  step.task = "sensitivity";
  step.num_values = 2 * kWidths.size() * num_layers;
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> values(step.num_values);
    profile.ForwardBackward(tokens, positions, [&](const BlockStates<float>& states) {
      for (const size_t side : {0, 1}) {
        AddDamage(geometry, states, side, context.num_threads, values);
      }
    });
    return values;
  };
  const std::vector<double> sums = LoopOverSamples(context, step);

  Sensitivity sensitivity;
  const auto num_samples = static_cast<double>(context.samples->tokens.size());
  for (size_t w = 0; w < kWidths.size(); ++w) {
    std::vector<double> k(num_layers);
    std::vector<double> v(num_layers);
    for (size_t layer = 0; layer < num_layers; ++layer) {
      k[layer] = sums[ValueIndex(0, w, layer, num_layers)] / num_samples;
      v[layer] = sums[ValueIndex(1, w, layer, num_layers)] / num_samples;
    }
    sensitivity.k.push_back(std::move(k));
    sensitivity.v.push_back(std::move(v));
  }
  return sensitivity;
}

}  // namespace pmkvq
