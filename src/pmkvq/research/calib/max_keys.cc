#include <algorithm>
#include <cmath>
#include <cstddef>

#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/research/calib/sample_loop.h"

namespace pmkvq {
namespace {

// Largest |k| per KV head and pair (i, i + D/2) over all tokens; out [Hkv, D/2].
void MaxOverTokens(const UniformKvGeometry& geometry, const BlockStates<float>& states,
                   double* out) {
  const int64_t half = geometry.head_dim / 2;
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

}  // namespace

std::vector<Tensor> MeasureMaxKeys(const CalibrationContext& context) {
  const UniformKvGeometry geometry = UniformOf(context.model->kv_geometry());
  const int64_t half = geometry.head_dim / 2;
  const int64_t block_values = geometry.num_kv_heads * half;
  Profile<float> profile(*context.model, context.num_threads);
  SampleLoopStep step;
  step.task = "max-keys";
  step.combine = SampleLoopStep::Combine::kMax;
  step.num_values = static_cast<size_t>(geometry.num_layers * block_values);
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> values(step.num_values);
    profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
      MaxOverTokens(geometry, states, values.data() + states.layer * block_values);
    });
    return values;
  };
  const std::vector<double> largest = LoopOverSamples(context, step);

  std::vector<Tensor> max_keys;
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    Tensor tensor(DType::kF32, {geometry.num_kv_heads, half});
    const double* block = largest.data() + layer * block_values;
    // Exact: every value was a float.
    std::transform(block, block + block_values, tensor.As<float>(),
                   [](double value) { return static_cast<float>(value); });
    max_keys.push_back(std::move(tensor));
  }
  return max_keys;
}

}  // namespace pmkvq
