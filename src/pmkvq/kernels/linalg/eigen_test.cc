#include "pmkvq/kernels/linalg/eigen.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

TEST(EigenOfSymmetric, TwoByTwoByHand) {
  // [[2, 1], [1, 2]]: 1 with (1, -1) / sqrt 2, 3 with (1, 1) / sqrt 2.
  const double a[] = {2, 1, 1, 2};
  const SymmetricEigen eigen = EigenOfSymmetric(a, 2);
  const double half = std::sqrt(0.5);
  EXPECT_NEAR(eigen.values[0], 1, 1e-15);
  EXPECT_NEAR(eigen.values[1], 3, 1e-15);
  EXPECT_NEAR(std::abs(eigen.vectors[0]), half, 1e-15);
  EXPECT_NEAR(eigen.vectors[0] + eigen.vectors[1], 0, 1e-15);
  EXPECT_NEAR(eigen.vectors[2], half, 1e-15);
  EXPECT_NEAR(eigen.vectors[3], half, 1e-15);
}

TEST(EigenOfSymmetric, DiagonalMatrixGivesUnitVectorsInOrderWithPositiveSigns) {
  const double a[] = {5, 0, 0, 0, -2, 0, 0, 0, 3};
  const SymmetricEigen eigen = EigenOfSymmetric(a, 3);
  EXPECT_EQ(eigen.values, (std::vector<double>{-2, 3, 5}));
  EXPECT_EQ(eigen.vectors, (std::vector<double>{0, 1, 0, 0, 0, 1, 1, 0, 0}));
}

// A v = value v, V V^T = I and the signs, for the sizes of heads.
TEST(EigenOfSymmetric, RandomMatricesAreDiagonalised) {
  Random random(5);
  for (const int64_t n : {1, 8, 64, 128, 256}) {
    SCOPED_TRACE(n);
    const auto size = static_cast<size_t>(n);
    std::vector<double> a(size * size);
    for (size_t i = 0; i < size; ++i) {
      for (size_t j = i; j < size; ++j) a[i * size + j] = a[j * size + i] = random.Uniform() - 0.5;
    }
    const SymmetricEigen eigen = EigenOfSymmetric(a.data(), n);
    EXPECT_TRUE(std::is_sorted(eigen.values.begin(), eigen.values.end()));
    const double tolerance = 1e-14 * static_cast<double>(n);
    for (size_t i = 0; i < size; ++i) {
      const double* v = eigen.vectors.data() + i * size;
      const double* w = eigen.vectors.data() + (size - 1 - i) * size;
      double dot = 0;
      for (size_t r = 0; r < size; ++r) {
        double product = 0;
        for (size_t c = 0; c < size; ++c) product += a[r * size + c] * v[c];
        ASSERT_NEAR(product, eigen.values[i] * v[r], tolerance) << i;
        dot += v[r] * w[r];
      }
      ASSERT_NEAR(dot, v == w ? 1.0 : 0.0, tolerance) << i;
      const double* largest = std::max_element(
          v, v + size, [](double x, double y) { return std::abs(x) < std::abs(y); });
      ASSERT_GT(*largest, 0) << i;
    }
  }
}

TEST(EigenOfSymmetric, NamesValuesThatAreNotFinite) {
  const double a[] = {1, std::numeric_limits<double>::quiet_NaN(), 0, 1};
  testing_support::ExpectError<InvalidInput>([&] { EigenOfSymmetric(a, 2); },
                                             {"eigenvectors", "not finite"});
}

}  // namespace
}  // namespace pmkvq
