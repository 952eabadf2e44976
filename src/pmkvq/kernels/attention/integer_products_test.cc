#include "pmkvq/kernels/attention/integer_products.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "support/target_suite.h"

namespace pmkvq::internal {
namespace {

PMKVQ_TARGET_SUITE(IntegerProductsTest, IntegerProductsTarget,
                   "kernels/attention/integer_products.cc");

// Random rows of codes in memory that is aligned to nothing, among them a row of the largest codes.
struct RandomRows {
  RandomRows(int64_t columns, int bits, int64_t num_rows, int64_t gap, uint32_t seed)
      : random(seed) {
    const int64_t row_bytes = PackedGroupBytes(columns, bits) + gap;
    memory.resize(static_cast<size_t>(num_rows * row_bytes + 1));
    for (std::byte& byte : memory) byte = static_cast<std::byte>(random());
    std::fill_n(memory.begin() + 1, PackedGroupBytes(columns, bits), std::byte{0xff});
    rows = {memory.data() + 1, row_bytes, num_rows, columns, bits};
  }
  std::vector<int16_t> Integers(int64_t count) {
    std::vector<int16_t> x(static_cast<size_t>(count));
    for (int16_t& value : x)
      value = static_cast<int16_t>(static_cast<int>(random() % 65535) - 32767);
    return x;
  }
  std::mt19937 random;
  std::vector<std::byte> memory;
  PackedRows rows;
};

// Calls check(columns, bits, num_rows, num_x) for shapes with full vectors, tails and repeats.
template <class Check>
void ForShapes(const Check& check) {
  for (const int bits : {8, 4, 2}) {
    for (const int64_t columns : {16, 32, 48, 64, 80, 96, 128}) {
      if (!HasIntegerProducts(columns, bits)) continue;
      for (const int64_t num_rows : {1, 3, 4, 17, 63, 64, 65, 127, 128}) {
        for (const int64_t num_x : {1, 2, 3, 7, 8, 13}) {
          SCOPED_TRACE(testing::Message() << bits << " bits, " << columns << " columns, "
                                          << num_rows << " rows, " << num_x << " x");
          check(columns, bits, num_rows, num_x);
        }
      }
    }
  }
}

TEST_P(IntegerProductsTest, DotsEqualTheOracle) {
  AlignedVector<uint32_t> tile(kIntegerTileSize);
  ForShapes([&](int64_t columns, int bits, int64_t num_rows, int64_t num_x) {
    RandomRows data(columns, bits, num_rows, /*gap=*/num_x % 2 * 5, /*seed=*/7);
    std::vector<int16_t> x = data.Integers(num_x * columns);
    std::fill_n(x.begin(), columns, int16_t{32767});  // With the row of 0xff: the largest sum.
    AlignedVector<int32_t> expected(static_cast<size_t>(num_x * kMaxIntegerRows));
    AlignedVector<int32_t> sums(expected.size());
    ref::DotPackedRows(data.rows, x.data(), num_x, columns, expected.data());
    EXPECT_EQ(expected[0], columns * ((1 << bits) - 1) * 32767);
    std::vector<int16_t> arranged(x.size());
    for (int64_t r = 0; r < num_x; ++r) {
      ArrangeForDots(bits, columns, x.data() + r * columns, arranged.data() + r * columns);
    }
    std::fill(sums.begin(), sums.end(), -1);
    ReadAhead ahead{data.memory.data(), std::ssize(data.memory)};
    DotPackedRows(data.rows, arranged.data(), num_x, columns, tile.data(), sums.data(), &ahead);
    for (int64_t r = 0; r < num_x; ++r) {
      for (int64_t t = 0; t < num_rows; ++t) {
        const auto i = static_cast<size_t>(r * kMaxIntegerRows + t);
        ASSERT_EQ(sums[i], expected[i]) << "x " << r << " row " << t;
      }
    }
  });
}

TEST_P(IntegerProductsTest, SumsEqualTheOracle) {
  AlignedVector<uint32_t> tile(kIntegerTileSize);
  ForShapes([&](int64_t columns, int bits, int64_t num_rows, int64_t num_x) {
    RandomRows data(columns, bits, num_rows, /*gap=*/num_x % 2 * 5, /*seed=*/8);
    std::vector<int16_t> weights = data.Integers(num_x * kMaxIntegerRows);
    for (int64_t r = 0; r < num_x; ++r) {
      std::fill_n(weights.begin() + r * kMaxIntegerRows + num_rows, kMaxIntegerRows - num_rows,
                  int16_t{0});
    }
    AlignedVector<int32_t> expected(static_cast<size_t>(num_x * columns));
    AlignedVector<int32_t> sums(expected.size());
    ref::SumPackedRows(data.rows, weights.data(), num_x, expected.data());
    std::fill(sums.begin(), sums.end(), -1);
    ReadAhead ahead{data.memory.data(), std::ssize(data.memory)};
    SumPackedRows(data.rows, weights.data(), num_x, tile.data(), sums.data(), &ahead);
    ASSERT_EQ(sums, expected);
  });
}

// Largest sum that 128 rows of 8 bits can have, of either sign.
TEST_P(IntegerProductsTest, LargestSumsDoNotOverflow) {
  const std::vector<std::byte> ones(128 * 128, std::byte{0xff});
  const PackedRows rows{ones.data(), 128, 128, 128, 8};
  std::vector<int16_t> weights(2 * 128, 32767);
  std::fill(weights.begin() + 128, weights.end(), int16_t{-32767});
  AlignedVector<uint32_t> tile(kIntegerTileSize);
  AlignedVector<int32_t> sums(2 * 128);
  ReadAhead nothing;
  SumPackedRows(rows, weights.data(), 2, tile.data(), sums.data(), &nothing);
  for (size_t i = 0; i < 128; ++i) {
    ASSERT_EQ(sums[i], 1'069'514'880);  // 128 * 255 * 32767
    ASSERT_EQ(sums[128 + i], -1'069'514'880);
  }
}

TEST_P(IntegerProductsTest, QuantizingEqualsTheOracleAndMovesNothingByMoreThanHalfAFactor) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const int64_t count : {1, 3, 8, 31, 64, 128}) {
    for (const float scale : {1.0f, 1e-20f, 1e30f}) {
      std::vector<float> x(static_cast<size_t>(count));
      for (float& value : x) value = scale * normal(random);
      std::vector<int16_t> expected(x.size());
      const float factor = ref::QuantizeToIntegers(x.data(), count, expected.data());
      for (size_t i = 0; i < x.size(); ++i) {
        // Half a step, and three roundings of values of at most 32767 steps.
        const double error = std::abs(static_cast<double>(x[i]) - double{factor} * expected[i]);
        EXPECT_LE(error, factor * (0.5 + 3 * 32767 * 0x1p-24)) << count << " " << scale;
      }
      std::vector<int16_t> integers(x.size(), 1);
      EXPECT_EQ(QuantizeToIntegers(x.data(), count, integers.data()), factor);
      EXPECT_EQ(integers, expected);
    }
  }
}

TEST_P(IntegerProductsTest, QuantizingByHand) {
  const float x[] = {1.0f, -2.0f, 0.5f, 0.0f, 2.0f, 1.5f / 32767.0f};
  const std::vector<int16_t> expected = {16384, -32767, 8192, 0, 32767, 1};
  std::vector<int16_t> integers(6);
  EXPECT_EQ(QuantizeToIntegers(x, 6, integers.data()), 2.0f / 32767.0f);
  EXPECT_EQ(integers, expected);  // 16383.5 is half way: to even.
}

TEST_P(IntegerProductsTest, TinyValuesAreZero) {
  const float x[] = {1e-31f, -1e-38f, 0.0f, std::numeric_limits<float>::denorm_min()};
  std::vector<int16_t> integers(4, 1);
  EXPECT_EQ(QuantizeToIntegers(x, 4, integers.data()), 0.0f);
  EXPECT_EQ(integers, std::vector<int16_t>(4));
}

}  // namespace
}  // namespace pmkvq::internal
