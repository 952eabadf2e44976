#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <optional>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/key_scales.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/block_measures.h"
#include "pmkvq/research/calib/device_steps.h"
#include "pmkvq/research/calib/sample_loop.h"

namespace pmkvq {

namespace {

size_t NumKeysOf(const KvBlockGeometry& block) {
  return static_cast<size_t>(block.is_latent() ? block.values() : block.k().values() / 2);
}

void KeepLargest(double& largest, float value) {
  largest = std::max(largest, static_cast<double>(std::abs(value)));
}

// rows [N, width], out [width].
void LargestOfChannels(const float* rows, int64_t num_tokens, int64_t width, double* out) {
  for (int64_t t = 0; t < num_tokens; ++t, rows += width) {
    for (int64_t i = 0; i < width; ++i) KeepLargest(out[i], rows[i]);
  }
}

// k [N, Hkv, D], out [Hkv, D/2].
void LargestOfPairs(const float* k, int64_t num_tokens, const KvStream& keys, double* out) {
  const int64_t half = keys.width / 2;
  for (int64_t t = 0; t < num_tokens; ++t) {
    for (int64_t head = 0; head < keys.heads; ++head, k += keys.width) {
      for (int64_t i = 0; i < half; ++i) {
        KeepLargest(out[head * half + i], k[i]);
        KeepLargest(out[head * half + i], k[i + half]);
      }
    }
  }
}

// Gives both channels of a pair of k_r [dr] the larger value.
void JoinPairs(bool in_pairs, int64_t width, float* values) {
  const int64_t half = width / 2;
  for (int64_t i = 0; i < half; ++i) {
    float& first = values[in_pairs ? 2 * i : i];
    float& second = values[in_pairs ? 2 * i + 1 : i + half];
    first = second = std::max(first, second);
  }
}

}  // namespace

void CheckHasKeys(const KvGeometry& geometry) {
  const bool all_latent =
      std::all_of(geometry.blocks.begin(), geometry.blocks.end(),
                  [](const KvBlockGeometry& block) { return block.is_latent(); });
  if (!all_latent) UniformOf(geometry);
}

void CheckDevice(const Model& model) {
  if (model.device_model() == nullptr || !HasLatents(model.kv_geometry())) return;
  throw Unsupported(NameOf(model.device()),
                    fmt::format("{}: found latent attention, which is calibrated on the CPU; use "
                                "--device cpu",
                                model.config().architecture));
}

bool RopeInPairs(const Model& model) {
  const std::optional<MlaConfig>& mla = model.config().mla;
  return mla.has_value() && mla->rope_in_pairs;
}

size_t NumMaxKeys(const KvGeometry& geometry) {
  size_t sum = 0;
  for (const KvBlockGeometry& block : geometry.blocks) sum += NumKeysOf(block);
  return sum;
}

void MeasureKeys(const KvGeometry& geometry, const BlockStates<float>& states,
                 std::span<double> values) {
  double* out = values.data();
  for (int64_t layer = 0; layer < states.layer; ++layer) out += NumKeysOf(geometry.block(layer));
  const KvBlockGeometry& block = geometry.block(states.layer);
  if (block.is_latent()) {
    const int64_t latent = block.latent_width();
    LargestOfChannels(states.k, states.num_tokens, latent, out);
    LargestOfChannels(states.v, states.num_tokens, block.rope_width(), out + latent);
  } else {
    LargestOfPairs(states.k, states.num_tokens, block.k(), out);
  }
}

std::vector<Tensor> MaxKeysFrom(const KvGeometry& geometry, bool rope_in_pairs,
                                std::span<const double> values) {
  std::vector<Tensor> max_keys;
  for (const KvBlockGeometry& block : geometry.blocks) {
    Tensor tensor(DType::kF32, KeyScales::ShapeOf(block));
    const std::span<const double> own = values.first(NumKeysOf(block));
    values = values.subspan(own.size());
    // Exact: every value was a float.
    std::transform(own.begin(), own.end(), tensor.As<float>(),
                   [](double value) { return static_cast<float>(value); });
    if (block.is_latent()) {
      JoinPairs(rope_in_pairs, block.rope_width(), tensor.As<float>() + block.latent_width());
    }
    max_keys.push_back(std::move(tensor));
  }
  return max_keys;
}

std::vector<Tensor> MeasureMaxKeys(const CalibrationContext& context) {
  const KvGeometry geometry = context.model->kv_geometry();
  CheckHasKeys(geometry);
  CheckDevice(*context.model);
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
  return MaxKeysFrom(geometry, RopeInPairs(*context.model), LoopOverSamples(context, step));
}

}  // namespace pmkvq
