#include <algorithm>
#include <cmath>
#include <cstddef>

#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/block_measures.h"
#include "pmkvq/research/calib/device_steps.h"
#include "pmkvq/research/calib/sample_loop.h"

namespace pmkvq {

size_t NumMaxKeys(const UniformKvGeometry& geometry) {
  return static_cast<size_t>(geometry.num_layers * geometry.kv_dim() / 2);
}

void MeasureKeys(const UniformKvGeometry& geometry, const BlockStates<float>& states,
                 std::span<double> values) {
  const int64_t half = geometry.head_dim / 2;
  double* const out = values.data() + states.layer * geometry.kv_dim() / 2;
  for (int64_t t = 0; t < states.num_tokens; ++t) {
    for (int64_t head = 0; head < geometry.num_kv_heads; ++head) {
      const float* k = states.k + (t * geometry.num_kv_heads + head) * geometry.head_dim;
      double* largest = out + head * half;
      for (int64_t i = 0; i < half; ++i) {
        const float pair = std::max(std::abs(k[i]), std::abs(k[i + half]));
        largest[i] = std::max(largest[i], static_cast<double>(pair));
      }
    }
  }
}

std::vector<Tensor> MaxKeysFrom(const UniformKvGeometry& geometry, std::span<const double> values) {
  const int64_t half = geometry.head_dim / 2;
  const int64_t block_values = geometry.kv_dim() / 2;
  std::vector<Tensor> max_keys;
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    Tensor tensor(DType::kF32, {geometry.num_kv_heads, half});
    const double* block = values.data() + layer * block_values;
    // Exact: every value was a float.
    std::transform(block, block + block_values, tensor.As<float>(),
                   [](double value) { return static_cast<float>(value); });
    max_keys.push_back(std::move(tensor));
  }
  return max_keys;
}

std::vector<Tensor> MeasureMaxKeys(const CalibrationContext& context) {
  const UniformKvGeometry geometry = UniformOf(context.model->kv_geometry());
  Profile<float> profile(*context.model, context.num_threads);
  SampleLoopStep step;
  step.task = "max-keys";
  step.num_values = NumMaxKeys(geometry);
  step.num_sums = 0;
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> values(step.num_values);
    profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
      MeasureKeys(geometry, states, values);
    });
    return values;
  };
  if (context.model->device_model() != nullptr) {
    step.options = "on a device";
    step.process = MaxKeysOnDevice(*context.model);
  }
  return MaxKeysFrom(geometry, LoopOverSamples(context, step));
}

}  // namespace pmkvq
