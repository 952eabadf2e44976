#include "pmkvq/kernels/attention/few_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "pmkvq/base/random.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(FewRowsTest, internal::FewRowsTarget, "kernels/attention/few_rows.cc");

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) {
    values.push_back(static_cast<float>(random.Uniform() * 2 - 1));
  }
  return values;
}

// A sum of n products of numbers below 1 is off by n roundings of at most n half-ulps each; here
// n <= 130, and one more of the factor or of the addition.
double Tolerance(int64_t n) { return static_cast<double>((n + 1) * n) * 0x1p-24; }

TEST_P(FewRowsTest, ScoresAreScaledProducts) {
  for (const int64_t dim : {1, 64, 80, 128}) {
    for (const int64_t stride : {16, 128}) {
      for (const int64_t count : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128}) {
        if (count > stride) continue;
        for (const int64_t num_rows : {1, 2, 3, 5}) {
          const std::vector<float> q = RandomFloats(num_rows * dim, 1);
          const std::vector<float> keys = RandomFloats(dim * stride, 2);
          const int64_t scores_stride = count + 3;
          std::vector<float> scores(static_cast<size_t>(num_rows * scores_stride), 7.0f);
          FewRowScores(q.data(), num_rows, dim, keys.data(), stride, count, 0.25f, scores.data(),
                       scores_stride);
          for (int64_t row = 0; row < num_rows; ++row) {
            for (int64_t t = 0; t < scores_stride; ++t) {
              const auto found = double{scores[static_cast<size_t>(row * scores_stride + t)]};
              if (t >= count) {
                ASSERT_EQ(found, 7.0) << "behind the row";
                continue;
              }
              double sum = 0;
              for (int64_t k = 0; k < dim; ++k) {
                sum += double{q[static_cast<size_t>(row * dim + k)]} *
                       double{keys[static_cast<size_t>(k * stride + t)]};
              }
              ASSERT_NEAR(found, 0.25 * sum, Tolerance(dim)) << dim << " " << count << " " << t;
            }
          }
        }
      }
    }
  }
}

TEST_P(FewRowsTest, ValuesAreAdded) {
  for (const int64_t dim : {1, 15, 64, 80, 128}) {
    for (const int64_t count : {1, 2, 37, 128}) {
      for (const int64_t num_rows : {1, 2, 3, 5}) {
        std::vector<float> weights = RandomFloats(num_rows * (count + 2), 3);
        for (size_t i = 0; i < weights.size(); i += 3) weights[i] = 0;
        const std::vector<float> values = RandomFloats(count * dim, 4);
        const std::vector<float> before = RandomFloats(num_rows * dim, 5);
        std::vector<float> out = before;
        FewRowValues(weights.data(), count + 2, num_rows, dim, values.data(), count, out.data());
        for (int64_t row = 0; row < num_rows; ++row) {
          for (int64_t i = 0; i < dim; ++i) {
            auto sum = double{before[static_cast<size_t>(row * dim + i)]};
            for (int64_t t = 0; t < count; ++t) {
              sum += double{weights[static_cast<size_t>(row * (count + 2) + t)]} *
                     double{values[static_cast<size_t>(t * dim + i)]};
            }
            ASSERT_NEAR(double{out[static_cast<size_t>(row * dim + i)]}, sum, Tolerance(count))
                << dim << " " << count << " " << row;
          }
        }
      }
    }
  }
}

// A row alone, beside others, and at another place gives the same bits.
TEST_P(FewRowsTest, BitsDoNotDependOnNeighbours) {
  constexpr int64_t kDim = 80;
  constexpr int64_t kRows = 5;
  const std::vector<float> q = RandomFloats(kRows * kDim, 6);
  const std::vector<float> keys = RandomFloats(kDim * 128, 7);
  std::vector<float> scores(kRows * 128);
  FewRowScores(q.data(), kRows, kDim, keys.data(), 128, 128, 0.3f, scores.data(), 128);
  std::vector<float> shifted(static_cast<size_t>(kDim) * 16);  // Column 77 alone.
  for (size_t k = 0; k < kDim; ++k) shifted[k * 16] = keys[k * 128 + 77];
  const std::vector<float> values = RandomFloats(128 * kDim, 8);
  std::vector<float> out(kRows * kDim);
  FewRowValues(scores.data(), 128, kRows, kDim, values.data(), 128, out.data());
  for (size_t row = 0; row < kRows; ++row) {
    std::vector<float> alone(128);
    FewRowScores(q.data() + row * kDim, 1, kDim, keys.data(), 128, 128, 0.3f, alone.data(), 128);
    EXPECT_EQ(alone,
              std::vector<float>(scores.begin() + static_cast<std::ptrdiff_t>(row * 128),
                                 scores.begin() + static_cast<std::ptrdiff_t>(row * 128 + 128)));
    float one = 0;
    FewRowScores(q.data() + row * kDim, 1, kDim, shifted.data(), 16, 1, 0.3f, &one, 1);
    EXPECT_EQ(one, alone[77]);
    std::vector<float> of_row(kDim);
    FewRowValues(alone.data(), 128, 1, kDim, values.data(), 128, of_row.data());
    EXPECT_EQ(of_row,
              std::vector<float>(out.begin() + static_cast<std::ptrdiff_t>(row * kDim),
                                 out.begin() + static_cast<std::ptrdiff_t>((row + 1) * kDim)));
  }
}

}  // namespace
}  // namespace pmkvq
