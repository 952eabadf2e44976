#include "pmkvq/research/statistics/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
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

// Each response one problem: nothing but the plain figures, to the last bit.
TEST(Clusters, OfOneResponseChangeNothing) {
  std::vector<ResponseCluster> responses;
  std::vector<PairCluster> pairs;
  const auto add = [&](int64_t count, const PairCluster& pair) {
    for (int64_t i = 0; i < count; ++i) {
      pairs.push_back(pair);
      responses.push_back({1, pair.both + pair.only_a});
    }
  };
  add(53, {1, 0, 0, 0});
  add(16, {0, 1, 0, 0});
  add(8, {0, 0, 1, 0});
  add(9, {0, 0, 0, 1});
  const Interval share = ClusteredShareInterval(responses);
  EXPECT_EQ(share.low, WilsonInterval(69, 86).low);
  EXPECT_EQ(share.high, WilsonInterval(69, 86).high);
  const Interval difference = ClusteredDifferenceInterval(pairs);
  EXPECT_EQ(difference.low, PairedDifferenceInterval(53, 16, 8, 9).low);
  EXPECT_EQ(difference.high, PairedDifferenceInterval(53, 16, 8, 9).high);
  EXPECT_EQ(ClusteredMcNemar(pairs), McNemarExact(16, 8));
}

// Equal responses to a problem are worth one: 40 problems with 16 equal responses each have nearly
// the interval of 40 responses (the factor 40 / 39 is that of an estimated variance).
TEST(Clusters, EqualResponsesAreWorthOne) {
  std::vector<ResponseCluster> problems(30, {16, 16});
  problems.resize(40, {16, 0});
  const Interval interval = ClusteredShareInterval(problems);
  EXPECT_NEAR(interval.low, WilsonInterval(30, 40).low, 1e-12);
  EXPECT_NEAR(interval.high, WilsonInterval(30, 40).high, 1e-12);
  // All right: no variance to be seen, and still not surer than the problems are many.
  const Interval all = ClusteredShareInterval(std::vector<ResponseCluster>(40, {16, 16}));
  EXPECT_NEAR(all.low, WilsonInterval(40, 40).low, 1e-12);
  EXPECT_EQ(all.high, 1);

  std::vector<PairCluster> pairs(20, {16, 0, 0, 0});
  pairs.resize(32, {0, 16, 0, 0});
  pairs.resize(34, {0, 0, 16, 0});
  pairs.resize(50, {0, 0, 0, 16});
  const Interval difference = ClusteredDifferenceInterval(pairs);
  EXPECT_NEAR(difference.low, PairedDifferenceInterval(20, 12, 2, 16).low, 1e-12);
  EXPECT_NEAR(difference.high, PairedDifferenceInterval(20, 12, 2, 16).high, 1e-12);
  EXPECT_NEAR(ClusteredMcNemar(pairs), McNemarExact(12, 2), 1e-12);
}

// Problems that are all alike, with responses that differ: as good as independent ones.
TEST(Clusters, ResponsesThatVaryWithinProblemsCountFully) {
  const Interval interval = ClusteredShareInterval(std::vector<ResponseCluster>(50, {4, 3}));
  EXPECT_EQ(interval.low, WilsonInterval(150, 200).low);
  EXPECT_EQ(interval.high, WilsonInterval(150, 200).high);
  const Interval difference =
      ClusteredDifferenceInterval(std::vector<PairCluster>(50, {1, 1, 1, 1}));
  EXPECT_EQ(difference.low, PairedDifferenceInterval(50, 50, 50, 50).low);
}

// By hand: 2 problems of 4 responses with 4 and 1 right. Mean 5/8, deviations 1.5 and -1.5:
// between 2 x 4.5 = 9, independent 8 x 15/64 = 15/8, design effect 4.8, and the two problems are
// the least that the effective number may be.
TEST(Clusters, EffectiveNumberByHand) {
  const Interval few = ClusteredShareInterval({{4, 4}, {4, 1}});
  const double z2 = 1.959963984540054 * 1.959963984540054;
  const double n = 2;
  const double p = 0.625;
  const double half = std::sqrt(z2) * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  EXPECT_NEAR(few.low, (p + z2 / (2 * n) - half) / (1 + z2 / n), 1e-12);
  EXPECT_NEAR(few.high, (p + z2 / (2 * n) + half) / (1 + z2 / n), 1e-12);
}

// All 2^n signs, for random small problems.
TEST(ClusteredMcNemar, EqualsTheSumOverAllSigns) {
  uint32_t state = 1;
  const auto draw = [&](uint32_t below) {
    state = state * 1664525 + 1013904223;
    return static_cast<int64_t>((state >> 16) % below);
  };
  for (int round = 0; round < 50; ++round) {
    std::vector<PairCluster> problems;
    std::vector<int64_t> differences;
    int64_t observed = 0;
    for (int i = 0; i < 10; ++i) {
      const PairCluster problem = {draw(3), draw(4), draw(4), draw(3)};
      problems.push_back(problem);
      differences.push_back(problem.only_a - problem.only_b);
      observed += differences.back();
    }
    int64_t at_least = 0;
    for (unsigned signs = 0; signs < 1024; ++signs) {
      int64_t sum = 0;
      for (size_t i = 0; i < 10; ++i)
        sum += ((signs >> i) & 1) != 0 ? differences[i] : -differences[i];
      at_least += std::abs(sum) >= std::abs(observed) ? 1 : 0;
    }
    EXPECT_NEAR(ClusteredMcNemar(problems), static_cast<double>(at_least) / 1024, 1e-12);
  }
}

// Past the limit of the exact sum: 20,000 problems of d = 2, sum 600, variance 80,000.
TEST(ClusteredMcNemar, ManyProblemsTakeTheNormalDistribution) {
  std::vector<PairCluster> problems(10150, {0, 2, 0, 0});
  problems.resize(20000, {0, 0, 2, 0});
  EXPECT_NEAR(ClusteredMcNemar(problems), std::erfc(600 / std::sqrt(2 * 80000.0)), 1e-12);
}

TEST(Clusters, NothingSaysNothing) {
  EXPECT_EQ(ClusteredShareInterval({}).low, 0);
  EXPECT_EQ(ClusteredShareInterval({}).high, 1);
  EXPECT_EQ(ClusteredDifferenceInterval({}).low, -1);
  EXPECT_EQ(ClusteredMcNemar({}), 1);
}

}  // namespace
}  // namespace pmkvq
