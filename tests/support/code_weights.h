// Random weights of the formats whose codes devices multiply (kernels/gemm/device_codes.h).
#pragma once

#include <cstdint>
#include <string>

#include "pmkvq/base/float16.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "support/random_blocks.h"

namespace pmkvq::testing_support {

inline constexpr WeightFormat kCodeFormats[] = {
    WeightFormat::kQ8,   WeightFormat::kQ8_0,   WeightFormat::kQ4_0,  WeightFormat::kQ4_1,
    WeightFormat::kQ5_0, WeightFormat::kQ5_1,   WeightFormat::kQ4_K,  WeightFormat::kQ5_K,
    WeightFormat::kQ6_K, WeightFormat::kIQ4_NL, WeightFormat::kIQ4_XS};

struct CodeWeight {
  std::string data;
  WeightFormat format = WeightFormat::kQ8;
  int64_t rows = 0;
  int64_t cols = 0;

  WeightView view() const {
    return {reinterpret_cast<const std::byte*>(data.data()), format, rows, cols};
  }
};

// `cols` are whole blocks; of Q8 any: what fills up its last group is zero.
inline CodeWeight RandomCodeWeight(WeightFormat format, int64_t rows, int64_t cols, uint64_t seed) {
  Random random(seed);
  CodeWeight weight{{}, format, rows, cols};
  if (format != WeightFormat::kQ8) {
    weight.data = RandomBlocks(format, rows * cols, random);
    return weight;
  }
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t first = 0; first < cols; first += 32) {
      for (int64_t i = first; i < first + 32; ++i) {
        const auto code = static_cast<int>(random.Below(255)) - 127;
        weight.data += static_cast<char>(i < cols ? code : 0);
      }
      AppendTo(weight.data, ToBF16(static_cast<float>(0.002 * (0.25 + random.Uniform()))));
    }
  }
  return weight;
}

}  // namespace pmkvq::testing_support
