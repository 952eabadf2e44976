#include "pmkvq/research/analysis/series.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace pmkvq {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

TEST(MakeBins, CutsIntoEqualPartsAndNoneIsEmpty) {
  EXPECT_EQ(MakeBins(10, 20, 3).edges, (std::vector<int64_t>{10, 13, 16, 20}));
  EXPECT_EQ(MakeBins(0, 2, 5).edges, (std::vector<int64_t>{0, 1, 2}));
  EXPECT_EQ(MakeBins(10, 20, 3).Centres(), (std::vector<double>{11, 14, 17.5}));
}

TEST(BinMeans, AveragesByPositionAndLeavesGaps) {
  const PositionBins bins = MakeBins(10, 22, 4);  // 10, 13, 16, 19, 22
  const std::vector<double> means = BinMeans(bins, {9, 10, 12, 16, 21, 22}, {100, 1, 3, 5, 7, 100});
  ASSERT_EQ(means.size(), 4u);
  EXPECT_EQ(means[0], 2);
  EXPECT_TRUE(std::isnan(means[1]));
  EXPECT_EQ(means[2], 5);
  EXPECT_EQ(means[3], 7);
}

TEST(FitPowerLaw, FindsTheLawItWasMadeFrom) {
  const std::vector<double> x = {1, 10, 100, 1000, 50};
  std::vector<double> y;
  for (const double value : x) y.push_back(0.5 * std::pow(value, 1.5));
  y[3] = kNaN;  // Left out, and so is a 0.
  const PowerLaw law = FitPowerLaw(x, y);
  EXPECT_EQ(law.num_points, 4);
  EXPECT_NEAR(law.exponent, 1.5, 1e-12);
  EXPECT_NEAR(law.coefficient, 0.5, 1e-12);
  EXPECT_NEAR(law.r_squared, 1, 1e-12);
}

TEST(FitPowerLaw, SaysHowWellItFits) {
  // Logarithms (base 10) 0, 1, 2 -> 0, 2, 1: slope 1/2, R2 = (1)^2 / (2 * 2) = 1/4.
  const PowerLaw law = FitPowerLaw({1, 10, 100}, {1, 100, 10});
  EXPECT_NEAR(law.exponent, 0.5, 1e-12);
  EXPECT_NEAR(law.r_squared, 0.25, 1e-12);
}

TEST(FitPowerLaw, NeedsThreePoints) {
  const PowerLaw law = FitPowerLaw({1, 2, 3}, {1, 0, 2});
  EXPECT_EQ(law.num_points, 2);
  EXPECT_TRUE(std::isnan(law.exponent));
}

TEST(RankCorrelation, IsSpearmans) {
  EXPECT_DOUBLE_EQ(RankCorrelation({1, 2, 3, 4}, {10, 20, 400, 5000}), 1);
  EXPECT_DOUBLE_EQ(RankCorrelation({1, 2, 3, 4}, {9, 8, 7, 1}), -1);
  // Without ties 1 - 6 sum d^2 / (n (n^2 - 1)): d = 0, 1, 1, 0 -> 1 - 12 / 60.
  EXPECT_DOUBLE_EQ(RankCorrelation({1, 2, 3, 4}, {1, 3, 2, 4}), 0.8);
  // With ties: ranks 1.5 1.5 3 against 1 2 3: 1.5 / sqrt(1.5 * 2).
  EXPECT_NEAR(RankCorrelation({5, 5, 6}, {1, 2, 3}), 1.5 / std::sqrt(3.0), 1e-15);
  EXPECT_TRUE(std::isnan(RankCorrelation({1, 1}, {1, 2})));
}

TEST(KlOfLogs, IsTheSumOfItsDefinition) {
  const auto logs = [](std::vector<double> p) {
    std::vector<float> logs_of_p;
    for (const double value : p) logs_of_p.push_back(static_cast<float>(std::log(value)));
    return logs_of_p;
  };
  const double expected = 0.5 * std::log(2.0) + 0.5 * std::log(2.0 / 3.0);
  EXPECT_NEAR(KlOfLogs(logs({0.5, 0.5}), logs({0.25, 0.75})), expected, 1e-7);
  EXPECT_EQ(KlOfLogs(logs({0.3, 0.7}), logs({0.3, 0.7})), 0);
  // What p excludes adds nothing, even where q excludes it, too.
  EXPECT_NEAR(KlOfLogs(logs({1, 0}), logs({0.5, 0.5})), std::log(2.0), 1e-7);
  EXPECT_EQ(KlOfLogs(logs({1, 0}), logs({1, 0})), 0);
  // What q excludes and p does not costs without bound.
  EXPECT_TRUE(std::isinf(KlOfLogs(logs({0.5, 0.5}), logs({1, 0}))));
}

TEST(LogSoftmax, NormalisesLargeLogits) {
  std::vector<float> logits = {1000, 1000, 1000 - std::log(2.0f)};
  LogSoftmax(logits.data(), 3);
  EXPECT_NEAR(logits[0], std::log(0.4), 1e-4);
  EXPECT_NEAR(logits[2], std::log(0.2), 1e-4);
}

TEST(MeanOf, OfNothingIsNoNumber) {
  EXPECT_TRUE(std::isnan(MeanOf({})));
  EXPECT_EQ(MeanOf({1, 2, 6}), 3);
}

}  // namespace
}  // namespace pmkvq
