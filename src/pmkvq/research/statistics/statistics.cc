#include "pmkvq/research/statistics/statistics.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/interrupt.h"

namespace pmkvq {
namespace {

// The 0.975 quantile of the normal distribution: two-sided 95 %.
constexpr double kNormalQuantile = 1.959963984540054;

// The correlation of the pairs as method 10 takes it: with a continuity correction of n / 2 against
// overstating a positive one, and 0 where a margin is empty.
double PairCorrelation(double both, double only_a, double only_b, double neither) {
  const double margins =
      (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither);
  if (margins <= 0) return 0;
  const double n = both + only_a + only_b + neither;
  double covariance = both * neither - only_a * only_b;
  if (covariance > 0) covariance = std::max(covariance - n / 2, 0.0);
  return covariance / std::sqrt(margins);
}

// Length of the third side of a triangle whose sides x and y have the cosine `correlation`.
double CombineErrors(double x, double y, double correlation) {
  return std::sqrt(std::max(x * x - 2 * correlation * x * y + y * y, 0.0));
}

// Wilson's interval for counts that need not be whole.
Interval ScoreInterval(double successes, double n) {
  const double p = successes / n;
  const double z2 = kNormalQuantile * kNormalQuantile;
  const double center = p + z2 / (2 * n);
  const double half = kNormalQuantile * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  Interval interval;
  // At the ends the limits are exactly 0 and 1; the formula may miss them by a rounding error.
  interval.low = successes <= 0 ? 0 : (center - half) / (1 + z2 / n);
  interval.high = successes >= n ? 1 : (center + half) / (1 + z2 / n);
  return interval;
}

// Newcombe's method 10 for counts that need not be whole.
Interval DifferenceInterval(double both, double only_a, double only_b, double neither) {
  const double n = both + only_a + only_b + neither;
  const double p_a = (both + only_a) / n;
  const double p_b = (both + only_b) / n;
  const Interval a = ScoreInterval(both + only_a, n);
  const Interval b = ScoreInterval(both + only_b, n);
  const double correlation = PairCorrelation(both, only_a, only_b, neither);
  const double difference = p_a - p_b;
  Interval interval;
  interval.low = std::max(difference - CombineErrors(p_a - a.low, b.high - p_b, correlation), -1.0);
  interval.high = std::min(difference + CombineErrors(a.high - p_a, p_b - b.low, correlation), 1.0);
  return interval;
}

// A sum over the responses to one problem.
struct ClusterSum {
  int64_t responses = 0;
  int64_t sum = 0;
};

// The number of independent responses with the same variance of the mean. `independent` is the sum
// of squared deviations from the mean of all responses.
double EffectiveResponses(const std::vector<ClusterSum>& problems, double independent) {
  double num_problems = 0;
  double n = 0;
  double total = 0;
  for (const ClusterSum& problem : problems) {
    num_problems += problem.responses > 0 ? 1 : 0;
    n += static_cast<double>(problem.responses);
    total += static_cast<double>(problem.sum);
  }
  if (num_problems < 2 || independent <= 0) return num_problems;
  double between = 0;
  for (const ClusterSum& problem : problems) {
    const double deviation =
        static_cast<double>(problem.sum) - total / n * static_cast<double>(problem.responses);
    between += deviation * deviation;
  }
  between *= num_problems / (num_problems - 1);
  return std::clamp(between > 0 ? n * independent / between : n, num_problems, n);
}

// P[|sum of +-d| >= |sum of d|] over all signs, by counting the sums. All d are positive.
double SignFlipTest(const std::vector<int64_t>& magnitudes, int64_t observed, int64_t sum) {
  // Entry i: probability that the sum of those taken so far is i - sum.
  std::vector<double> probabilities(static_cast<size_t>(2 * sum + 1));
  probabilities[static_cast<size_t>(sum)] = 1;
  int64_t reach = 0;
  for (const int64_t d : magnitudes) {
    CancelPoint();
    std::vector<double> next(probabilities.size());
    for (int64_t i = sum - reach; i <= sum + reach; ++i) {
      const double half = probabilities[static_cast<size_t>(i)] / 2;
      next[static_cast<size_t>(i - d)] += half;
      next[static_cast<size_t>(i + d)] += half;
    }
    probabilities = std::move(next);
    reach += d;
  }
  double tail = 0;
  for (int64_t i = observed; i <= sum; ++i) {
    tail +=
        probabilities[static_cast<size_t>(sum - i)] + probabilities[static_cast<size_t>(sum + i)];
  }
  return std::min(tail, 1.0);
}

}  // namespace

Interval WilsonInterval(int64_t successes, int64_t trials) {
  PMKVQ_CHECK(successes >= 0 && successes <= trials);
  if (trials == 0) return {};
  return ScoreInterval(static_cast<double>(successes), static_cast<double>(trials));
}

double McNemarExact(int64_t only_a, int64_t only_b) {
  PMKVQ_CHECK(only_a >= 0 && only_b >= 0);
  if (only_a == only_b) return 1;
  const int64_t n = only_a + only_b;
  const int64_t least = std::min(only_a, only_b);
  // The largest term by its logarithm, since 2^-n itself leaves the range of a double at 1,075
  // pairs. In long double: the terms of the logarithm are about n ln n and nearly cancel.
  const auto log_factorial = [](int64_t k) { return std::lgamma(static_cast<long double>(k) + 1); };
  const long double log_term = log_factorial(n) - log_factorial(least) - log_factorial(n - least) -
                               static_cast<long double>(n) * std::log(2.0L);
  // P[X = k - 1] = P[X = k] k / (n - k + 1): the sum relative to P[X = least].
  long double sum = 1;
  long double term = 1;
  for (int64_t k = least; k > 0 && term > sum * 1e-20L; --k) {
    term *= static_cast<long double>(k) / static_cast<long double>(n - k + 1);
    sum += term;
  }
  return static_cast<double>(std::min(1.0L, 2 * std::exp(log_term + std::log(sum))));
}

Interval PairedDifferenceInterval(int64_t both, int64_t only_a, int64_t only_b, int64_t neither) {
  PMKVQ_CHECK(both >= 0 && only_a >= 0 && only_b >= 0 && neither >= 0);
  if (both + only_a + only_b + neither == 0) return {-1, 1};
  return DifferenceInterval(static_cast<double>(both), static_cast<double>(only_a),
                            static_cast<double>(only_b), static_cast<double>(neither));
}

Interval ClusteredShareInterval(const std::vector<ResponseCluster>& problems) {
  int64_t responses = 0;
  int64_t correct = 0;
  std::vector<ClusterSum> sums;
  for (const ResponseCluster& problem : problems) {
    PMKVQ_CHECK(problem.correct >= 0 && problem.correct <= problem.responses);
    responses += problem.responses;
    correct += problem.correct;
    sums.push_back({problem.responses, problem.correct});
  }
  if (responses == 0) return {};
  const double n = static_cast<double>(responses);
  const double share = static_cast<double>(correct) / n;
  const double effective = EffectiveResponses(sums, n * share * (1 - share));
  // Whole counts where nothing is scaled: share * n need not round to them.
  if (effective >= n) return WilsonInterval(correct, responses);
  return ScoreInterval(correct == responses ? effective : share * effective, effective);
}

Interval ClusteredDifferenceInterval(const std::vector<PairCluster>& problems) {
  PairCluster all;
  std::vector<ClusterSum> sums;
  for (const PairCluster& problem : problems) {
    all.both += problem.both;
    all.only_a += problem.only_a;
    all.only_b += problem.only_b;
    all.neither += problem.neither;
    sums.push_back({problem.both + problem.only_a + problem.only_b + problem.neither,
                    problem.only_a - problem.only_b});
  }
  const double n = static_cast<double>(all.both + all.only_a + all.only_b + all.neither);
  if (n == 0) return {-1, 1};
  const double discordant = static_cast<double>(all.only_a + all.only_b);
  const double difference = static_cast<double>(all.only_a - all.only_b);
  const double effective = EffectiveResponses(sums, discordant - difference * difference / n);
  if (effective >= n) {
    return PairedDifferenceInterval(all.both, all.only_a, all.only_b, all.neither);
  }
  const double scale = effective / n;
  return DifferenceInterval(
      scale * static_cast<double>(all.both), scale * static_cast<double>(all.only_a),
      scale * static_cast<double>(all.only_b), scale * static_cast<double>(all.neither));
}

double ClusteredMcNemar(const std::vector<PairCluster>& problems) {
  constexpr double kMostAdditions = 1e8;
  bool single = true;
  PairCluster all;
  int64_t sum = 0;
  double squares = 0;
  std::vector<int64_t> magnitudes;
  for (const PairCluster& problem : problems) {
    single = single && problem.both + problem.only_a + problem.only_b + problem.neither <= 1;
    all.only_a += problem.only_a;
    all.only_b += problem.only_b;
    const int64_t d = std::abs(problem.only_a - problem.only_b);
    if (d > 0) magnitudes.push_back(d);
    sum += d;
    squares += static_cast<double>(d) * static_cast<double>(d);
  }
  if (single) return McNemarExact(all.only_a, all.only_b);
  const int64_t observed = std::abs(all.only_a - all.only_b);
  if (observed == 0) return 1;
  const double additions = 2 * static_cast<double>(sum) * static_cast<double>(magnitudes.size());
  if (additions < kMostAdditions) return SignFlipTest(magnitudes, observed, sum);
  return std::erfc(static_cast<double>(observed) / std::sqrt(2 * squares));
}

}  // namespace pmkvq
