// Stored blocks of 2 to 6 bits.
#include "pmkvq/kernels/gemm/block_product.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/unrounded_products.h"
#include "support/random_blocks.h"
#include "support/shared_products.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

using testing_support::RandomBlocks;
using testing_support::RunnableTargets;

PMKVQ_TARGET_SUITE(BlockProductTest, internal::BlockKernelTarget, "kernels/gemm/block_product.cc");

std::vector<WeightFormat> BlockFormats() {
  std::vector<WeightFormat> formats;
  for (size_t i = kNumValueFormats; i < kNumWeightFormats; ++i) {
    formats.push_back(static_cast<WeightFormat>(i));
  }
  return formats;
}

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.Uniform() * 2.0 - 1.0);
  return values;
}

// Blocks that end where their memory does: a read past them is one past an allocation. They begin
// at an odd address.
class Blocks {
 public:
  Blocks(WeightFormat format, int64_t rows, int64_t cols, uint64_t seed) {
    Random random(seed);
    Take(format, rows, cols, RandomBlocks(format, rows * cols, random));
  }
  Blocks(WeightFormat format, int64_t rows, int64_t cols, const std::string& bytes) {
    Take(format, rows, cols, bytes);
  }
  const WeightView& view() const { return view_; }

 private:
  void Take(WeightFormat format, int64_t rows, int64_t cols, const std::string& bytes) {
    memory_.reset(new std::byte[bytes.size() + 1]);
    std::memcpy(memory_.get() + 1, bytes.data(), bytes.size());
    view_ = {memory_.get() + 1, format, rows, cols};
    EXPECT_EQ(view_.num_bytes(), bytes.size());
  }
  std::unique_ptr<std::byte[]> memory_;
  WeightView view_;
};

// Columns: some that do not fill the last piece of 256, where blocks allow that.
std::vector<int64_t> ColumnsOf(WeightFormat format) {
  if (LayoutOf(format).block_values == 256) return {256, 512, 2304};
  return {32, 224, 256, 288, 2080};
}

// Against the sum in double of x times the weights' formulas. Two errors add up:
//  - x of a group is within (0.5 + 127 x 2^-22) of its scale, max|x| / 127: half a code, and the
//    roundings of 127 / max and of the product before it becomes a code;
//  - every sum of 8 has up to 4 terms a piece (a scale and a minimum for each 16 weights), each of
//    four roundings (scales, products, the addition); 3 additions and the bias follow. Terms are as
//    large as |x| (|w| + 2 |m|), m being what is subtracted from scale * code: at most 0.26 here.
void ExpectProduct(const std::vector<float>& x, int64_t num_rows, const WeightView& weight,
                   const std::vector<float>& bias, const std::vector<float>& y) {
  const int64_t cols = weight.cols;
  std::vector<double> weights(static_cast<size_t>(cols));
  for (int64_t n = 0; n < weight.rows; ++n) {
    for (int64_t k = 0; k < cols; ++k) {
      weights[static_cast<size_t>(k)] = ref::WeightAt(weight, n, k);
    }
    for (int64_t t = 0; t < num_rows; ++t) {
      const float* row = x.data() + t * cols;
      double expected = static_cast<double>(bias[static_cast<size_t>(n)]);
      double rounding = 0;
      double magnitude = std::abs(expected);
      for (int64_t k = 0; k < cols; ++k) {
        const double value = static_cast<double>(row[k]);
        const double w = weights[static_cast<size_t>(k)];
        double largest = 0;
        for (int64_t i = k / 32 * 32; i < std::min(cols, k / 32 * 32 + 32); ++i) {
          largest = std::max(largest, std::abs(static_cast<double>(row[i])));
        }
        expected += value * w;
        rounding += largest / 127 * (0.5 + 127 * 0x1p-22) * std::abs(w);
        magnitude += std::abs(value) * (std::abs(w) + 0.52);
      }
      const double steps = 5.0 * std::ceil(static_cast<double>(cols) / 256) + 10;
      ASSERT_NEAR(static_cast<double>(y[static_cast<size_t>(t * weight.rows + n)]), expected,
                  rounding + steps * 0x1p-23 * magnitude)
          << NameOf(weight.format) << " " << num_rows << "x" << weight.rows << "x" << cols;
    }
  }
}

