#include "pmkvq/kernels/attention/causal_attention.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "pmkvq/kernels/attention/causal_tiles.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(CausalAttentionTest, internal::CausalTilesTarget,
                   "kernels/attention/causal_tiles.cc");
PMKVQ_TARGET_SUITE(CausalAttentionGradTest, internal::CausalTilesTarget);

template <class Real>
struct Problem {
  Problem(int64_t tokens, int64_t heads, int64_t kv_heads, int64_t dim, int64_t window = 0)
      : shape{tokens, heads, kv_heads, dim, 1.0 / std::sqrt(static_cast<double>(dim)), window},
        q(Random(heads)),
        k(Random(kv_heads)),
        v(Random(kv_heads)),
        dout(Random(heads)),
        out(q.size()),
        dq(q.size()),
        dk(k.size()),
        dv(v.size()) {}

  std::vector<Real> Random(int64_t heads) {
    std::normal_distribution<double> normal;
    std::vector<Real> x(static_cast<size_t>(shape.num_tokens * heads * shape.head_dim));
    for (Real& value : x) value = static_cast<Real>(normal(random));
    return x;
  }
  void Forward(int threads = 1) {
    CausalAttention(shape, q.data(), k.data(), v.data(), out.data(), threads);
  }
  void Backward(int threads = 1) {
    CausalAttentionGrad(shape, q.data(), k.data(), v.data(), dout.data(), dq.data(), dk.data(),
                        dv.data(), threads);
  }
  // L = sum(dout * out), whose gradients Backward gives.
  double Loss() {
    Forward();
    double loss = 0.0;
    for (size_t i = 0; i < out.size(); ++i) loss += static_cast<double>(out[i] * dout[i]);
    return loss;
  }

  std::mt19937 random{5};
  CausalAttentionShape shape;
  std::vector<Real> q, k, v, dout, out, dq, dk, dv;
};

// The definition, one row at a time.
std::vector<double> Naive(const Problem<double>& p) {
  const auto [tokens, heads, kv_heads, dim, scale, window] = p.shape;
  std::vector<double> out(p.q.size(), 0.0);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t h = 0; h < heads; ++h) {
      const double* q = p.q.data() + (t * heads + h) * dim;
      double* o = out.data() + (t * heads + h) * dim;
      double sum = 0.0;
      for (int64_t m = window == 0 ? 0 : std::max<int64_t>(0, t - window + 1); m <= t; ++m) {
        const int64_t row = (m * kv_heads + h / (heads / kv_heads)) * dim;
        double dot = 0.0;
        for (int64_t i = 0; i < dim; ++i) dot += q[i] * p.k[static_cast<size_t>(row + i)];
        const double weight = std::exp(dot * scale);
        sum += weight;
        for (int64_t i = 0; i < dim; ++i) o[i] += weight * p.v[static_cast<size_t>(row + i)];
      }
      for (int64_t i = 0; i < dim; ++i) o[i] /= sum;
    }
  }
  return out;
}

template <class Real>
double LargestDifference(const std::vector<Real>& a, const std::vector<double>& b) {
  double largest = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(static_cast<double>(a[i]) - b[i]));
  }
  return largest;
}

// Values are of order 1 and sums of at most 300 terms: 300 x 2^-53 and 300 x 2^-24 with room for
// the errors of scores (D terms each) inside exp.
constexpr double kDoubleTolerance = 1e-12;
constexpr double kFloatTolerance = 1e-4;

TEST_P(CausalAttentionTest, MatchesTheDefinition) {
  for (const int64_t tokens : {1, 2, 127, 128, 129, 300}) {
    Problem<double> p(tokens, 4, 2, 8);
    p.Forward();
    const std::vector<double> expected = Naive(p);
    EXPECT_LE(LargestDifference(p.out, expected), kDoubleTolerance) << tokens;

    Problem<float> f(tokens, 4, 2, 8);
    f.Forward();
    EXPECT_LE(LargestDifference(f.out, expected), kFloatTolerance) << tokens;
  }
}

