#include "pmkvq/research/calib/device_steps.h"

#include <algorithm>
#include <array>
#include <memory>

#include "pmkvq/kernels/kv_quant/sequence_quant.h"
#include "pmkvq/model/device/device_profile.h"
#include "pmkvq/research/calib/block_measures.h"
#include "pmkvq/tensor/device/buffer.h"

namespace pmkvq {
namespace {

using Precision = DeviceProfile::Precision;

// What the processes share: a profile, and memory that the values are gathered in.
class DeviceStep {
 public:
  DeviceStep(const Model& model, size_t num_values, size_t value_bytes)
      : geometry_(UniformOf(model.kv_geometry())),
        profile_(model),
        num_values_(num_values),
        values_(model.device(), num_values * value_bytes) {}

 protected:
  // largest [L, Hkv, D/2]
  void LargestKeysOf(const DeviceBlockStates& states, float* largest) {
    FindLargestKeys(states.k, states.num_tokens, geometry_.num_kv_heads, geometry_.head_dim,
                    largest + states.layer * geometry_.kv_dim() / 2, profile_.stream());
  }
  template <class T>
  T* values() const {
    return reinterpret_cast<T*>(values_.data());
  }
  template <class T>
  std::vector<double> Download() {
    std::vector<T> host(num_values_);
    CopyToHost(profile_.stream(), host.data(), values_.data(), values_.num_bytes());
    profile_.stream().Synchronize();
    return {host.begin(), host.end()};
  }

  UniformKvGeometry geometry_;
  DeviceProfile profile_;
  size_t num_values_;
  Buffer values_;
};

class MaxKeysStep : public DeviceStep {
 public:
  explicit MaxKeysStep(const Model& model)
      : DeviceStep(model, NumMaxKeys(UniformOf(model.kv_geometry())), sizeof(float)) {}

  std::vector<double> Run(std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    FillOnDevice(profile_.stream(), values_.data(), 0, values_.num_bytes());
    profile_.Forward(
        tokens, positions, Precision::kExact, /*with_loss=*/false,
        [&](const DeviceBlockStates& states) { LargestKeysOf(states, values<float>()); });
    return Download<float>();
  }
};

class SensitivityStep : public DeviceStep {
 public:
  SensitivityStep(const Model& model, bool with_keys)
      : DeviceStep(model, NumValues(UniformOf(model.kv_geometry())), sizeof(double)),
        parts_(model.device(),
               static_cast<size_t>(kNumDamageWidths * kDamageParts) * sizeof(double)) {
    if (!with_keys) return;
    keys_ = std::make_unique<Buffer>(model.device(), NumMaxKeys(geometry_) * sizeof(float));
  }

  std::vector<double> Run(std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    if (keys_ != nullptr) FillOnDevice(profile_.stream(), keys_->data(), 0, keys_->num_bytes());
    profile_.ForwardBackward(tokens, positions, nullptr,
                             [&](const DeviceBlockStates& states) { Measure(states); });
    // On the device [L][side][width].
    const std::vector<double> sums = Download<double>();
    std::vector<double> ordered(num_values_);
    const int64_t per_block = 2 * kNumDamageWidths;
    const double count = static_cast<double>(std::ssize(tokens) * geometry_.kv_dim());
    for (int64_t layer = 0; layer < geometry_.num_layers; ++layer) {
      for (int64_t i = 0; i < per_block; ++i) {
        ordered[static_cast<size_t>(i * geometry_.num_layers + layer)] =
            sums[static_cast<size_t>(layer * per_block + i)] / count;
      }
    }
    if (keys_ != nullptr) {
      std::vector<float> keys(keys_->num_bytes() / sizeof(float));
      CopyToHost(profile_.stream(), keys.data(), keys_->data(), keys_->num_bytes());
      profile_.stream().Synchronize();
      ordered.insert(ordered.end(), keys.begin(), keys.end());
    }
    return ordered;
  }

