#include "pmkvq/kernels/linalg/inverse_factor.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

// X^T X of `rows` random rows, plus `damping` on the diagonal.
std::vector<double> SecondMoment(int64_t n, int64_t rows, double damping, uint64_t seed) {
  Random random(seed);
  std::vector<double> x(static_cast<size_t>(rows * n));
  for (double& value : x) value = random.Uniform() - 0.5;
  std::vector<double> a(static_cast<size_t>(n * n));
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      double sum = i == j ? damping : 0.0;
      for (int64_t t = 0; t < rows; ++t) {
        sum += x[static_cast<size_t>(t * n + i)] * x[static_cast<size_t>(t * n + j)];
      }
      a[static_cast<size_t>(i * n + j)] = sum;
    }
  }
  return a;
}

// U^T U a is the identity, and U is upper triangular.
TEST(FactorOfInverse, TimesTheMatrixIsTheIdentity) {
  for (const int64_t n : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{32}, int64_t{77}}) {
    const std::vector<double> a = SecondMoment(n, 3 * n, 0.01, static_cast<uint64_t>(n));
    std::vector<double> u = a;
    // The other triangle is not read.
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < i; ++j) {
        u[static_cast<size_t>(i * n + j)] = std::numeric_limits<double>::quiet_NaN();
      }
    }
    ASSERT_TRUE(FactorOfInverse(u.data(), n));
    const auto at = [n](const std::vector<double>& m, int64_t i, int64_t j) {
      return m[static_cast<size_t>(i * n + j)];
    };
    std::vector<double> inverse(static_cast<size_t>(n * n));
    for (int64_t i = 0; i < n; ++i) {
      EXPECT_GT(at(u, i, i), 0.0);
      for (int64_t j = 0; j < n; ++j) {
        if (i > j) {
          EXPECT_EQ(at(u, i, j), 0.0);
        }
        for (int64_t k = 0; k < n; ++k) {
          inverse[static_cast<size_t>(i * n + j)] += at(u, k, i) * at(u, k, j);
        }
      }
    }
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        double sum = 0;
        for (int64_t k = 0; k < n; ++k) sum += at(inverse, i, k) * at(a, k, j);
        ASSERT_NEAR(sum, i == j ? 1.0 : 0.0, 1e-9) << n << ": " << i << ", " << j;
      }
    }
  }
}

TEST(FactorOfInverse, SaysWhatHasNone) {
  std::vector<double> singular = SecondMoment(8, 4, 0.0, 5);  // Rank 4 of 8.
  singular[9] -= 1e-3;
  EXPECT_FALSE(FactorOfInverse(singular.data(), 8));
  std::vector<double> zero(9);
  EXPECT_FALSE(FactorOfInverse(zero.data(), 3));
  std::vector<double> bad = SecondMoment(3, 9, 0.1, 6);
  bad[1] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(FactorOfInverse(bad.data(), 3));
}

}  // namespace
}  // namespace pmkvq
