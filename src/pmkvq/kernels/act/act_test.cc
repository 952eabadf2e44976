#include "pmkvq/kernels/act/act.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numbers>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/kernels/act/act_vector.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(ActTest, internal::ActKernelTarget, "kernels/act/act_vector.cc");

// Rounding of the float kernels relative to the exact value: the vector exponential is good to
// about 1 ulp (2 half-ulps of 2^-24); sum, quotient and two products add half an ulp each: 6. The
// derivative has 1 + z (1 - s) besides, whose rounding is relative to 1 + |z|.
constexpr double kTolerance = 8 * 0x1p-24;

template <class Real>
std::vector<Real> RandomReals(int64_t count, double bound, uint64_t seed) {
  Random random(seed);
  std::vector<Real> values(static_cast<size_t>(count));
  for (Real& value : values) {
    value = static_cast<Real>((random.Uniform() * 2.0 - 1.0) * bound);
  }
  return values;
}

double Sigmoid(double z) { return 1.0 / (1.0 + std::exp(-z)); }

// Of z in gelu(z) = z sigmoid(a); by the published form, with tanh.
double GeluArgument(double z) {
  return 2.0 * std::sqrt(2.0 / std::numbers::pi) * (z + 0.044715 * z * z * z);
}
double Gelu(double z) { return 0.5 * z * (1.0 + std::tanh(GeluArgument(z) / 2.0)); }

// sigmoid(a) changes by (1 - sigmoid(a)) of itself per unit of a, and a, of two products and a
// fused sum, is rounded by 3 half-ulps.
double GeluTolerance(double z) {
  const double a = GeluArgument(z);
  return kTolerance + 3 * 0x1p-24 * std::abs(a) * (1.0 - Sigmoid(a));
}

template <class Real>
struct Activation {
  decltype(&SiluMul<Real>) mul;
  decltype(&SiluMulGrad<Real>) grad;
};
template <class Real>
constexpr Activation<Real> kActivations[] = {{SiluMul<Real>, SiluMulGrad<Real>},
                                             {GeluMul<Real>, GeluMulGrad<Real>}};

TEST_P(ActTest, SiluMulMatchesFormula) {
  for (const double bound : {1.0, 10.0, 80.0}) {
    for (const int64_t count : {1, 3, 8, 15, 16, 17, 33, 1000}) {
      const auto gate = RandomReals<float>(count, bound, 1);
      const auto up = RandomReals<float>(count, 3.0, 2);
      std::vector<float> y(gate.size(), 9.0f);
      SiluMul(gate.data(), up.data(), count, y.data(), 1);
      for (size_t i = 0; i < y.size(); ++i) {
        const double z = static_cast<double>(gate[i]);
        const double expected = z * Sigmoid(z) * static_cast<double>(up[i]);
        ASSERT_NEAR(static_cast<double>(y[i]), expected, kTolerance * std::abs(expected)) << z;
      }
    }
  }
}

TEST_P(ActTest, GeluMulMatchesFormula) {
  for (const double bound : {1.0, 4.0}) {  // Below -4 the form with tanh cancels in double.
    for (const int64_t count : {1, 3, 8, 15, 16, 17, 33, 1000}) {
      const auto gate = RandomReals<float>(count, bound, 1);
      const auto up = RandomReals<float>(count, 3.0, 2);
      std::vector<float> y(gate.size(), 9.0f);
      GeluMul(gate.data(), up.data(), count, y.data(), 1);
      for (size_t i = 0; i < y.size(); ++i) {
        const auto z = static_cast<double>(gate[i]);
        const double expected = Gelu(z) * static_cast<double>(up[i]);
        ASSERT_NEAR(static_cast<double>(y[i]), expected, GeluTolerance(z) * std::abs(expected))
            << z;
      }
    }
  }
}

TEST_P(ActTest, ExtremeGatesOfGelu) {
  const float inf = std::numeric_limits<float>::infinity();
  const float gate[] = {-1000.0f, 1000.0f, 0.0f, -1e20f, inf, std::nanf(""), -9.0f, 1e20f};
  const std::vector<float> ones(8, 1.0f);
  float y[8];
  GeluMul(gate, ones.data(), 8, y, 1);
  float dgate[8];
  float dup[8];
  GeluMulGrad(gate, ones.data(), ones.data(), 8, dgate, dup, 1);
  const float expected[] = {0.0f, 1000.0f, 0.0f, 0.0f, inf, 0.0f, 0.0f, 1e20f};
  const float slope[] = {0.0f, 1.0f, 0.5f, 0.0f, 1.0f, 0.0f, 0.0f, 1.0f};
  for (size_t i = 0; i < 8; ++i) {
    if (i == 5) {
      EXPECT_TRUE(std::isnan(y[i]) && std::isnan(dgate[i]) && std::isnan(dup[i]));
      continue;
    }
    if (std::isinf(expected[i])) {
      EXPECT_EQ(y[i], expected[i]);
    } else {
      EXPECT_NEAR(y[i], expected[i], 1e-14) << gate[i];
    }
    EXPECT_EQ(dup[i], y[i]) << gate[i];
    EXPECT_NEAR(dgate[i], slope[i], 1e-13) << gate[i];
  }
}

TEST_P(ActTest, ExtremeGates) {
  const float inf = std::numeric_limits<float>::infinity();
  const float gate[] = {-1000.0f, 1000.0f, 0.0f, -0.0f, inf, std::nanf(""), -120.0f, 88.8f};
  const std::vector<float> up(8, 2.0f);
  float y[8];
  SiluMul(gate, up.data(), 8, y, 1);
  EXPECT_EQ(y[0], 0.0f);
  EXPECT_EQ(y[1], 2000.0f);
  EXPECT_EQ(y[2], 0.0f);
  EXPECT_EQ(y[3], 0.0f);
  EXPECT_EQ(y[4], inf);
  EXPECT_TRUE(std::isnan(y[5]));
  EXPECT_NEAR(y[6], 0.0f, 1e-30f);
  EXPECT_EQ(y[7], 2.0f * 88.8f);
}