TEST_P(BlockProductTest, ProductsMatchOracle) {
  for (const WeightFormat format : BlockFormats()) {
    for (const int64_t cols : ColumnsOf(format)) {
      const int64_t outs = 13;  // A tile of 8, and some that are none.
      const Blocks weight(format, outs, cols, 1);
      const auto bias = RandomFloats(outs, 3);
      for (const int64_t rows : {1, 2, 3, 5, 17, 64, 65}) {
        const auto x = RandomFloats(rows * cols, 2);
        std::vector<float> y(static_cast<size_t>(rows * outs), 777.0f);
        MatMul(x.data(), rows, weight.view(), bias.data(), y.data(), 2);
        ExpectProduct(x, rows, weight.view(), bias, y);
      }
    }
  }
}

// Values of x that differ much between groups and within them, among them those whose products
// with weights cancel.
std::vector<float> DifficultX(int64_t count) {
  std::vector<float> x = RandomFloats(count, 4);
  for (size_t i = 0; i < x.size(); ++i) {
    const size_t group = i / 32 % 8;
    if (group == 1) x[i] *= 1e-36f;
    if (group == 2) x[i] *= 1e-40f;
    if (group == 3) x[i] = 0.0f;
    if (group == 4) x[i] = i % 32 == 5 ? 1000.0f : x[i];
    if (group == 5) x[i] = std::round(x[i] * 254.0f) / 2.0f;  // Ties.
    if (group == 6) x[i] = i % 2 == 0 ? 1.0f : -1.0f;
  }
  return x;
}

// The plain C++ target first, then the one of the test, with and without dot products of bytes.
TEST_P(BlockProductTest, BitsAreThoseOfEveryInstructionSet) {
  const auto use = [](int64_t target) {
    hwy::SetSupportedTargetsForTest(target);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    ASSERT_EQ(internal::BlockKernelTarget(), target);
  };
  constexpr int64_t kRows = 11;
  constexpr int64_t kOuts = 9;
  for (const WeightFormat format : BlockFormats()) {
    for (const int64_t cols : ColumnsOf(format)) {
      const Blocks weight(format, kOuts, cols, 6);
      const auto x = DifficultX(kRows * cols);
      const auto product = [&] {
        std::vector<float> y(kRows * kOuts);
        MatMul<float>(x.data(), kRows, weight.view(), nullptr, y.data(), 1);
        return y;
      };
      use(RunnableTargets().back());
      const std::vector<float> expected = product();
      use(GetParam());
      const std::vector<float> found = product();
      internal::SetDotBytes(false);
      const std::vector<float> without = product();
      internal::SetDotBytes(true);
      const size_t bytes = expected.size() * sizeof(float);
      ASSERT_EQ(std::memcmp(found.data(), expected.data(), bytes), 0) << NameOf(format);
      ASSERT_EQ(std::memcmp(without.data(), expected.data(), bytes), 0) << NameOf(format);
    }
  }
}

TEST_P(BlockProductTest, BitsDependOnlyOnTheRow) {
  constexpr int64_t kOuts = 67;  // More than share a tile.
  for (const WeightFormat format : BlockFormats()) {
    const int64_t cols = ColumnsOf(format).back();
    const Blocks weight(format, kOuts, cols, 1);
    const auto x = RandomFloats(kDecodeRows * cols, 5);
    std::vector<float> alone(static_cast<size_t>(kDecodeRows * kOuts));
    for (int64_t t = 0; t < kDecodeRows; ++t) {
      MatMul<float>(x.data() + t * cols, 1, weight.view(), nullptr, alone.data() + t * kOuts, 1);
    }
    for (const int64_t rows : {2, 3, 4, 7, 16, 18, 64}) {
      for (const int threads : {1, 2, 3}) {
        std::vector<float> y(static_cast<size_t>(rows * kOuts));
        MatMul<float>(x.data(), rows, weight.view(), nullptr, y.data(), threads);
        ASSERT_EQ(std::memcmp(y.data(), alone.data(), y.size() * sizeof(float)), 0)
            << NameOf(format) << " " << rows << " rows, " << threads << " threads";
      }
    }
  }
}

