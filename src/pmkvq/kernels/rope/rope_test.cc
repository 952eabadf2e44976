#include "pmkvq/kernels/rope/rope.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <utility>
#include <vector>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

using Scaling = RopeParams::Scaling;

template <class Real>
std::vector<Real> RandomReals(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<Real> values(static_cast<size_t>(count));
  for (Real& value : values) value = static_cast<Real>(random.Uniform() * 2.0 - 1.0);
  return values;
}

// Expected frequencies come from the published formulas evaluated in double. The table follows the
// float arithmetic of the reference: up to six roundings of a half-ulp (2^-24), of which those in
// the blending factor are amplified by at most the ratio of the blended values (8).
void ExpectFrequencies(const RopeParams& params,
                       const std::vector<std::pair<size_t, double>>& expected) {
  const RopeTable table(params);
  ASSERT_EQ(table.head_dim(), params.head_dim);
  for (const auto& [i, value] : expected) {
    EXPECT_NEAR(static_cast<double>(table.frequencies()[i]), value, 1e-6 * value) << "pair " << i;
  }
}

TEST(RopeTest, DefaultAndLinearFrequencies) {
  RopeParams params;
  params.head_dim = 8;
  ExpectFrequencies(params, {{0, 1.0}, {1, 0.1}, {2, 0.01}, {3, 0.001}});
  params.scaling = Scaling::kLinear;
  params.factor = 4.0;
  ExpectFrequencies(params, {{0, 0.25}, {1, 0.025}, {2, 0.0025}, {3, 0.00025}});
}

// Llama-3.1: wavelengths below 8192 / 4 (pairs up to 28) are kept, those above 8192 / 1 (from 35
// on) are divided by 8.
TEST(RopeTest, Llama3Frequencies) {
  RopeParams params;
  params.head_dim = 128;
  params.theta = 500000.0;
  params.scaling = Scaling::kLlama3;
  params.factor = 8.0;
  params.original_max_position = 8192;
  ExpectFrequencies(params, {{0, 1.0},
                             {10, 0.128687373},
                             {28, 0.00321144599},
                             {29, 0.00216657076},
                             {32, 0.000524846161},
                             {34, 0.000178507813},
                             {35, 9.55621235e-05},
                             {63, 3.06892599e-07}});
}

// Qwen2.5 with its yarn settings: pairs up to 23 are kept, from 40 on divided by 4.
TEST(RopeTest, YarnFrequencies) {
  RopeParams params;
  params.head_dim = 128;
  params.theta = 1e6;
  params.scaling = Scaling::kYarn;
  params.factor = 4.0;
  params.original_max_position = 32768;
  params.attention_factor = 1.25;
  ExpectFrequencies(params, {{0, 1.0},
                             {23, 0.00697830585},
                             {24, 0.00537532149},
                             {30, 0.00106436098},
                             {39, 6.49039432e-05},
                             {40, 4.44569853e-05},
                             {63, 3.1023444e-07}});
  // Without truncation the ramp runs from 23.5959 to 39.6509.
  params.truncate = false;
  ExpectFrequencies(params, {{23, 0.00697830585},
                             {24, 0.00551727048},
                             {30, 0.00107923774},
                             {39, 6.18780681e-05},
                             {40, 4.44569853e-05}});
  EXPECT_EQ(RopeTable(params).attention_factor(), 1.25);
  params.scaling = Scaling::kDefault;
  EXPECT_EQ(RopeTable(params).attention_factor(), 1.0);
}

// A range that collapses to a point must not divide by zero: below it all pairs are kept.
TEST(RopeTest, YarnWithAnEmptyRamp) {
  RopeParams params;
  params.head_dim = 8;
  params.scaling = Scaling::kYarn;
  params.factor = 2.0;
  params.original_max_position = 4;  // Not one whole turn: both ends are clamped to pair 0.
  params.beta_fast = 2.0;
  params.beta_slow = 1.0;
  ExpectFrequencies(params, {{0, 1.0}, {1, 0.05}, {2, 0.005}, {3, 0.0005}});
}

RopeTable TableForRotation(double attention_factor = 1.5) {
  RopeParams params;
  params.head_dim = 8;
  params.scaling = Scaling::kYarn;
  params.factor = 2.0;
  params.original_max_position = 64;
  params.attention_factor = attention_factor;
  return RopeTable(params);
}

