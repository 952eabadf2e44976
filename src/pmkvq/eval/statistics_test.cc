#include "pmkvq/eval/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace pmkvq {
namespace {

// Limits solve (p - x / n)^2 = z^2 p (1 - p) / n; worked examples that R. Newcombe published (1998,
// score method without continuity correction) are among them, to their four digits.
TEST(WilsonInterval, PublishedExamples) {
  struct Case {
    int64_t successes, trials;
    double low, high;
  };
  for (const Case& c : std::vector<Case>{{81, 263, 0.2553, 0.3662},
                                         {15, 148, 0.0624, 0.1605},
                                         {0, 20, 0.0000, 0.1611},
                                         {1, 29, 0.0061, 0.1718},
                                         {29, 29, 0.8830, 1.0000}}) {
    const Interval interval = WilsonInterval(c.successes, c.trials);
    EXPECT_NEAR(interval.low, c.low, 5e-5) << c.successes << "/" << c.trials;
    EXPECT_NEAR(interval.high, c.high, 5e-5) << c.successes << "/" << c.trials;
  }
}

TEST(WilsonInterval, LimitsSolveTheScoreEquation) {
  constexpr double kZ = 1.959963984540054;
  for (const int64_t n : {1, 7, 400, 1000000}) {
    for (const int64_t x : {int64_t{0}, n / 3, n / 2, n}) {
      const double share = static_cast<double>(x) / static_cast<double>(n);
      const Interval interval = WilsonInterval(x, n);
      for (const double p : {interval.low, interval.high}) {
        const double z = std::abs(p - share) / std::sqrt(p * (1 - p) / static_cast<double>(n));
        if (p > 0 && p < 1) {
          EXPECT_NEAR(z, kZ, 1e-6) << x << "/" << n;
        }
      }
      EXPECT_LE(interval.low, share);
      EXPECT_GE(interval.high, share);
    }
  }
}

TEST(WilsonInterval, NoTrialsSayNothing) {
  EXPECT_EQ(WilsonInterval(0, 0).low, 0);
  EXPECT_EQ(WilsonInterval(0, 0).high, 1);
}

// 2 P[X <= least] by whole numbers: (10, 2) is 2 (1 + 12 + 66) / 2^12, (1, 7) 2 (1 + 8) / 2^8.
TEST(McNemarExact, BinomialSumsByHand) {
  EXPECT_NEAR(McNemarExact(10, 2), 158.0 / 4096, 1e-15);
  EXPECT_NEAR(McNemarExact(2, 10), 158.0 / 4096, 1e-15);
  EXPECT_NEAR(McNemarExact(1, 7), 18.0 / 256, 1e-15);
  EXPECT_NEAR(McNemarExact(5, 0), 2.0 / 32, 1e-15);
  EXPECT_EQ(McNemarExact(0, 0), 1);
  EXPECT_EQ(McNemarExact(3, 3), 1);
  EXPECT_EQ(McNemarExact(0, 1), 1);  // 2 x 1/2
  EXPECT_EQ(McNemarExact(3, 4), 1);  // 2 x 1/2, by symmetry
}

// Against the plain sum of all terms, from the smallest up.
TEST(McNemarExact, EqualsTheWholeSumUpToFifty) {
  for (int64_t n = 1; n <= 50; ++n) {
    double term = std::pow(0.5, static_cast<double>(n));
    double sum = 0;
    for (int64_t k = 0; 2 * k < n; ++k) {
      sum += term;
      EXPECT_NEAR(McNemarExact(k, n - k) / std::min(1.0, 2 * sum), 1, 1e-12) << k << " of " << n;
      term = term * static_cast<double>(n - k) / static_cast<double>(k + 1);
    }
  }
}

// Big integers in another language gave these.
TEST(McNemarExact, LargeCounts) {
  EXPECT_NEAR(McNemarExact(900, 1100) / 8.45708953550392725984e-06, 1, 1e-12);
  EXPECT_NEAR(McNemarExact(2000, 2600) / 9.22122107676964843182e-19, 1, 1e-12);
  EXPECT_NEAR(McNemarExact(4900, 5100) / 0.0465855277049473887799, 1, 1e-12);
  EXPECT_EQ(McNemarExact(0, 1100), 0);  // 1.5e-331, below the least double.
  // A thousand million pairs: z = 2 with continuity is 0.0455 of the normal distribution.
  const double p = McNemarExact(500000000 - 31623, 500000000 + 31623);
  EXPECT_NEAR(p, std::erfc((2 * 31623 - 1) / std::sqrt(1e9) / std::sqrt(2.0)), 1e-6);
}

// Method 10, computed apart from this code. The first two are worked examples in print:
// airway hyper-responsiveness of 21 children (1, 1, 7, 12): -0.507 to -0.026; Altman and others,
// Statistics with confidence, table 6.2 (14, 5, 0, 22): 0.011 to 0.226.
TEST(PairedDifferenceInterval, WorkedExamples) {
  struct Case {
    int64_t both, only_a, only_b, neither;
    double low, high;
  };
  for (const Case& c : std::vector<Case>{
           {1, 1, 7, 12, -0.506920226686, -0.025559124165},
           {14, 5, 0, 22, 0.011483241383, 0.226492684351},
           {20, 12, 2, 16, 0.056156424842, 0.329206995400},  // Positive, corrected correlation.
           {53, 16, 8, 9, -0.020104076888, 0.203915835250},
           {0, 3, 4, 0, -0.683560289497, 0.499083270945},   // Correlation -1.
           {36, 14, 0, 0, 0.152839517856, 0.416651236960},  // An empty margin: 0.
           {300000000, 100000000, 99000000, 1000000, 0.001944702881, 0.002055297103}}) {
    const Interval interval = PairedDifferenceInterval(c.both, c.only_a, c.only_b, c.neither);
    EXPECT_NEAR(interval.low, c.low, 1e-9) << c.both << " " << c.only_a;
    EXPECT_NEAR(interval.high, c.high, 1e-9) << c.both << " " << c.only_a;
    // Swapping the two mirrors it.
    const Interval mirrored = PairedDifferenceInterval(c.both, c.only_b, c.only_a, c.neither);
    EXPECT_NEAR(mirrored.low, -c.high, 1e-9);
    EXPECT_NEAR(mirrored.high, -c.low, 1e-9);
  }
}

TEST(PairedDifferenceInterval, EndsOfTheRange) {
  EXPECT_EQ(PairedDifferenceInterval(0, 0, 0, 0).low, -1);
  EXPECT_EQ(PairedDifferenceInterval(0, 0, 0, 0).high, 1);
  EXPECT_EQ(PairedDifferenceInterval(0, 10, 0, 0).high, 1);
  EXPECT_NEAR(PairedDifferenceInterval(0, 10, 0, 0).low, 0.607509350431, 1e-9);
  // Without discordant pairs symmetric around 0, and not of length 0.
  const Interval same = PairedDifferenceInterval(54, 0, 0, 0);
  EXPECT_NEAR(same.low, -0.066413588091, 1e-9);
  EXPECT_NEAR(same.high, 0.066413588091, 1e-9);
}

}  // namespace
}  // namespace pmkvq
