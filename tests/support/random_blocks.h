// Random weights in the formats of tensor/weight_format.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/base/random.h"
#include "pmkvq/tensor/weight_format.h"

namespace pmkvq::testing_support {

template <class T>
void AppendTo(std::string& data, T value) {
  data.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

// Where a block has its F16 scales and factors of minima, and the largest factor that a scale has
// in a weight.
struct BlockScales {
  double largest = 0;
  std::vector<size_t> at;
  std::vector<size_t> minima;
};

inline const BlockScales& ScalesOf(WeightFormat format) {
  static const std::map<WeightFormat, BlockScales> kScales = {
      {WeightFormat::kQ4_0, {8, {0}, {}}},     {WeightFormat::kQ4_1, {15, {0}, {2}}},
      {WeightFormat::kQ5_0, {16, {0}, {}}},    {WeightFormat::kQ5_1, {31, {0}, {2}}},
      {WeightFormat::kQ8_0, {128, {0}, {}}},   {WeightFormat::kQ2_K, {45, {80}, {82}}},
      {WeightFormat::kQ3_K, {128, {108}, {}}}, {WeightFormat::kQ4_K, {945, {0}, {2}}},
      {WeightFormat::kQ5_K, {1953, {0}, {2}}}, {WeightFormat::kQ6_K, {4096, {208}, {}}},
      {WeightFormat::kIQ4_NL, {127, {0}, {}}}, {WeightFormat::kIQ4_XS, {4064, {0}, {}}}};
  return kScales.at(format);
}

// Weights up to about 0.25, and minima of as much. Not of Q8.
inline std::string RandomBlocks(WeightFormat format, int64_t num_values, Random& random) {
  const WeightLayout& layout = LayoutOf(format);
  std::string data;
  for (int64_t block = 0; block < num_values / layout.block_values; ++block) {
    const size_t begin = data.size();
    if (layout.block_values == 1) {
      const auto value = static_cast<float>(0.2 * (2 * random.Uniform() - 1));
      if (format == WeightFormat::kF32) AppendTo(data, value);
      if (format == WeightFormat::kF16) AppendTo(data, ToF16(value));
      if (format == WeightFormat::kBF16) AppendTo(data, ToBF16(value));
      continue;
    }
    for (int64_t i = 0; i < layout.block_bytes; ++i) data += static_cast<char>(random.Below(256));
    if (format == WeightFormat::kMXFP4) {
      data[begin] = static_cast<char>(120 + random.Below(3));
      continue;
    }
    const BlockScales& scales = ScalesOf(format);
    const auto put = [&](size_t at, double value) {
      const F16 half = ToF16(static_cast<float>(value));
      std::memcpy(data.data() + begin + at, &half, sizeof(half));
    };
    const double spread = 0.25 * (0.25 + 0.75 * random.Uniform());
    for (const size_t at : scales.at) put(at, spread / scales.largest);
    const bool is_k = layout.block_values == 256;
    for (const size_t at : scales.minima) put(at, is_k ? spread / 63 : -spread / 2);
  }
  return data;
}

}  // namespace pmkvq::testing_support
