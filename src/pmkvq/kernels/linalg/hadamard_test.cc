#include "pmkvq/kernels/linalg/hadamard.h"

#include <gtest/gtest.h>

#include <bit>
#include <vector>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

TEST(Hadamard, IsTheMatrixAndItsOwnInverse) {
  Random random(3);
  for (const size_t count : {size_t{1}, size_t{2}, size_t{16}, size_t{128}}) {
    SCOPED_TRACE(count);
    std::vector<double> x(count);
    for (double& value : x) value = random.Uniform() - 0.5;
    std::vector<double> y = x;
    Hadamard(y.data(), static_cast<int64_t>(count));
    for (size_t i = 0; i < count; ++i) {
      double expected = 0;
      for (size_t j = 0; j < count; ++j) {
        expected += (std::popcount(i & j) % 2 == 0 ? x[j] : -x[j]);
      }
      EXPECT_NEAR(y[i], expected / std::sqrt(static_cast<double>(count)), 1e-14);
    }
    Hadamard(y.data(), static_cast<int64_t>(count));
    for (size_t i = 0; i < count; ++i) EXPECT_NEAR(y[i], x[i], 1e-15);
  }
}

}  // namespace
}  // namespace pmkvq
