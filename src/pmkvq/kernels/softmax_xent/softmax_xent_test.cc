#include "pmkvq/kernels/softmax_xent/softmax_xent.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

template <class Real>
std::vector<Real> RandomLogits(int64_t count, double bound, uint64_t seed) {
  Random random(seed);
  std::vector<Real> values(static_cast<size_t>(count));
  for (Real& value : values) {
    value = static_cast<Real>((random.Uniform() * 2.0 - 1.0) * bound);
  }
  return values;
}

TEST(SoftmaxXentTest, ValuesByHand) {
  // Probabilities 1/8, 2/8, 5/8, far from zero logits.
  const double logits[] = {1000.0, 1000.0 + std::log(2.0), 1000.0 + std::log(5.0)};
  EXPECT_NEAR(CrossEntropy(logits, 3, 0), std::log(8.0), 1e-12);
  EXPECT_NEAR(CrossEntropy(logits, 3, 2), std::log(8.0 / 5.0), 1e-12);
  const float uniform[] = {-3.0f, -3.0f, -3.0f, -3.0f};
  EXPECT_NEAR(CrossEntropy(uniform, 4, 1), std::log(4.0), 1e-15);
  const float one[] = {5.0f};
  EXPECT_EQ(CrossEntropy(one, 1, 0), 0.0);
}

TEST(SoftmaxXentTest, HugeSpreadIsFinite) {
  const float logits[] = {1e30f, -1e30f};
  EXPECT_EQ(CrossEntropy(logits, 2, 0), 0.0);
  EXPECT_NEAR(CrossEntropy(logits, 2, 1), 2e30, 1e24);
}

TEST(SoftmaxXentTest, GradientByHand) {
  double logits[] = {std::log(1.0), std::log(2.0), std::log(5.0)};
  const double loss = CrossEntropyGrad(logits, 3, 1, 0.5);
  EXPECT_NEAR(loss, std::log(4.0), 1e-14);
  EXPECT_NEAR(logits[0], 0.5 * 1 / 8, 1e-15);
  EXPECT_NEAR(logits[1], 0.5 * (2.0 / 8 - 1), 1e-15);
  EXPECT_NEAR(logits[2], 0.5 * 5 / 8, 1e-15);
}

// Central differences: truncation h^2 = 1e-10, rounding about 1e-11.
TEST(SoftmaxXentTest, GradientMatchesFiniteDifferences) {
  constexpr int64_t kVocab = 37;
  constexpr double kStep = 1e-5;
  auto logits = RandomLogits<double>(kVocab, 3.0, 1);
  for (const int64_t target : {0, 17, 36}) {
    std::vector<double> grad = logits;
    const double loss = CrossEntropyGrad(grad.data(), kVocab, target, 2.0);
    EXPECT_EQ(loss, CrossEntropy(logits.data(), kVocab, target));
    for (size_t i = 0; i < logits.size(); ++i) {
      const double saved = logits[i];
      logits[i] = saved + kStep;
      const double above = CrossEntropy(logits.data(), kVocab, target);
      logits[i] = saved - kStep;
      const double below = CrossEntropy(logits.data(), kVocab, target);
      logits[i] = saved;
      const double numeric = 2.0 * (above - below) / (2.0 * kStep);
      EXPECT_NEAR(grad[i], numeric, 1e-6 * (1e-2 + std::abs(numeric))) << i;
    }
  }
}

TEST(SoftmaxXentTest, FloatMatchesDouble) {
  constexpr int64_t kVocab = 5003;
  auto logits = RandomLogits<float>(kVocab, 15.0, 2);
  std::vector<double> wide(logits.begin(), logits.end());
  const double loss = CrossEntropyGrad(logits.data(), kVocab, 77, 3.0);
  const double expected = CrossEntropyGrad(wide.data(), kVocab, 77, 3.0);
  EXPECT_EQ(loss, expected);  // Both sum in double, from the same logits.
  // Rounded twice: the exponential, then the result.
  for (size_t i = 0; i < logits.size(); ++i) {
    ASSERT_NEAR(static_cast<double>(logits[i]), wide[i], 2.01 * 0x1p-24 * std::abs(wide[i]));
  }
}

// A target that is nearly certain: 1 - p is far below the float spacing at 1.
TEST(SoftmaxXentTest, GradientOfANearlyCertainTarget) {
  float logits[] = {25.0f, 0.0f};
  CrossEntropyGrad(logits, 2, 0, 1.0);
  const double other = std::exp(-25.0) / (1.0 + std::exp(-25.0));
  EXPECT_NEAR(static_cast<double>(logits[1]), other, 1e-6 * other);
  EXPECT_NEAR(static_cast<double>(logits[0]), -other, 1e-4 * other);
}

TEST(SoftmaxXentTest, KlDivergence) {
  // KL((1/2, 1/2) || (1/4, 3/4)) = log 2 - log(3) / 2, logits up to a constant.
  const float p[] = {3.0f, 3.0f};
  const float q[] = {0.0f, static_cast<float>(std::log(3.0))};
  EXPECT_NEAR(KlDivergence(p, q, 2), std::log(2.0) - 0.5 * std::log(3.0), 1e-7);
  const auto logits = RandomLogits<float>(1000, 10.0, 3);
  EXPECT_EQ(KlDivergence(logits.data(), logits.data(), 1000), 0.0);
  const auto other = RandomLogits<float>(1000, 10.0, 4);
  EXPECT_GT(KlDivergence(logits.data(), other.data(), 1000), 0.0);
}

TEST(SoftmaxXentTest, KlDivergenceIgnoresImpossibleTokens) {
  const float inf = std::numeric_limits<float>::infinity();
  const float p[] = {1.0f, 1.0f, -inf};
  EXPECT_EQ(KlDivergence(p, p, 3), 0.0);
  const float q[] = {1.0f, -inf, 1.0f};
  EXPECT_EQ(KlDivergence(p, q, 3), static_cast<double>(inf));
}

TEST(SoftmaxXentDeathTest, TargetOutsideOfTheVocabulary) {
  float logits[] = {0.0f, 1.0f};
  EXPECT_DEATH(CrossEntropy(logits, 2, 2), "target");
  EXPECT_DEATH(CrossEntropyGrad(logits, 2, -1, 1.0), "target");
}

}  // namespace
}  // namespace pmkvq