// More rows than share decoded weights, and than are packed at once.
TEST_P(BlockProductTest, BitsDependOnlyOnTheRowAmongMany) {
  constexpr int64_t kOuts = 75;
  constexpr int64_t kRows = 523;
  const WeightFormat formats[] = {WeightFormat::kQ4_K, WeightFormat::kQ6_K, WeightFormat::kQ5_0};
  for (const WeightFormat format : formats) {
    const int64_t cols = ColumnsOf(format).front();
    const Blocks weight(format, kOuts, cols, 1);
    const auto x = RandomFloats(kRows * cols, 5);
    std::vector<float> y(static_cast<size_t>(kRows * kOuts));
    MatMul<float>(x.data(), kRows, weight.view(), nullptr, y.data(), 2);
    std::vector<float> alone(kOuts);
    for (const int64_t row : {0, 3, 127, 128, 255, 511, 512, 520, 522}) {
      MatMul<float>(x.data() + row * cols, 1, weight.view(), nullptr, alone.data(), 1);
      ASSERT_EQ(std::memcmp(y.data() + row * kOuts, alone.data(), kOuts * sizeof(float)), 0)
          << NameOf(format) << " row " << row;
    }
  }
}

// Any bytes are a block. (Infinite scales and NaN are errors of the file, and instruction sets
// without F16 do not know them.)
TEST_P(BlockProductTest, ExpandsExactly) {
  for (const WeightFormat format : BlockFormats()) {
    const int64_t cols = ColumnsOf(format).back();
    constexpr int64_t kRows = 9;
    Random random(8);
    std::string bytes = RandomBlocks(format, kRows * cols, random);
    const auto block_bytes = static_cast<size_t>(LayoutOf(format).block_bytes);
    for (size_t begin = 0; begin < bytes.size(); begin += block_bytes) {
      if (format == WeightFormat::kMXFP4) {
        bytes[begin] = static_cast<char>(begin / block_bytes);
        continue;
      }
      const testing_support::BlockScales& scales = testing_support::ScalesOf(format);
      for (const auto& places : {scales.at, scales.minima}) {
        for (const size_t at : places) {
          // All exponents but that of infinities, and signs; subnormal, too.
          const auto half = static_cast<uint16_t>(random.Below(31) << 10 | random.Below(1024) |
                                                  random.Below(2) << 15);
          std::memcpy(bytes.data() + begin + at, &half, sizeof(half));
        }
      }
    }
    const Blocks weight(format, kRows, cols, bytes);
    std::vector<float> row(static_cast<size_t>(cols));
    for (int64_t r = 0; r < kRows; ++r) {
      ExpandRow(weight.view(), r, row.data());
      for (int64_t k = 0; k < cols; ++k) {
        const auto expected = static_cast<float>(ref::WeightAt(weight.view(), r, k));
        ASSERT_EQ(std::bit_cast<uint32_t>(row[static_cast<size_t>(k)]),
                  std::bit_cast<uint32_t>(expected))
            << NameOf(format) << " " << r << " " << k;
      }
    }
  }
}

