#include "pmkvq/kernels/gemm/weight_q4.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

constexpr int64_t kGroupBytes = 20;

WeightView ViewOf(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return {reinterpret_cast<const std::byte*>(values.data()), WeightFormat::kF32, rows, cols};
}

Q4Weight Quantized(const WeightView& weight, int threads = 1) {
  Q4Weight out;
  EXPECT_TRUE(QuantizeWeightToQ4(weight, threads, out));
  return out;
}

// Sums of normal draws would do, too: a bell, cut off nowhere.
std::vector<float> BellShaped(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) {
    double sum = 0;
    for (int i = 0; i < 6; ++i) sum += random.Uniform() - 0.5;
    value = static_cast<float>(0.03 * sum);
  }
  return values;
}

float HalfAt(const Q4Weight& weight, int64_t byte) {
  F16 half;
  std::memcpy(&half, weight.data.data() + byte, sizeof(half));
  return ToFloat(half);
}
int CodeAt(const Q4Weight& weight, int64_t group, int64_t i) {
  const auto byte = static_cast<int>(weight.data[static_cast<size_t>(group * 20 + 4 + i % 16)]);
  return i < 16 ? byte & 15 : byte >> 4;
}

// All codes from 0 to 15 twice, scale 0.5, minimum -2: held exactly.
TEST(WeightQ4, HoldsWhatItCanHold) {
  std::vector<float> values(32);
  for (size_t i = 0; i < 32; ++i) values[i] = -2.0f + 0.5f * static_cast<float>(i % 16);
  const Q4Weight weight = Quantized(ViewOf(values, 1, 32));
  ASSERT_EQ(weight.data.size(), 20u);
  EXPECT_EQ(HalfAt(weight, 0), 0.5f);
  EXPECT_EQ(HalfAt(weight, 2), -2.0f);
  for (int64_t i = 0; i < 32; ++i) EXPECT_EQ(CodeAt(weight, 0, i), i % 16);
  std::vector<float> row(32);
  ExpandRow(weight.view(), 0, row.data());
  EXPECT_EQ(row, values);
}

TEST(WeightQ4, EqualWeightsAndShortRows) {
  const std::vector<float> values(3 * 33, 0.75f);
  const Q4Weight weight = Quantized(ViewOf(values, 3, 33));
  EXPECT_EQ(weight.data.size(), 3u * 2 * kGroupBytes);
  std::vector<float> row(33);
  for (int64_t r = 0; r < 3; ++r) {
    ExpandRow(weight.view(), r, row.data());
    for (const float value : row) EXPECT_EQ(value, 0.75f);
  }
}

// Against rounding between the least and the greatest weight, in double: the error of no group is
// greater (but for the rounding of both sums), that of all is smaller, and codes are the nearest.
TEST(WeightQ4, ErrorIsBelowThatOfPlainRounding) {
  constexpr int64_t kRows = 40;
  constexpr int64_t kCols = 320;
  const std::vector<float> values = BellShaped(kRows * kCols, 3);
  const Q4Weight weight = Quantized(ViewOf(values, kRows, kCols));
  double all = 0;
  double all_plain = 0;
  for (int64_t group = 0; group < kRows * kCols / 32; ++group) {
    const float* w = values.data() + group * 32;
    const double scale = static_cast<double>(HalfAt(weight, group * kGroupBytes));
    const double minimum = static_cast<double>(HalfAt(weight, group * kGroupBytes + 2));
    const double least = static_cast<double>(*std::min_element(w, w + 32));
    const double greatest = static_cast<double>(*std::max_element(w, w + 32));
    const auto plain_scale =
        static_cast<double>(ToFloat(ToF16(static_cast<float>((greatest - least) / 15))));
    const auto plain_minimum = static_cast<double>(ToFloat(ToF16(static_cast<float>(least))));
    const auto nearest = [](double value, double s, double m) {
      return std::clamp(std::floor((value - m) / s + 0.5), 0.0, 15.0);
    };
    double error = 0;
    double plain = 0;
    for (int64_t i = 0; i < 32; ++i) {
      const auto value = static_cast<double>(w[i]);
      const double code = CodeAt(weight, group, i);
      // Half a code, and the roundings of the quotient in float.
      ASSERT_LE(std::abs(code - std::clamp((value - minimum) / scale, 0.0, 15.0)), 0.5 + 1e-5);
      error += std::pow(scale * code + minimum - value, 2);
      plain += std::pow(
          plain_scale * nearest(value, plain_scale, plain_minimum) + plain_minimum - value, 2);
    }
    EXPECT_LE(error, plain * (1 + 1e-5)) << group;
    all += error;
    all_plain += plain;
  }
  EXPECT_LT(all, 0.97 * all_plain);
  EXPECT_GT(all, 0.5 * all_plain);
}

TEST(WeightQ4, DoesNotDependOnThreadsOrTheOrderOfStoredRows) {
  constexpr int64_t kRows = 200;
  constexpr int64_t kCols = 96;
  const std::vector<float> values = BellShaped(kRows * kCols, 4);
  const Q4Weight expected = Quantized(ViewOf(values, kRows, kCols));
  EXPECT_EQ(Quantized(ViewOf(values, kRows, kCols), 3).data, expected.data);
  WeightView paired = ViewOf(values, kRows, kCols);
  paired.pair_rows = 8;
  const Q4Weight made = Quantized(paired, 2);
  const size_t row_bytes = 3 * kGroupBytes;
  for (int64_t row = 0; row < kRows; ++row) {
    EXPECT_EQ(
        std::memcmp(made.data.data() + static_cast<size_t>(row) * row_bytes,
                    expected.data.data() + static_cast<size_t>(paired.StoredRow(row)) * row_bytes,
                    row_bytes),
        0)
        << row;
  }
}

TEST(WeightQ4, RefusesWhatF16CannotHold) {
  for (const float bad : {std::numeric_limits<float>::infinity(),
                          std::numeric_limits<float>::quiet_NaN(), -70000.0f, 1.2e6f}) {
    std::vector<float> values(64, 0.5f);
    values[40] = bad;
    Q4Weight out;
    EXPECT_FALSE(QuantizeWeightToQ4(ViewOf(values, 1, 64), 1, out)) << bad;
  }
}

}  // namespace
}  // namespace pmkvq
