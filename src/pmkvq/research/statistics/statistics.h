// Intervals and tests for counts of solved problems.
//
// Several responses to one problem are more alike than responses to different problems: 16 right
// responses to one problem say little more than one. The functions for clusters take the counts
// problem by problem. With one response to every problem they equal the others to the last bit.
#pragma once

#include <cstdint>
#include <vector>

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

// Responses to one problem.
struct ResponseCluster {
  int64_t responses = 0;
  int64_t correct = 0;
};
// Pairs of responses to one problem.
struct PairCluster {
  int64_t both = 0;
  int64_t only_a = 0;
  int64_t only_b = 0;
  int64_t neither = 0;
};

// 95 % interval of the share of all responses: Wilson's with an effective number of responses in
// place of n (Rao and Scott). That number is n over the design effect, which is the variance of
// the share between problems over the variance p (1 - p) / n of independent responses. It lies
// between the number of problems and n; where all responses are right, or all are wrong, it is the
// number of problems.
Interval ClusteredShareInterval(const std::vector<ResponseCluster>& problems);

// PairedDifferenceInterval with the four counts scaled to an effective number of pairs. The design
// effect is that of the difference.
Interval ClusteredDifferenceInterval(const std::vector<PairCluster>& problems);

// Two-sided test that swaps the two methods problem by problem: P that |sum of +-d| is at least
// |sum of d|, where d = only_a - only_b of a problem and all signs are equally likely. Exact below
// about 1e8 additions, else the normal distribution with variance sum of d^2. McNemarExact when no
// problem has more than one pair.
double ClusteredMcNemar(const std::vector<PairCluster>& problems);

}  // namespace pmkvq