 private:
  static size_t NumValues(const UniformKvGeometry& geometry) {
    return static_cast<size_t>(2 * kNumDamageWidths * geometry.num_layers);
  }
  void Measure(const DeviceBlockStates& states) {
    if (keys_ != nullptr) LargestKeysOf(states, reinterpret_cast<float*>(keys_->data()));
    const int64_t groups = states.num_tokens * geometry_.kv_dim() / geometry_.group();
    auto* const parts = reinterpret_cast<double*>(parts_.data());
    for (const int64_t side : {0, 1}) {
      MeasureDamage(geometry_.group(), side == 0 ? states.k : states.v,
                    side == 0 ? states.dk : states.dv, groups, parts, profile_.stream());
      SumDoubles(parts, kDamageParts, kDamageParts, kNumDamageWidths,
                 values<double>() + (2 * states.layer + side) * kNumDamageWidths,
                 profile_.stream());
    }
  }

  Buffer parts_;
  std::unique_ptr<Buffer> keys_;  // float [L, Hkv, D/2]
};

// Rows that are projected at once.
constexpr int64_t kProjectedRows = int64_t{1} << 16;

class ScaleErrorStep : public DeviceStep {
 public:
  ScaleErrorStep(const Model& model, const RepScaleOptions& options,
                 const std::vector<float>& scales)
      : DeviceStep(model,
                   scales.size() / static_cast<size_t>(UniformOf(model.kv_geometry()).kv_dim() / 2),
                   sizeof(double)),
        options_(options),
        hidden_size_(model.config().hidden_size),
        precision_(std::max(options.k_bits, options.v_bits) <= 4 ? Precision::kFast
                                                                 : Precision::kExact),
        scales_(model.device(), scales.size() * sizeof(float)) {
    CopyToDevice(profile_.stream(), scales_.data(), scales.data(), scales_.num_bytes());
    profile_.stream().Synchronize();
  }

  std::vector<double> Run(std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    profile_.Forward(tokens, positions, precision_, /*with_loss=*/false,
                     [&](const DeviceBlockStates& states) { Measure(states); });
    std::vector<double> losses = Download<double>();
    for (double& loss : losses) loss /= static_cast<double>(std::ssize(tokens) * hidden_size_);
    return losses;
  }

 private:
  void Resize(const DeviceBlockStates& states, DType type) {
    if (states.rows == rows_) return;
    rows_ = states.rows;
    const DeviceId device = scales_.device();
    points_at_once_ = std::clamp<int64_t>(kProjectedRows / rows_, 1, options_.grid);
    const auto take = [&](std::unique_ptr<Buffer>& buffer, int64_t values, size_t size) {
      buffer.reset();
      buffer = std::make_unique<Buffer>(device, static_cast<size_t>(values) * size);
    };
    const int64_t points_rows = points_at_once_ * rows_;
    const int64_t q_dim = geometry_.num_heads * geometry_.head_dim;
    take(keys_, points_rows * geometry_.kv_dim(), SizeOf(type));
    take(quantized_values_, rows_ * geometry_.kv_dim(), SizeOf(type));
    take(out_, rows_ * q_dim, sizeof(float));
    take(inverses_, rows_ * geometry_.num_heads, sizeof(float));
    take(errors_, points_rows * q_dim, sizeof(float));
    take(error_scales_, points_rows, sizeof(float));
    take(projected_, points_rows * hidden_size_, sizeof(float));
    take(squares_, points_rows, sizeof(double));
  }

  // The projection is linear: only the difference of the two attentions goes through it. Scaled
  // keys are multiplied with their scales again, which leaves queries as they are.
  void Measure(const DeviceBlockStates& states) {
    const bool is_f16 = states.q16 != nullptr;
    const DType type = is_f16 ? DType::kF16 : DType::kF32;
    Resize(states, type);
    Stream& stream = profile_.stream();
    ScaledQuantization quantization;
    quantization.x = states.v;
    quantization.rows = rows_;
    quantization.heads = geometry_.num_kv_heads;
    quantization.dim = geometry_.head_dim;
    quantization.group = geometry_.group();
    quantization.bits = options_.v_bits;
    quantization.out_type = type;
    quantization.out = quantized_values_->data();
    QuantizeScaled(quantization, stream);
    quantization.x = states.k;
    quantization.bits = options_.k_bits;
    quantization.out = keys_->data();
    const int64_t point_scales = geometry_.kv_dim() / 2;
    for (int64_t first = 0; first < options_.grid; first += points_at_once_) {
      const int64_t points = std::min(points_at_once_, options_.grid - first);
      quantization.points = points;
      quantization.scales = reinterpret_cast<const float*>(scales_.data()) +
                            (states.layer * options_.grid + first) * point_scales;
      QuantizeScaled(quantization, stream);
      for (int64_t point = 0; point < points; ++point) MeasurePoint(states, type, point);
      auto* const projected = reinterpret_cast<float*>(projected_->data());
      auto* const squares = reinterpret_cast<double*>(squares_->data());
      const ScaledRows errors = ErrorsOf(states.layer, 0, points * rows_);
      profile_.ProjectAttention(states.layer, errors, points * rows_, projected);
      SumSquaresOfRows({projected, errors.scales}, points * rows_, hidden_size_, squares, stream);
      SumDoubles(squares, states.num_tokens, rows_, points,
                 values<double>() + states.layer * options_.grid + first, stream);
    }
  }

