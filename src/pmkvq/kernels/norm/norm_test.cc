#include "pmkvq/kernels/norm/norm.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

constexpr double kEps = 1e-5;

template <class Real>
std::vector<Real> RandomReals(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<Real> values(static_cast<size_t>(count));
  for (Real& value : values) value = static_cast<Real>(random.Uniform() * 4.0 - 2.0);
  return values;
}

TEST(NormTest, HandMadeExample) {
  // mean(x^2) = (9 + 16) / 2 = 12.5; with eps 3.5 the divisor is 4.
  const double x[] = {3.0, 4.0};
  const float weight[] = {2.0f, -1.0f};
  double y[2];
  RmsNorm(x, 1, 2, weight, 3.5, y, 1);
  EXPECT_DOUBLE_EQ(y[0], 1.5);
  EXPECT_DOUBLE_EQ(y[1], -1.0);
}

// Float against the formula in double. The mean is a double sum, so what is rounded is the inverse
// root, then two products: 3 half-ulps of the result.
TEST(NormTest, FloatMatchesFormula) {
  for (const int64_t size : {1, 2, 7, 8, 9, 64, 129, 3584}) {
    const auto x = RandomReals<float>(3 * size, 1);
    const auto weight = RandomReals<float>(size, 2);
    std::vector<float> y(x.size());
    RmsNorm(x.data(), 3, size, weight.data(), kEps, y.data(), 1);
    for (int64_t t = 0; t < 3; ++t) {
      double sum = 0.0;
      for (int64_t i = 0; i < size; ++i) {
        const double value = static_cast<double>(x[static_cast<size_t>(t * size + i)]);
        sum += value * value;
      }
      const double inverse = 1.0 / std::sqrt(sum / static_cast<double>(size) + kEps);
      for (int64_t i = 0; i < size; ++i) {
        const size_t index = static_cast<size_t>(t * size + i);
        const double expected = static_cast<double>(x[index]) * inverse *
                                static_cast<double>(weight[static_cast<size_t>(i)]);
        ASSERT_NEAR(static_cast<double>(y[index]), expected, 3.01 * 0x1p-24 * std::abs(expected));
      }
    }
  }
}

TEST(NormTest, InPlaceAndRowsAndThreadsGiveTheSameBits) {
  constexpr int64_t kRows = 41;
  constexpr int64_t kSize = 1803;  // Enough work for several threads.
  const auto x = RandomReals<float>(kRows * kSize, 3);
  const auto weight = RandomReals<float>(kSize, 4);
  std::vector<float> alone(x.size());
  for (int64_t t = 0; t < kRows; ++t) {
    RmsNorm(x.data() + t * kSize, 1, kSize, weight.data(), kEps, alone.data() + t * kSize, 1);
  }
  for (const int threads : {1, 2, 3}) {
    std::vector<float> y = x;
    RmsNorm(y.data(), kRows, kSize, weight.data(), kEps, y.data(), threads);
    EXPECT_EQ(std::memcmp(y.data(), alone.data(), y.size() * sizeof(float)), 0) << threads;
  }
}

// L = sum_i c_i y_i, so that dy = c. Central differences: truncation h^2 = 1e-10 relative, rounding
// 2^-53 / h = 1e-11.
TEST(NormTest, GradientMatchesFiniteDifferences) {
  constexpr int64_t kRows = 2;
  constexpr int64_t kSize = 19;
  constexpr double kStep = 1e-5;
  auto x = RandomReals<double>(kRows * kSize, 5);
  const auto weight = RandomReals<float>(kSize, 6);
  const auto dy = RandomReals<double>(kRows * kSize, 7);
  const auto loss = [&] {
    std::vector<double> y(x.size());
    RmsNorm(x.data(), kRows, kSize, weight.data(), kEps, y.data(), 1);
    double sum = 0.0;
    for (size_t i = 0; i < y.size(); ++i) sum += dy[i] * y[i];
    return sum;
  };
  std::vector<double> dx(x.size(), 0.25);  // Gradients are added.
  RmsNormGrad(x.data(), dy.data(), kRows, kSize, weight.data(), kEps, dx.data(), 2);
  for (size_t i = 0; i < x.size(); ++i) {
    const double saved = x[i];
    x[i] = saved + kStep;
    const double above = loss();
    x[i] = saved - kStep;
    const double below = loss();
    x[i] = saved;
    const double numeric = (above - below) / (2.0 * kStep);
    EXPECT_NEAR(dx[i] - 0.25, numeric, 1e-6 * (1.0 + std::abs(numeric)));
  }
}

TEST(NormTest, FloatGradientMatchesDouble) {
  constexpr int64_t kRows = 40;
  constexpr int64_t kSize = 1701;
  const auto x = RandomReals<float>(kRows * kSize, 8);
  const auto dy = RandomReals<float>(kRows * kSize, 9);
  const auto weight = RandomReals<float>(kSize, 10);
  const std::vector<double> x_wide(x.begin(), x.end());
  const std::vector<double> dy_wide(dy.begin(), dy.end());
  std::vector<float> dx(x.size(), 0.0f);
  std::vector<double> dx_wide(x.size(), 0.0);
  RmsNormGrad(x.data(), dy.data(), kRows, kSize, weight.data(), kEps, dx.data(), 2);
  RmsNormGrad(x_wide.data(), dy_wide.data(), kRows, kSize, weight.data(), kEps, dx_wide.data(), 1);
  // Computed in double, rounded once.
  for (size_t i = 0; i < dx.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(dx[i]), dx_wide[i], 0x1.01p-24 * std::abs(dx_wide[i]));
  }
}

}  // namespace
}  // namespace pmkvq