TEST_P(BlockProductTest, ManyUnroundedRowsAndGradientsMatchOracle) {
  constexpr int64_t kRows = 66;
  constexpr int64_t kOuts = 40;
  for (const WeightFormat format : BlockFormats()) {
    const int64_t cols = ColumnsOf(format).back();
    const Blocks weight(format, kOuts, cols, 1);
    const auto x = RandomFloats(kRows * cols, 2);
    std::vector<float> y(kRows * kOuts);
    std::vector<float> expected(y.size());
    {
      const UnroundedProducts unrounded;
      MatMul<float>(x.data(), kRows, weight.view(), nullptr, y.data(), 2);
    }
    ref::MatMul<float>(x.data(), kRows, weight.view(), nullptr, expected.data());
    for (size_t i = 0; i < y.size(); ++i) {
      // (cols + 2) roundings of sums of |x| <= 1 times |w| <= 0.5.
      const double tolerance =
          static_cast<double>(cols + 3) * 0x1p-24 * 0.5 * static_cast<double>(cols);
      ASSERT_NEAR(static_cast<double>(y[i]), static_cast<double>(expected[i]), tolerance);
    }
    std::vector<double> dy(kOuts, 0.0);
    dy[17] = 1.0;
    std::vector<double> dx(static_cast<size_t>(cols));
    MatMulGradInput<double>(dy.data(), 1, weight.view(), dx.data(), false, 2);
    std::vector<double> row(static_cast<size_t>(cols));
    ExpandRow(weight.view(), 17, row.data());
    EXPECT_EQ(dx, row);
  }
}

// x takes part as it is: the bound of products of floats, far below what rounding it costs. Shared
// with a value format, and only while the scope lives.
TEST_P(BlockProductTest, FewRowsAreNotRoundedInTheScope) {
  constexpr int64_t kOuts = 40;
  for (const WeightFormat format : BlockFormats()) {
    const int64_t cols = ColumnsOf(format).back();
    const Blocks weight(format, kOuts, cols, 1);
    const auto plain = RandomFloats(kOuts * cols, 4);
    const WeightView plain_view{reinterpret_cast<const std::byte*>(plain.data()),
                                WeightFormat::kF32, kOuts, cols};
    for (const int64_t rows : {1, 3, 64, 70}) {
      const auto x = RandomFloats(rows * cols, 2);
      std::vector<float> rounded(static_cast<size_t>(rows * kOuts));
      MatMul<float>(x.data(), rows, weight.view(), nullptr, rounded.data(), 2);
      std::vector<float> y(rounded.size());
      std::vector<float> of_plain(rounded.size());
      {
        const UnroundedProducts unrounded;
        const Projection<float> projections[] = {{&weight.view(), nullptr, y.data()},
                                                 {&plain_view, nullptr, of_plain.data()}};
        MatMulShared<float>(x.data(), rows, projections, 2);
      }
      std::vector<float> expected(rounded.size());
      ref::MatMul<float>(x.data(), rows, weight.view(), nullptr, expected.data());
      // As above.
      const double tolerance =
          static_cast<double>(cols + 3) * 0x1p-24 * 0.5 * static_cast<double>(cols);
      for (size_t i = 0; i < y.size(); ++i) {
        ASSERT_NEAR(static_cast<double>(y[i]), static_cast<double>(expected[i]), tolerance);
      }
      EXPECT_NE(y, rounded);
      ref::MatMul<float>(x.data(), rows, plain_view, nullptr, expected.data());
      for (size_t i = 0; i < y.size(); ++i) {
        ASSERT_NEAR(static_cast<double>(of_plain[i]), static_cast<double>(expected[i]),
                    2 * tolerance);
      }
      std::vector<float> again(rounded.size());
      MatMul<float>(x.data(), rows, weight.view(), nullptr, again.data(), 2);
      EXPECT_EQ(again, rounded) << "the scope has ended";
    }
  }
}

// Rows in pairs, and formats that share their packed x with others and with none.
TEST_P(BlockProductTest, SharedProductsEqualSeparateOnes) {
  constexpr int64_t kCols = 512;
  WeightView paired;
  const Blocks first(WeightFormat::kQ4_K, 64, kCols, 1);
  const Blocks second(WeightFormat::kQ6_K, 33, kCols, 2);
  const Blocks third(WeightFormat::kQ8_0, 5, kCols, 3);
  const Blocks fourth(WeightFormat::kQ5_0, 5, kCols, 3);
  paired = first.view();
  paired.pair_rows = 16;
  const WeightView weights[] = {paired, second.view(), third.view(), fourth.view()};
  const auto bias = RandomFloats(64, 10);
  for (const int64_t rows : {1, 5, 64}) {
    const auto x = RandomFloats(rows * kCols, 11);
    const auto shared = testing_support::ExpectSharedEqualsAlone(weights, x, rows, bias);
    std::vector<float> in_order(static_cast<size_t>(rows * 64));
    MatMul(x.data(), rows, first.view(), bias.data(), in_order.data(), 1);
    EXPECT_NE(shared[0], in_order);
  }
}

