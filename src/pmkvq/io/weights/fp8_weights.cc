#include "pmkvq/io/weights/fp8_weights.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <string>

#include "pmkvq/base/error.h"
#include "pmkvq/base/parallel.h"

namespace pmkvq {
namespace {

constexpr std::string_view kType = "F8_E4M3";
constexpr std::string_view kWeight = ".weight";
// By their names: what the weight is multiplied with, though one of them says "inverse".
constexpr std::string_view kScaleNames[] = {".weight_scale_inv", ".weight_scale"};
// Beside weights of a block, and not used: activations and the cache are not quantised so.
constexpr std::string_view kOtherNames[] = {".input_scale", ".activation_scale", ".k_scale",
                                            ".v_scale", ".output_scale"};

std::array<float, 256> CodeValues() {
  std::array<float, 256> values{};
  for (int code = 0; code < 256; ++code) {
    const int exponent = (code >> 3) & 15;
    const int mantissa = code & 7;
    float value = exponent == 0
                      ? std::ldexp(static_cast<float>(mantissa), -9)
                      : std::ldexp(1.0f + static_cast<float>(mantissa) / 8.0f, exponent - 7);
    if ((code & 0x7f) == 0x7f) value = NAN;
    values[static_cast<size_t>(code)] = code >= 128 ? -value : value;
  }
  return values;
}

[[noreturn]] void Fail(const StoredWeight& tensor, const std::string& found_expected) {
  throw InvalidInput(tensor.file,
                     fmt::format("tensor '{}': {}", tensor.stored_name, found_expected));
}

float FloatAt(const StoredWeight& tensor, int64_t index) {
  switch (*tensor.format) {
    case WeightFormat::kF32:
      return reinterpret_cast<const float*>(tensor.data)[index];
    case WeightFormat::kF16:
      return ToFloat(reinterpret_cast<const F16*>(tensor.data)[index]);
    default:
      return ToFloat(reinterpret_cast<const BF16*>(tensor.data)[index]);
  }
}

// The grid that the shape of the scales says; values are filled in by the caller.
Fp8Scales GridOf(const StoredWeight& weight, const StoredWeight& scale, const Fp8Format& format) {
  const int64_t rows = weight.shape[0];
  const int64_t cols = weight.shape[1];
  const Shape& shape = scale.shape;
  if (NumElements(shape) == 1 && shape.size() <= 2) return {{}, 1, 1, rows, cols};
  if (shape == Shape{rows} || shape == Shape{rows, 1}) return {{}, rows, 1, 1, cols};
  std::string blocks;
  if (format.block_rows > 0) {
    const int64_t grid_rows = (rows + format.block_rows - 1) / format.block_rows;
    const int64_t grid_cols = (cols + format.block_cols - 1) / format.block_cols;
    if (shape == Shape{grid_rows, grid_cols}) {
      return {{}, grid_rows, grid_cols, format.block_rows, format.block_cols};
    }
    blocks = fmt::format(", or {} for blocks of {} x {}", ToString(Shape{grid_rows, grid_cols}),
                         format.block_rows, format.block_cols);
  }
  Fail(scale, fmt::format("found scales {} for weights {}, expected [1] or {}{}", ToString(shape),
                          ToString(weight.shape), ToString(Shape{rows, 1}), blocks));
}

Fp8Scales ReadScales(const StoredWeight& weight, const StoredWeight& scale,
                     const Fp8Format& format) {
  if (!scale.format.has_value()) {
    Fail(scale, fmt::format("found scales of type {}, expected F32, F16 or BF16", scale.type));
  }
  Fp8Scales scales = GridOf(weight, scale, format);
  const int64_t count = scales.rows * scales.cols;
  scales.values.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    const float value = FloatAt(scale, i);
    if (!(value > 0) || std::isinf(value)) {
      Fail(scale, fmt::format("scale {}: found {}, expected a finite number above 0", i, value));
    }
    scales.values[static_cast<size_t>(i)] = value;
  }
  return scales;
}

}  // namespace

void AttachFp8Scales(const Fp8Format& format, std::vector<StoredWeight>& tensors) {
  std::map<std::string_view, StoredWeight*> by_name;
  for (StoredWeight& tensor : tensors) by_name[tensor.stored_name] = &tensor;
  for (StoredWeight& tensor : tensors) {
    for (const std::string_view suffix : kOtherNames) {
      if (std::string_view(tensor.stored_name).ends_with(suffix)) tensor.of_block = false;
    }
    for (const std::string_view suffix : kScaleNames) {
      if (std::string_view(tensor.stored_name).ends_with(suffix)) tensor.of_block = false;
    }
  }
  for (StoredWeight& tensor : tensors) {
    if (tensor.type != kType || tensor.data == nullptr || tensor.shape.size() != 2) continue;
    std::string_view stem = tensor.stored_name;
    if (!stem.ends_with(kWeight)) continue;
    stem.remove_suffix(kWeight.size());
    const StoredWeight* scale = nullptr;
    for (const std::string_view suffix : kScaleNames) {
      const auto found = by_name.find(std::string(stem) + std::string(suffix));
      if (found != by_name.end()) scale = found->second;
    }
    if (scale == nullptr) {
      Fail(tensor, fmt::format("found {} without scales, expected {}{} or {}{} beside it", kType,
                               stem, kScaleNames[0], stem, kScaleNames[1]));
    }
    tensor.fp8 = std::make_shared<const Fp8Scales>(ReadScales(tensor, *scale, format));
    tensor.format = WeightFormat::kBF16;
    tensor.of_block = tensor.name.starts_with("blocks.");
  }
}

void ExpandFp8(const StoredWeight& weight, int num_threads, BF16* out) {
  static const std::array<float, 256> kValues = CodeValues();
  const Fp8Scales& scales = *weight.fp8;
  const int64_t cols = weight.shape[1];
  const auto* codes = reinterpret_cast<const uint8_t*>(weight.data);
  ParallelFor(num_threads, weight.shape[0], [&](int64_t row, int /*worker*/) {
    const uint8_t* in = codes + row * cols;
    const float* scale = scales.values.data() + row / scales.block_rows * scales.cols;
    for (int64_t begin = 0; begin < cols; begin += scales.block_cols, ++scale) {
      const int64_t end = std::min(cols, begin + scales.block_cols);
      for (int64_t i = begin; i < end; ++i) {
        const float value = kValues[in[i]];
        if (std::isnan(value)) {
          Fail(weight, fmt::format("row {}, column {}: found NaN, expected a number", row, i));
        }
        out[row * cols + i] = ToBF16(value * *scale);
      }
    }
  });
}

}  // namespace pmkvq
