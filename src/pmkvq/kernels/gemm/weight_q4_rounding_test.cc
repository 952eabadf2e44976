#include "pmkvq/kernels/gemm/weight_q4_rounding.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/observed_products.h"

namespace pmkvq {
namespace {

WeightView ViewOf(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return {reinterpret_cast<const std::byte*>(values.data()), WeightFormat::kF32, rows, cols};
}

std::vector<float> Uniform(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.Uniform() - 0.5);
  return values;
}

// Inputs of which every channel holds a part of a few common ones, some channels large.
std::vector<float> CorrelatedInputs(int64_t rows, int64_t cols, uint64_t seed) {
  constexpr int64_t kCommon = 4;
  const std::vector<float> mix = Uniform(kCommon * cols, seed + 1);
  Random random(seed);
  std::vector<float> x(static_cast<size_t>(rows * cols));
  for (int64_t t = 0; t < rows; ++t) {
    double common[kCommon];
    for (double& value : common) value = random.Uniform() - 0.5;
    for (int64_t k = 0; k < cols; ++k) {
      double value = 0.3 * (random.Uniform() - 0.5);
      for (int64_t i = 0; i < kCommon; ++i) {
        value += common[i] * static_cast<double>(mix[static_cast<size_t>(i * cols + k)]);
      }
      x[static_cast<size_t>(t * cols + k)] = static_cast<float>(k % 7 == 0 ? 5 * value : value);
    }
  }
  return x;
}

std::vector<float> FactorOf(const std::vector<float>& x, int64_t rows, int64_t cols,
                            int threads = 1) {
  std::vector<float> factor(static_cast<size_t>(cols * cols));
  AddSecondMoment(x.data(), rows, cols, factor.data(), threads);
  FactorForRounding(cols, factor.data());
  return factor;
}

// Mean square of the change of the outputs.
double OutputError(const std::vector<float>& x, int64_t rows, const std::vector<float>& weights,
                   const Q4Weight& rounded) {
  std::vector<float> exact(static_cast<size_t>(rows * rounded.rows));
  MatMul<float>(x.data(), rows, ViewOf(weights, rounded.rows, rounded.cols), nullptr, exact.data(),
                1);
  double sum = 0;
  for (int64_t t = 0; t < rows; ++t) {
    for (int64_t n = 0; n < rounded.rows; ++n) {
      double y = 0;
      for (int64_t k = 0; k < rounded.cols; ++k) {
        y += static_cast<double>(x[static_cast<size_t>(t * rounded.cols + k)]) *
             ref::WeightAt(rounded.view(), n, k);
      }
      const double error =
          y - static_cast<double>(exact[static_cast<size_t>(t * rounded.rows + n)]);
      sum += error * error;
    }
  }
  return sum / static_cast<double>(rows * rounded.rows);
}

TEST(RoundWeightToQ4, HalvesTheErrorOfOutputsThatItHasNotSeen) {
  constexpr int64_t kRows = 70;
  constexpr int64_t kCols = 96;
  const std::vector<float> weights = Uniform(kRows * kCols, 3);
  // One generator mixes both parts; the second one is not given to the rounding.
  const std::vector<float> x = CorrelatedInputs(600, kCols, 4);
  const std::vector<float> seen(x.begin(), x.begin() + 400 * kCols);
  const std::vector<float> unseen(x.begin() + 400 * kCols, x.end());
  Q4Weight nearest;
  ASSERT_TRUE(QuantizeWeightToQ4(ViewOf(weights, kRows, kCols), 1, nearest));
  Q4Weight rounded;
  ASSERT_TRUE(RoundWeightToQ4(ViewOf(weights, kRows, kCols), FactorOf(seen, 400, kCols).data(), 1,
                              rounded));
  EXPECT_LT(OutputError(unseen, 200, weights, rounded),
            0.5 * OutputError(unseen, 200, weights, nearest));
}

// The definition: greedy columns of one row, in double, the inverse taken by elimination.
TEST(RoundWeightToQ4, ErrorsAreMadeUpForInTheColumnsBehind) {
  constexpr int64_t kCols = 64;
  const std::vector<float> x = CorrelatedInputs(300, kCols, 8);
  const std::vector<float> factor = FactorOf(x, 300, kCols);
  const std::vector<float> weights = Uniform(kCols, 9);
  Q4Weight rounded;
  ASSERT_TRUE(RoundWeightToQ4(ViewOf(weights, 1, kCols), factor.data(), 1, rounded));
  std::vector<double> w(weights.begin(), weights.end());
  for (int64_t k = 0; k < kCols; ++k) {
    const auto at = [&](int64_t j) {
      return static_cast<double>(factor[static_cast<size_t>(k * kCols + j)]);
    };
    // The code is the nearest one to what is left for column k: no other value of the group's grid
    // (0 to 15 steps) is nearer.
    const double q = ref::WeightAt(rounded.view(), 0, k);
    double step = std::numeric_limits<double>::infinity();
    for (int64_t j = k / 32 * 32; j < k / 32 * 32 + 32; ++j) {
      const double distance = std::abs(ref::WeightAt(rounded.view(), 0, j) - q);
      if (distance > 0) step = std::min(step, distance);
    }
    double low = q;
    double high = q;
    for (int64_t j = k / 32 * 32; j < k / 32 * 32 + 32; ++j) {
      low = std::min(low, ref::WeightAt(rounded.view(), 0, j));
      high = std::max(high, ref::WeightAt(rounded.view(), 0, j));
    }
    const double wanted = std::min(high, std::max(low, w[static_cast<size_t>(k)]));
    EXPECT_LE(std::abs(wanted - q), 0.51 * step) << k;
    const double error = (w[static_cast<size_t>(k)] - q) / at(k);
    for (int64_t j = k + 1; j < kCols; ++j) w[static_cast<size_t>(j)] -= error * at(j);
  }
}

TEST(RoundWeightToQ4, ThreadsAndPairsOfRowsChangeNothing) {
  constexpr int64_t kRows = 200;
  constexpr int64_t kCols = 64;
  const std::vector<float> x = CorrelatedInputs(150, kCols, 12);
  const std::vector<float> factor = FactorOf(x, 150, kCols);
  EXPECT_EQ(factor, FactorOf(x, 150, kCols, 3));
  const std::vector<float> weights = Uniform(kRows * kCols, 13);
  Q4Weight one;
  Q4Weight three;
  ASSERT_TRUE(RoundWeightToQ4(ViewOf(weights, kRows, kCols), factor.data(), 1, one));
  ASSERT_TRUE(RoundWeightToQ4(ViewOf(weights, kRows, kCols), factor.data(), 3, three));
  EXPECT_EQ(one.data, three.data);
  // The same rows, stored in pairs.
  WeightView paired = ViewOf(weights, kRows, kCols);
  paired.pair_rows = 8;
  std::vector<float> stored(weights.size());
  for (int64_t row = 0; row < kRows; ++row) {
    std::copy_n(weights.data() + row * kCols, kCols, stored.data() + paired.StoredRow(row) * kCols);
  }
  paired.data = reinterpret_cast<const std::byte*>(stored.data());
  Q4Weight of_pairs;
  ASSERT_TRUE(RoundWeightToQ4(paired, factor.data(), 1, of_pairs));
  EXPECT_EQ(one.data, of_pairs.data);
}

TEST(RoundWeightToQ4, WithoutInputsRoundsToTheNearest) {
  constexpr int64_t kCols = 64;
  std::vector<float> factor(kCols * kCols);
  FactorForRounding(kCols, factor.data());
  const std::vector<float> weights = Uniform(20 * kCols, 15);
  Q4Weight rounded;
  ASSERT_TRUE(RoundWeightToQ4(ViewOf(weights, 20, kCols), factor.data(), 1, rounded));
  Q4Weight nearest;
  ASSERT_TRUE(QuantizeWeightToQ4(ViewOf(weights, 20, kCols), 1, nearest));
  double error = 0;
  double of_nearest = 0;
  for (int64_t n = 0; n < 20; ++n) {
    for (int64_t k = 0; k < kCols; ++k) {
      const auto weight = static_cast<double>(weights[static_cast<size_t>(n * kCols + k)]);
      error += std::pow(ref::WeightAt(rounded.view(), n, k) - weight, 2);
      of_nearest += std::pow(ref::WeightAt(nearest.view(), n, k) - weight, 2);
    }
  }
  EXPECT_NEAR(error / of_nearest, 1.0, 1e-3);
}

// Fewer inputs than channels, and channels that are always zero: damping makes up for both.
TEST(RoundWeightToQ4, TakesMomentsOfLowRank) {
  constexpr int64_t kCols = 64;
  std::vector<float> x = CorrelatedInputs(5, kCols, 16);
  for (int64_t t = 0; t < 5; ++t) x[static_cast<size_t>(t * kCols + 10)] = 0;
  const std::vector<float> factor = FactorOf(x, 5, kCols);
  const std::vector<float> weights = Uniform(30 * kCols, 17);
  Q4Weight rounded;
  ASSERT_TRUE(RoundWeightToQ4(ViewOf(weights, 30, kCols), factor.data(), 1, rounded));
  Q4Weight nearest;
  ASSERT_TRUE(QuantizeWeightToQ4(ViewOf(weights, 30, kCols), 1, nearest));
  EXPECT_LT(OutputError(x, 5, weights, rounded), 0.2 * OutputError(x, 5, weights, nearest));
}

TEST(RoundWeightToQ4, RefusesWhatF16CannotHoldAndMomentsThatAreNotFinite) {
  constexpr int64_t kCols = 32;
  std::vector<float> factor(kCols * kCols);
  FactorForRounding(kCols, factor.data());
  Q4Weight rounded;
  for (const float bad :
       {1e6f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> weights(kCols, 1.0f);
    weights[3] = bad;
    EXPECT_FALSE(RoundWeightToQ4(ViewOf(weights, 1, kCols), factor.data(), 1, rounded)) << bad;
  }
  factor[5] = std::numeric_limits<float>::infinity();
  EXPECT_THROW(FactorForRounding(kCols, factor.data()), InvalidInput);
}

class CountingObserver : public ProductObserver {
 public:
  void See(const float* x, int64_t num_rows,
           std::span<const Projection<float>> projections) override {
    rows += num_rows;
    matrices += std::ssize(projections);
    first = x[0];
  }
  int64_t rows = 0;
  int64_t matrices = 0;
  float first = 0;
};

TEST(ObservedProducts, AreThoseOfItsThreadWhileItLives) {
  const std::vector<float> weights = Uniform(4 * 8, 20);
  const std::vector<float> x = Uniform(3 * 8, 21);
  const WeightView view = ViewOf(weights, 4, 8);
  std::vector<float> y(12);
  CountingObserver outer;
  CountingObserver inner;
  {
    const ObservedProducts observed(outer);
    MatMul<float>(x.data(), 3, view, nullptr, y.data(), 1);
    {
      const ObservedProducts nested(inner);
      const Projection<float> both[] = {{&view, nullptr, y.data()}, {&view, nullptr, y.data()}};
      MatMulShared<float>(x.data(), 2, both, 1);
    }
    MatMul<float>(x.data(), 1, view, nullptr, y.data(), 1);
  }
  MatMul<float>(x.data(), 3, view, nullptr, y.data(), 1);
  EXPECT_EQ(outer.rows, 4);
  EXPECT_EQ(outer.matrices, 2);
  EXPECT_EQ(outer.first, x[0]);
  EXPECT_EQ(inner.rows, 2);
  EXPECT_EQ(inner.matrices, 2);
}

}  // namespace
}  // namespace pmkvq