template <class Real>
void CheckRotation(const float* scales, double tolerance) {
  const RopeTable table = TableForRotation();
  const int64_t positions[] = {0, 3, 1000};
  constexpr int64_t kHeads = 2;
  const auto x = RandomReals<Real>(3 * kHeads * 8, 1);
  std::vector<Real> y = x;
  ApplyRope(table, positions, 3, kHeads, scales, y.data(), 1);
  for (int64_t row = 0; row < 3; ++row) {
    for (int64_t head = 0; head < kHeads; ++head) {
      for (int64_t i = 0; i < 4; ++i) {
        const size_t low = static_cast<size_t>((row * kHeads + head) * 8 + i);
        const float frequency = table.frequencies()[static_cast<size_t>(i)];
        // The angle is rounded to Real before cos and sin, as the reference does.
        const Real angle = static_cast<Real>(positions[row]) * static_cast<Real>(frequency);
        const double c = std::cos(static_cast<double>(angle)) * 1.5;
        const double s = std::sin(static_cast<double>(angle)) * 1.5;
        const double a = static_cast<double>(x[low]);
        const double b = static_cast<double>(x[low + 4]);
        const double scale = scales == nullptr ? 1.0 : static_cast<double>(scales[head * 4 + i]);
        EXPECT_NEAR(static_cast<double>(y[low]), (a * c - b * s) * scale, tolerance * scale);
        EXPECT_NEAR(static_cast<double>(y[low + 4]), (b * c + a * s) * scale, tolerance * scale);
      }
    }
  }
}

TEST(RopeTest, RotatesPairs) {
  // Magnitudes stay below 2 * 1.5; cos, factor, product, sum, scale: 5 half-ulps.
  const float scales[] = {1.0f, 2.0f, 0.5f, 3.0f, 0.1f, 7.0f, 1.25f, 4.0f};
  CheckRotation<float>(nullptr, 5 * 3.0 * 0x1p-24);
  CheckRotation<float>(scales, 5 * 3.0 * 0x1p-24);
  CheckRotation<double>(nullptr, 5 * 3.0 * 0x1p-53);
  CheckRotation<double>(scales, 5 * 3.0 * 0x1p-53);
}

TEST(RopeTest, ARightAngleByHand) {
  RopeParams params;
  params.head_dim = 2;
  const RopeTable table(params);
  const int64_t position = 11;  // 11 rad = 7 * pi / 2 + 0.00443.
  double x[] = {1.0, 0.0};
  ApplyRope(table, &position, 1, 1, nullptr, x, 1);
  EXPECT_NEAR(x[0], 0.0044257, 1e-7);
  EXPECT_NEAR(x[1], -0.9999902, 1e-7);
}

// Scaling is applied to the rotated values, so a scale of s on q and 1 / s on k cancels.
TEST(RopeTest, ScalesOfQueryAndKeyCancel) {
  const RopeTable table = TableForRotation();
  const int64_t positions[] = {5};
  const float up[] = {2.0f, 4.0f, 0.5f, 8.0f};
  const float down[] = {0.5f, 0.25f, 2.0f, 0.125f};
  const auto q = RandomReals<float>(8, 2);
  const auto k = RandomReals<float>(8, 3);
  const auto dot = [&](const float* q_scales, const float* k_scales) {
    std::vector<float> rotated_q = q;
    std::vector<float> rotated_k = k;
    ApplyRope(table, positions, 1, 1, q_scales, rotated_q.data(), 1);
    ApplyRope(table, positions, 1, 1, k_scales, rotated_k.data(), 1);
    float sum = 0.0f;
    for (size_t i = 0; i < 8; ++i) sum += rotated_q[i] * rotated_k[i];
    return sum;
  };
  EXPECT_EQ(dot(up, down), dot(nullptr, nullptr));  // Powers of two: exact.
}

TEST(RopeTest, BitsDependNeitherOnRowsNorOnThreads) {
  RopeParams params;
  params.head_dim = 64;
  const RopeTable table(params);
  constexpr int64_t kRows = 150;
  constexpr int64_t kHeads = 5;
  const auto x = RandomReals<float>(kRows * kHeads * 64, 4);
  std::vector<int64_t> positions;
  for (int64_t t = 0; t < kRows; ++t) positions.push_back(t * 37);
  std::vector<float> alone = x;
  for (int64_t t = 0; t < kRows; ++t) {
    ApplyRope(table, &positions[static_cast<size_t>(t)], 1, kHeads, nullptr,
              alone.data() + t * kHeads * 64, 1);
  }
  for (const int threads : {1, 2, 3}) {
    std::vector<float> y = x;
    ApplyRope(table, positions.data(), kRows, kHeads, nullptr, y.data(), threads);
    EXPECT_EQ(std::memcmp(y.data(), alone.data(), y.size() * sizeof(float)), 0);
  }
}