  ScaledRows ErrorsOf(int64_t layer, int64_t first_row, int64_t rows) const {
    const DType type = profile_.ProjectionType(layer);
    ScaledRows errors;
    errors.type = type;
    errors.data =
        errors_->data() +
        static_cast<size_t>(first_row * geometry_.num_heads * geometry_.head_dim) * SizeOf(type);
    errors.part_rows = rows;
    errors.scales = reinterpret_cast<float*>(error_scales_->data()) + first_row;
    return errors;
  }

  void MeasurePoint(const DeviceBlockStates& states, DType type, int64_t point) {
    Stream& stream = profile_.stream();
    auto* const out = reinterpret_cast<float*>(out_->data());
    auto* const inverses = reinterpret_cast<float*>(inverses_->data());
    const std::byte* const keys =
        keys_->data() + static_cast<size_t>(point * rows_ * geometry_.kv_dim()) * SizeOf(type);
    GroupedHeads attended{out, nullptr};
    if (type == DType::kF16) {
      profile_.attention().ForwardF16(states.q16, keys, quantized_values_->data(), out, inverses,
                                      profile_.gemm(), stream);
      attended.inverses = inverses;
    } else {
      profile_.attention().Forward(states.q, reinterpret_cast<const float*>(keys),
                                   reinterpret_cast<const float*>(quantized_values_->data()), out,
                                   profile_.gemm(), stream);
    }
    GatherHeads(profile_.head_shape(), attended, states.attention,
                ErrorsOf(states.layer, point * rows_, rows_), stream);
  }

  RepScaleOptions options_;
  int64_t hidden_size_;
  Precision precision_;
  Buffer scales_;
  int64_t rows_ = 0;
  int64_t points_at_once_ = 1;
  std::unique_ptr<Buffer> keys_;              // [points, rows, Hkv, D]
  std::unique_ptr<Buffer> quantized_values_;  // [rows, Hkv, D]
  std::unique_ptr<Buffer> out_;               // [Hkv, rows, G, D]
  std::unique_ptr<Buffer> inverses_;          // [Hkv, rows, G]
  std::unique_ptr<Buffer> errors_;            // Operand [points * rows, H D]
  std::unique_ptr<Buffer> error_scales_;      // [points * rows]
  std::unique_ptr<Buffer> projected_;         // [points * rows, E]
  std::unique_ptr<Buffer> squares_;           // double [points * rows]
};

template <class Step, class... Arguments>
SampleProcess ProcessOf(const Arguments&... arguments) {
  return [step = std::make_shared<Step>(arguments...)](std::span<const int32_t> tokens,
                                                       std::span<const int64_t> positions) {
    return step->Run(tokens, positions);
  };
}

}  // namespace

SampleProcess MaxKeysOnDevice(const Model& model) { return ProcessOf<MaxKeysStep>(model); }
SampleProcess SensitivityOnDevice(const Model& model, bool with_keys) {
  return ProcessOf<SensitivityStep>(model, with_keys);
}
SampleProcess ScaleErrorsOnDevice(const Model& model, const RepScaleOptions& options,
                                  const std::vector<float>& scales) {
  return ProcessOf<ScaleErrorStep>(model, options, scales);
}

}  // namespace pmkvq
