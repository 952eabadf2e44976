// TurboQuant against published distortions of the Lloyd-Max quantiser and by its symmetries.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/random.h"
#include "support/method_chunks.h"
#include "support/method_golden.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectChunksDoNotMatter;
using testing_support::ExpectRefused;
using testing_support::GoldenCache;
using testing_support::StoredAfter;

constexpr UniformKvGeometry kGeometry{1, 1, 1, 128};
constexpr int64_t kRows = 400;

// Rows of the same spread in all channels, or with three large ones, which the rotation spreads.
std::vector<float> RandomRows(uint64_t seed, float large = 1) {
  Random random(seed);
  std::vector<float> x;
  for (int64_t i = 0; i < kRows * 128; ++i) {
    const float spread = i % 128 < 3 ? large : 1.0f;
    x.push_back(spread * static_cast<float>(random.Uniform() + random.Uniform() - 1));
  }
  return x;
}

struct Read {
  std::vector<float> k;
  std::vector<float> v;
};

Read ReadBack(const std::string& spec, const std::vector<float>& x) {
  GoldenCache cache(spec, kGeometry, x, x);
  cache.Append(kRows);
  return {cache.Keys(), cache.Values()};
}

// Mean over rows of |x - y|^2 / |x|^2.
double Distortion(const std::vector<float>& x, const std::vector<float>& y) {
  double sum = 0;
  for (size_t row = 0; row < x.size(); row += 128) {
    double error = 0;
    double squares = 0;
    for (size_t i = row; i < row + 128; ++i) {
      error += std::pow(double{x[i]} - double{y[i]}, 2);
      squares += std::pow(double{x[i]}, 2);
    }
    sum += error / squares;
  }
  return sum / static_cast<double>(x.size() / 128);
}

// Max (1960): the least mean square errors of a normal variable. A coordinate of a sphere in 128
// dimensions is nearly one; its tails are a little shorter.
TEST(TurboQuant, DistortionsAreThoseOfLloydAndMax) {
  const std::vector<float> x = RandomRows(3);
  const double normal[] = {0.3634, 0.1175, 0.03454, 0.009497, 0.002499};
  for (int bits = 1; bits <= 5; ++bits) {
    const std::string width = std::to_string(bits);
    const Read read = ReadBack("turboquant:k=" + width + "+v=" + width, x);
    EXPECT_EQ(read.k, read.v);
    EXPECT_NEAR(Distortion(x, read.k), normal[bits - 1], 0.03 * normal[bits - 1]) << bits;
  }
}

// Three channels hold nearly all of a row: 16 levels over its range would miss the others.
TEST(TurboQuant, LargeChannelsDoNotHideTheOthers) {
  const std::vector<float> x = RandomRows(6, 30);
  const Read read = ReadBack("turboquant", x);
  EXPECT_LT(Distortion(x, read.k), 0.012);
}

TEST(TurboQuant, ReadingGrowsWithTheRow) {
  std::vector<float> x = RandomRows(4, 30);
  const Read once = ReadBack("turboquant:qjl", x);
  for (float& value : x) value *= 4;
  const Read four_times = ReadBack("turboquant:qjl", x);
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_FLOAT_EQ(four_times.k[i], 4 * once.k[i]);
    ASSERT_FLOAT_EQ(four_times.v[i], 4 * once.v[i]);
  }
}

TEST(TurboQuant, RowsOfZerosStayZero) {
  const std::vector<float> zeros(kRows * 128);
  EXPECT_EQ(ReadBack("turboquant:qjl+k=2", zeros).k, zeros);
}

// Products with the read row, over the product with the row: the plain quantiser's shrink (its
// reconstruction has less energy), those with the residual do not.
TEST(TurboQuant, ResidualSignsMakeScoresUnbiased) {
  const std::vector<float> x = RandomRows(5);
  const auto slope = [&](const std::vector<float>& read) {
    double products = 0;
    double squares = 0;
    for (size_t i = 0; i < x.size(); ++i) {
      products += double{x[i]} * double{read[i]};
      squares += double{x[i]} * double{x[i]};
    }
    return products / squares;
  };
  const Read plain = ReadBack("turboquant:k=1+v=1", x);
  const Read qjl = ReadBack("turboquant:qjl+k=2+v=1", x);
  EXPECT_NEAR(slope(plain.k), 1 - 0.3634, 0.02);
  EXPECT_NEAR(slope(qjl.k), 1, 0.02);
  EXPECT_EQ(qjl.v, plain.v) << "of keys only";
  EXPECT_GT(Distortion(x, qjl.k), 0.1175) << "and cost more than a bit of the quantiser";
}

TEST(TurboQuant, ChunksAndTruncationsDoNotMatter) {
  ExpectChunksDoNotMatter("turboquant", 250);
  ExpectChunksDoNotMatter("turboquant:k=3+v=2+qjl", 240);
  const UniformKvGeometry geometry{1, 4, 2, 64};
  EXPECT_EQ(StoredAfter("turboquant:recent=60", geometry, {70, 1, 1, 28}),
            StoredAfter("turboquant:recent=60", geometry, {100}));
}

TEST(TurboQuant, BytesByHand) {
  // Two heads of 64: at 4 bits 32 bytes of codes and a norm of 2, for K and for V.
  EXPECT_EQ(BytesAfter("turboquant", 10), 10 * 2 * 2 * 34);
  EXPECT_EQ(BytesAfter("turboquant:k=3+v=2+qjl+recent=6", 10),
            4 * 2 * (24 + 2 + 2 + 16 + 2) + 6 * 512);
}

TEST(TurboQuant, NamesWhatIsWrong) {
  ExpectRefused("turboquant:qjl+k=1", "k=1, expected 2 or more with qjl");
  ExpectRefused("turboquant:k=9", "k=9, expected a whole number in [1, 8]");
}

}  // namespace
}  // namespace pmkvq
