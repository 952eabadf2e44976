// Intervals and tests for counts of solved problems.
#pragma once

#include <cstdint>

namespace pmkvq {

struct Interval {
  double low = 0;
  double high = 1;
};

// 95 % Wilson score interval of a proportion; [0, 1] for no trials.
Interval WilsonInterval(int64_t successes, int64_t trials);

// Exact two-sided McNemar test of paired outcomes: `only_a` pairs where a alone succeeded,
// `only_b` where b alone did. P = min(1, 2 P[X <= min(only_a, only_b)]), X ~ Binomial(only_a +
// only_b, 1/2). 1 for no discordant pairs.
double McNemarExact(int64_t only_a, int64_t only_b);

// 95 % interval of the difference of paired proportions, p_a - p_b, over n pairs: Newcombe's
// method 10 (score intervals, corrected for the correlation of the pairs). In [-1, 1].
Interval PairedDifferenceInterval(int64_t both, int64_t only_a, int64_t only_b, int64_t neither);

}  // namespace pmkvq
