#include "pmkvq/eval/statistics.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/check.h"

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

}  // namespace

Interval WilsonInterval(int64_t successes, int64_t trials) {
  PMKVQ_CHECK(successes >= 0 && successes <= trials);
  if (trials == 0) return {};
  const double n = static_cast<double>(trials);
  const double p = static_cast<double>(successes) / n;
  const double z2 = kNormalQuantile * kNormalQuantile;
  const double center = p + z2 / (2 * n);
  const double half = kNormalQuantile * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  Interval interval;
  // At the ends the limits are 0 and 1 exactly; rounding would put them a little aside.
  interval.low = successes == 0 ? 0 : (center - half) / (1 + z2 / n);
  interval.high = successes == trials ? 1 : (center + half) / (1 + z2 / n);
  return interval;
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
  const int64_t trials = both + only_a + only_b + neither;
  if (trials == 0) return {-1, 1};
  const double n = static_cast<double>(trials);
  const double p_a = static_cast<double>(both + only_a) / n;
  const double p_b = static_cast<double>(both + only_b) / n;
  const Interval a = WilsonInterval(both + only_a, trials);
  const Interval b = WilsonInterval(both + only_b, trials);
  const double correlation =
      PairCorrelation(static_cast<double>(both), static_cast<double>(only_a),
                      static_cast<double>(only_b), static_cast<double>(neither));
  const double difference = p_a - p_b;
  Interval interval;
  interval.low = std::max(difference - CombineErrors(p_a - a.low, b.high - p_b, correlation), -1.0);
  interval.high = std::min(difference + CombineErrors(a.high - p_a, p_b - b.low, correlation), 1.0);
  return interval;
}

}  // namespace pmkvq