TEST_P(CausalAttentionTest, SlidingWindowsMatchTheDefinition) {
  for (const int64_t window : {1, 2, 15, 16, 17, 100, 128, 299, 300, 1000}) {
    for (const int64_t tokens : {1, 129, 300}) {
      Problem<double> p(tokens, 4, 2, 8, window);
      p.Forward();
      const std::vector<double> expected = Naive(p);
      EXPECT_LE(LargestDifference(p.out, expected), kDoubleTolerance) << tokens << " " << window;
      Problem<float> f(tokens, 4, 2, 8, window);
      f.Forward(2);
      EXPECT_LE(LargestDifference(f.out, expected), kFloatTolerance) << tokens << " " << window;
    }
  }
}

void ExpectFiniteDifferences(Problem<double>& p, std::vector<double>& x,
                             const std::vector<double>& gradient) {
  // Central differences err by h^2 (third derivatives of order 1) plus 2^-53 L / h.
  constexpr double kStep = 1e-5;
  constexpr double kTolerance = 1e-8;
  for (size_t i = 0; i < x.size(); ++i) {
    const double value = x[i];
    x[i] = value + kStep;
    const double up = p.Loss();
    x[i] = value - kStep;
    const double down = p.Loss();
    x[i] = value;
    ASSERT_NEAR(gradient[i], (up - down) / (2 * kStep), kTolerance) << i;
  }
}

TEST(CausalAttentionGradTest, MatchesFiniteDifferences) {
  for (const int64_t window : {0, 1, 4}) {
    Problem<double> p(9, 6, 2, 4, window);
    p.Backward();
    ASSERT_NO_FATAL_FAILURE(ExpectFiniteDifferences(p, p.q, p.dq)) << window;
    ASSERT_NO_FATAL_FAILURE(ExpectFiniteDifferences(p, p.k, p.dk)) << window;
    ASSERT_NO_FATAL_FAILURE(ExpectFiniteDifferences(p, p.v, p.dv)) << window;
  }
}

// Across block edges: a directional derivative over all inputs at once.
TEST(CausalAttentionGradTest, MatchesDirectionalDerivativeOverSeveralBlocks) {
  Problem<double> p(270, 2, 1, 8);
  p.Backward();
  const std::vector<double> directions[] = {p.Random(2), p.Random(1), p.Random(1)};
  std::vector<double>* const inputs[] = {&p.q, &p.k, &p.v};
  const std::vector<double>* const gradients[] = {&p.dq, &p.dk, &p.dv};
  constexpr double kStep = 1e-5;
  for (int n = 0; n < 3; ++n) {
    double expected = 0.0;
    double size = 0.0;
    const std::vector<double> start = *inputs[n];
    const auto move = [&](double step) {
      for (size_t i = 0; i < start.size(); ++i)
        (*inputs[n])[i] = start[i] + step * directions[n][i];
      return p.Loss();
    };
    for (size_t i = 0; i < start.size(); ++i) {
      expected += (*gradients[n])[i] * directions[n][i];
      size += std::abs((*gradients[n])[i] * directions[n][i]);
    }
    const double difference = (move(kStep) - move(-kStep)) / (2 * kStep);
    move(0.0);
    EXPECT_NEAR(expected, difference, 1e-7 * size) << n;
  }
}

TEST_P(CausalAttentionGradTest, FloatAgreesWithDouble) {
  for (const int64_t window : {0, 33, 150}) {
    Problem<double> d(200, 4, 2, 16, window);
    Problem<float> f(200, 4, 2, 16, window);
    d.Backward();
    f.Backward();
    EXPECT_LE(LargestDifference(f.dq, d.dq), kFloatTolerance) << window;
    EXPECT_LE(LargestDifference(f.dk, d.dk), kFloatTolerance) << window;
    EXPECT_LE(LargestDifference(f.dv, d.dv), kFloatTolerance) << window;
  }
}

TEST_P(CausalAttentionTest, BitsDoNotDependOnThreads) {
  Problem<float> p(300, 4, 2, 16);
  p.Forward(1);
  p.Backward(1);
  Problem<float> q(300, 4, 2, 16);
  q.Forward(3);
  q.Backward(3);
  EXPECT_EQ(p.out, q.out);
  EXPECT_EQ(p.dq, q.dq);
  EXPECT_EQ(p.dk, q.dk);
  EXPECT_EQ(p.dv, q.dv);
}

}  // namespace
}  // namespace pmkvq