TEST_P(BlockProductTest, WhatIsNotFiniteStaysSo) {
  const Blocks weight(WeightFormat::kQ4_K, 3, 512, 1);
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> x(512, 0.5f);
    x[300] = bad;
    std::vector<float> y(3);
    MatMul<float>(x.data(), 1, weight.view(), nullptr, y.data(), 1);
    for (const float value : y) EXPECT_FALSE(std::isfinite(value)) << bad;
  }
}

// By hand: group 0 has the scale 2 (254 / 127), so x[1] = 3 is the tie 1.5, which becomes 2 codes;
// weights are 0.5 (q - 8).
TEST_P(BlockProductTest, RoundsXByHand) {
  std::string bytes(2 * 18, '\x88');  // Zeros.
  for (const size_t begin : {size_t{0}, size_t{18}}) {
    bytes[begin] = '\0';
    bytes[begin + 1] = '\x38';
  }
  bytes[2] = '\x89';   // Weight 0: 0.5.
  bytes[3] = '\x8a';   // Weight 1: 1.
  bytes[20] = '\x0f';  // Weight 32: 3.5; weight 48: -4.
  const Blocks weight(WeightFormat::kQ4_0, 1, 64, bytes);
  std::vector<float> x(64, 0.0f);
  x[0] = 254.0f;
  x[1] = 3.0f;
  x[32] = 127.0f;
  x[48] = 1.0f;
  float y = 0;
  MatMul<float>(x.data(), 1, weight.view(), nullptr, &y, 1);
  EXPECT_EQ(y, 254.0f * 0.5f + 4.0f * 1.0f + 127.0f * 3.5f - 4.0f);
}

// The worked example of docs/formats.md, and the oracle of the type whose values no other program
// was asked for.
TEST_P(BlockProductTest, ExpandsByHand) {
  std::string block(18, '\0');
  block[1] = '\x38';
  block[2] = '\x1f';
  const Blocks weight(WeightFormat::kQ4_0, 1, 32, block);
  std::vector<float> row(32);
  ExpandRow(weight.view(), 0, row.data());
  EXPECT_EQ(row[0], 3.5f);
  EXPECT_EQ(row[16], -3.5f);
  EXPECT_EQ(row[1], -4.0f);
  for (const int exponent : {0, 1, 2, 127, 255}) {
    std::string mx(17, '\x21');  // 1 and 2.
    mx[0] = static_cast<char>(exponent);
    const Blocks small(WeightFormat::kMXFP4, 1, 32, mx);
    ExpandRow(small.view(), 0, row.data());
    EXPECT_EQ(row[0], std::ldexp(1.0f, exponent - 128)) << exponent;
    EXPECT_EQ(row[16], std::ldexp(2.0f, exponent - 128)) << exponent;
  }
}

// Weights without inputs: the bias is the product.
TEST_P(BlockProductTest, NoInputsLeaveTheBias) {
  const auto bias = RandomFloats(5, 3);
  for (const int64_t rows : {1, 4, 17}) {
    std::vector<float> y(static_cast<size_t>(rows * 5), 777.0f);
    const WeightView none{nullptr, WeightFormat::kQ4_K, 5, 0};
    MatMul<float>(nullptr, rows, none, bias.data(), y.data(), 1);
    for (size_t i = 0; i < y.size(); ++i) EXPECT_EQ(y[i], bias[i % 5]);
  }
}

TEST(BlockProduct, ProcessorsWithVnniUseIt) {
#if defined(__x86_64__)
  if (!__builtin_cpu_supports("avx512vnni") || internal::BlockKernelTarget() != HWY_AVX3) {
    GTEST_SKIP() << "no VNNI here";
  }
  EXPECT_TRUE(internal::HasDotBytes());
#endif
}

}  // namespace
}  // namespace pmkvq