TEST_P(ActTest, BitsDependNeitherOnPlaceNorOnThreads) {
  constexpr int64_t kCount = 70001;
  const auto gate = RandomReals<float>(kCount, 9.0, 3);
  const auto up = RandomReals<float>(kCount, 3.0, 4);
  for (const auto& [mul, grad] : kActivations<float>) {
    std::vector<float> y(gate.size());
    mul(gate.data(), up.data(), kCount, y.data(), 1);
    for (int64_t i = 0; i < kCount; i += 997) {
      float alone;
      mul(gate.data() + i, up.data() + i, 1, &alone, 1);
      ASSERT_EQ(alone, y[static_cast<size_t>(i)]) << i;
    }
    for (const int threads : {2, 3}) {
      std::vector<float> in_place = gate;
      mul(in_place.data(), up.data(), kCount, in_place.data(), threads);
      ASSERT_EQ(std::memcmp(y.data(), in_place.data(), y.size() * sizeof(float)), 0);
    }
  }
}

// The largest error of a float gradient at gate value z: of dgate relative to dy * up, of dup
// relative to the exact value.
struct GradientTolerance {
  double dgate = 0;
  double dup = 0;
};

template <class Grad>
void ExpectFloatGradientMatchesDouble(const Grad& grad, double gate_bound,
                                      GradientTolerance (*tolerance_at)(double z)) {
  for (const int64_t count : {1, 13, 257}) {
    auto gate = RandomReals<float>(count, gate_bound, 5);
    auto up = RandomReals<float>(count, 3.0, 6);
    const auto dy = RandomReals<float>(count, 1.0, 7);
    const std::vector<double> gate_wide(gate.begin(), gate.end());
    const std::vector<double> up_wide(up.begin(), up.end());
    const std::vector<double> dy_wide(dy.begin(), dy.end());
    std::vector<double> dgate(gate.size());
    std::vector<double> dup(gate.size());
    grad(gate_wide.data(), up_wide.data(), dy_wide.data(), count, dgate.data(), dup.data(), 1);
    // In place, as the backward pass uses it.
    grad(gate.data(), up.data(), dy.data(), count, gate.data(), up.data(), 2);
    for (size_t i = 0; i < dgate.size(); ++i) {
      const double z = gate_wide[i];
      const GradientTolerance tolerance = tolerance_at(z);
      ASSERT_NEAR(static_cast<double>(gate[i]), dgate[i],
                  tolerance.dgate * std::abs(dy_wide[i] * up_wide[i]))
          << z;
      ASSERT_NEAR(static_cast<double>(up[i]), dup[i], tolerance.dup * std::abs(dup[i])) << z;
    }
  }
}

TEST_P(ActTest, FloatGradientMatchesDouble) {
  ExpectFloatGradientMatchesDouble(
      [](auto... args) { SiluMulGrad(args...); }, 20.0,
      [](double z) {
        const double slope_scale = Sigmoid(z) * (1.0 + std::abs(z) * (1.0 - Sigmoid(z)));
        return GradientTolerance{kTolerance * slope_scale * 2.0, kTolerance};
      });
}

TEST_P(ActTest, FloatGradientOfGeluMatchesDouble) {
  ExpectFloatGradientMatchesDouble(
      [](auto... args) { GeluMulGrad(args...); }, 6.0,
      [](double z) {
        const double a = GeluArgument(z);
        // The slope's two terms, s + z s (1 - s) a'(z), with |z a'(z)| at most 3 |a|; the rounding
        // of a is in s and in 1 - s.
        const double slope_scale = Sigmoid(a) * (1.0 + 3.0 * std::abs(a) * Sigmoid(-a));
        const double tolerance = kTolerance + 2 * 3 * 0x1p-24 * std::abs(a);
        return GradientTolerance{tolerance * slope_scale * 2.0, GeluTolerance(z)};
      });
}

TEST(ActTest, GradientMatchesFiniteDifferences) {
  constexpr int64_t kCount = 50;
  constexpr double kStep = 1e-5;  // Truncation and rounding: about 1e-10.
  auto gate = RandomReals<double>(kCount, 6.0, 8);
  auto up = RandomReals<double>(kCount, 3.0, 9);
  const auto dy = RandomReals<double>(kCount, 1.0, 10);
  for (const auto& [mul, grad] : kActivations<double>) {
    const auto loss = [&, mul = mul](size_t i) {
      double y;
      mul(&gate[i], &up[i], 1, &y, 1);
      return dy[i] * y;
    };
    std::vector<double> dgate(kCount);
    std::vector<double> dup(kCount);
    grad(gate.data(), up.data(), dy.data(), kCount, dgate.data(), dup.data(), 1);
    for (size_t i = 0; i < kCount; ++i) {
      for (std::vector<double>* input : {&gate, &up}) {
        const double saved = (*input)[i];
        (*input)[i] = saved + kStep;
        const double above = loss(i);
        (*input)[i] = saved - kStep;
        const double below = loss(i);
        (*input)[i] = saved;
        const double numeric = (above - below) / (2.0 * kStep);
        const double analytic = input == &gate ? dgate[i] : dup[i];
        EXPECT_NEAR(analytic, numeric, 1e-6 * (1e-3 + std::abs(numeric)));
      }
    }
  }
}

}  // namespace
}  // namespace pmkvq