// The rotation is linear, so central differences are exact up to rounding.
TEST(RopeTest, GradientMatchesFiniteDifferences) {
  const RopeTable table = TableForRotation(1.3);
  const int64_t positions[] = {2, 77};
  constexpr int64_t kHeads = 3;
  auto x = RandomReals<double>(2 * kHeads * 8, 5);
  const auto dy = RandomReals<double>(2 * kHeads * 8, 6);
  const auto loss = [&] {
    std::vector<double> y = x;
    ApplyRope(table, positions, 2, kHeads, nullptr, y.data(), 1);
    double sum = 0.0;
    for (size_t i = 0; i < y.size(); ++i) sum += dy[i] * y[i];
    return sum;
  };
  std::vector<double> dx = dy;
  ApplyRopeGrad(table, positions, 2, kHeads, dx.data(), 2);
  for (size_t i = 0; i < x.size(); ++i) {
    const double saved = x[i];
    x[i] = saved + 0.5;
    const double above = loss();
    x[i] = saved - 0.5;
    const double below = loss();
    x[i] = saved;
    EXPECT_NEAR(dx[i], above - below, 1e-12);
  }
}

// Heads that lie apart, as halves and as pairs: the values of each, taken out and sorted, are those
// of ApplyRope, and nothing else changes. The same for the gradient.
TEST(RopeTest, HeadsThatLieApartInHalvesAndInPairs) {
  const RopeTable table = TableForRotation(1.3);
  constexpr int64_t kDim = 8;
  constexpr int64_t kRows = 5;
  constexpr int64_t kHeads = 3;
  constexpr int64_t kBefore = 3;  // Values of a head that are not rotated.
  const int64_t positions[kRows] = {0, 1, 7, 100, 3};
  for (const bool in_pairs : {false, true}) {
    const RopeHeads heads{kHeads, kHeads * (kBefore + kDim) + 2, kBefore + kDim, in_pairs};
    const auto place = [&](int64_t row, int64_t head, int64_t i) {
      const int64_t channel = in_pairs ? i % (kDim / 2) * 2 + i / (kDim / 2) : i;
      return static_cast<size_t>(row * heads.row_stride + head * heads.head_stride + kBefore +
                                 channel);
    };
    for (const bool is_gradient : {false, true}) {
      const auto before = RandomReals<float>(kRows * heads.row_stride, 9);
      std::vector<float> packed(kRows * kHeads * kDim);
      const auto each = [&](auto body) {
        for (int64_t i = 0; i < std::ssize(packed); ++i) {
          body(packed[static_cast<size_t>(i)],
               place(i / (kHeads * kDim), i / kDim % kHeads, i % kDim));
        }
      };
      each([&](float& value, size_t from) { value = before[from]; });
      std::vector<float> x = before;
      if (is_gradient) {
        ApplyRopeGrad(table, positions, kRows, kHeads, packed.data(), 1);
        RotateHeadsGrad(table, positions, kRows, heads, x.data() + kBefore, 2);
      } else {
        ApplyRope(table, positions, kRows, kHeads, nullptr, packed.data(), 1);
        RotateHeads(table, positions, kRows, heads, x.data() + kBefore, 2);
      }
      std::vector<float> expected = before;
      each([&](float value, size_t to) { expected[to] = value; });
      EXPECT_EQ(x, expected) << in_pairs << is_gradient;
    }
  }
}

TEST(RopeTest, FactorsDivideFrequencies) {
  RopeParams params;
  params.head_dim = 8;
  params.theta = 10000.0;
  params.scaling = Scaling::kFactors;
  params.factors = {1.0f, 1.5f, 8.0f, 0.5f};
  const RopeTable table(params);
  // 10000^(-2 i / 8) = 1, 0.1, 0.01, 0.001.
  EXPECT_EQ(table.frequencies()[0], 1.0f);
  EXPECT_FLOAT_EQ(table.frequencies()[1], 0.1f / 1.5f);
  EXPECT_FLOAT_EQ(table.frequencies()[2], 0.01f / 8.0f);
  EXPECT_FLOAT_EQ(table.frequencies()[3], 0.001f / 0.5f);
  EXPECT_EQ(table.attention_factor(), 1.0);
  params.factors.pop_back();
  EXPECT_DEATH(RopeTable{params}, "one for each pair");
}

TEST(RopeDeathTest, RefusesParametersWithoutMeaning) {
  RopeParams params;
  params.head_dim = 7;
  EXPECT_DEATH(RopeTable{params}, "head_dim");
  params.head_dim = 8;
  params.scaling = Scaling::kLlama3;
  EXPECT_DEATH(RopeTable{params}, "original context length");
}

}  // namespace
}  // namespace pmkvq
