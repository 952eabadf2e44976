#include "pmkvq/kernels/gemm/weight_q8.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/gemm_decode.h"
#include "support/shared_products.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(WeightQ8Test, internal::Q8KernelTarget, "kernels/gemm/weight_q8.cc",
                   "kernels/gemm/gemm_decode.cc");
PMKVQ_TARGET_SUITE(SharedProductTest, internal::DecodeKernelTarget, "kernels/gemm/gemm_decode.cc");

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.Uniform() * 2.0 - 1.0);
  return values;
}

WeightView ViewOf(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return {reinterpret_cast<const std::byte*>(values.data()), WeightFormat::kF32, rows, cols};
}

Q8Weight Quantized(const WeightView& weight) {
  Q8Weight out;
  EXPECT_TRUE(ref::QuantizeWeight(weight, out));
  return out;
}

// Quantised weights that end where their memory does: a read past them is one past an allocation.
class ExactlySized {
 public:
  ExactlySized(int64_t rows, int64_t cols, uint64_t seed) {
    const Q8Weight made = Quantized(ViewOf(RandomFloats(rows * cols, seed), rows, cols));
    memory_.reset(new std::byte[made.data.size()]);
    std::copy(made.data.begin(), made.data.end(), memory_.get());
    view_ = {memory_.get(), WeightFormat::kQ8, rows, cols};
  }
  const WeightView& view() const { return view_; }

 private:
  std::unique_ptr<std::byte[]> memory_;
  WeightView view_;
};

int CodeAt(const Q8Weight& weight, int64_t index) {
  return static_cast<int8_t>(weight.data[static_cast<size_t>(index)]);
}

float ScaleAt(const Q8Weight& weight, int64_t group) {
  BF16 scale;
  std::memcpy(&scale, weight.data.data() + group * kQ8GroupBytes + kQ8Group, sizeof(scale));
  return ToFloat(scale);
}

// Worked out by hand: max 127 gives the scale 1, ties go to the even code.
TEST(WeightQ8Test, GroupsByHand) {
  std::vector<float> values(33, 0.0f);
  values[0] = 127.0f;
  values[1] = -127.0f;
  values[2] = 0.5f;
  values[3] = 1.5f;
  values[4] = -2.5f;
  values[5] = 63.4f;
  values[32] = -3.0f;  // Alone in its group.
  const Q8Weight weight = Quantized(ViewOf(values, 1, 33));
  ASSERT_EQ(weight.data.size(), 68u);
  const std::array<int, 7> expected = {127, -127, 0, 2, -2, 63, 0};
  for (size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(CodeAt(weight, static_cast<int64_t>(i)), expected[i]) << i;
  }
  EXPECT_EQ(ScaleAt(weight, 0), 1.0f);
  // 3 / 127 = 1.1000001...b x 2^-6 in float; the next BF16 above 0.02362 is 0x3cc2 = 0.0236816.
  EXPECT_EQ(ScaleAt(weight, 1), 0.023681640625f);
  EXPECT_EQ(CodeAt(weight, kQ8GroupBytes), -127);
  for (int64_t i = 1; i < kQ8Group; ++i) EXPECT_EQ(CodeAt(weight, kQ8GroupBytes + i), 0);
}

std::vector<float> DifficultWeights(int64_t rows, int64_t cols) {
  std::vector<float> values = RandomFloats(rows * cols, 4);
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t group = i / 11;
    if (group % 7 == 1) values[i] = 0.0f;
    if (group % 7 == 2) values[i] *= 1e-38f;
    if (group % 7 == 3) values[i] *= 1e-44f;
    if (group % 7 == 4) values[i] *= 3e38f;
    if (group % 7 == 5) values[i] = std::round(values[i] * 254.0f) / 2.0f;  // Ties.
  }
  return values;
}

TEST_P(WeightQ8Test, QuantizerEqualsOracle) {
  for (const int64_t cols : {1, 31, 32, 33, 100, 1056}) {
    constexpr int64_t kRows = 67;
    const std::vector<float> values = DifficultWeights(kRows, cols);
    std::vector<uint16_t> halves(values.size());
    for (size_t i = 0; i < values.size(); ++i) halves[i] = ToBF16(values[i]).bits;
    std::vector<uint16_t> f16(values.size());
    for (size_t i = 0; i < values.size(); ++i) {
      f16[i] = ToF16(std::clamp(values[i], -60000.0f, 60000.0f)).bits;
    }
    const WeightView views[] = {
        ViewOf(values, kRows, cols),
        {reinterpret_cast<const std::byte*>(halves.data()), WeightFormat::kBF16, kRows, cols},
        {reinterpret_cast<const std::byte*>(f16.data()), WeightFormat::kF16, kRows, cols}};
    for (const WeightView& view : views) {
      const Q8Weight expected = Quantized(view);
      for (const int threads : {1, 2}) {
        Q8Weight made;
        ASSERT_TRUE(QuantizeWeight(view, threads, made));
        EXPECT_EQ(made.data, expected.data) << NameOf(view.format) << " " << cols;
      }
    }
  }
}

TEST_P(WeightQ8Test, RefusesValuesThatAreNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
        std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> values = RandomFloats(3 * 40, 1);
    values[77] = bad;
    Q8Weight out;
    EXPECT_FALSE(QuantizeWeight(ViewOf(values, 3, 40), 1, out)) << bad;
    EXPECT_FALSE(ref::QuantizeWeight(ViewOf(values, 3, 40), out)) << bad;
  }
}

// Row by row the same, and the error is that of the expanded row.
TEST_P(WeightQ8Test, SingleRowsEqualTheMatrix) {
  constexpr int64_t kRows = 5;
  constexpr int64_t kCols = 75;
  const std::vector<float> values = RandomFloats(kRows * kCols, 6);
  const Q8Weight weight = Quantized(ViewOf(values, kRows, kCols));
  const int64_t row_bytes = RowBytes(WeightFormat::kQ8, kCols);
  for (int64_t n = 0; n < kRows; ++n) {
    std::vector<float> row(96, 0.0f);
    std::copy_n(values.begin() + n * kCols, kCols, row.begin());
    std::vector<std::byte> made(static_cast<size_t>(row_bytes));
    ASSERT_TRUE(QuantizeRow(row.data(), kCols, made.data()));
    EXPECT_EQ(std::memcmp(made.data(), weight.data.data() + n * row_bytes, made.size()), 0);
    std::vector<float> expanded(kCols);
    ExpandRow(weight.view(), n, expanded.data());
    float expected = 0.0f;
    for (size_t k = 0; k < expanded.size(); ++k) {
      expected = std::max(expected, std::abs(row[k] - expanded[k]));
    }
    EXPECT_EQ(RowError(row.data(), kCols, made.data()), expected);
    EXPECT_GT(expected, 0.0f);
    row[70] = std::numeric_limits<float>::infinity();
    EXPECT_FALSE(QuantizeRow(row.data(), kCols, made.data()));
  }
}

TEST_P(WeightQ8Test, ErrorIsAtMostHalfAScale) {
  constexpr int64_t kCols = 320;
  const std::vector<float> values = RandomFloats(kCols, 5);
  const Q8Weight weight = Quantized(ViewOf(values, 1, kCols));
  std::vector<float> expanded(kCols);
  ExpandRow(weight.view(), 0, expanded.data());
  double squares = 0;
  double error_squares = 0;
  for (int64_t k = 0; k < kCols; ++k) {
    const auto i = static_cast<size_t>(k);
    const double error = static_cast<double>(expanded[i]) - static_cast<double>(values[i]);
    const double scale = static_cast<double>(ScaleAt(weight, k / kQ8Group));
    // The quotient was rounded to a float before it became a code.
    EXPECT_LE(std::abs(error), scale * (0.5 + 127 * 0x1p-24));
    // 1 / 127, rounded up to 8 bits.
    EXPECT_LE(scale, (1.0 + 0x1p-7) / 127.0);
    squares += static_cast<double>(values[i]) * static_cast<double>(values[i]);
    error_squares += error * error;
  }
  EXPECT_GT(error_squares, 0.0);
  EXPECT_LT(error_squares, squares * 0x1p-14);
}

// Sum of (cols + 2) roundings of half an ulp, as in gemm_test.cc.
void ExpectProduct(const std::vector<float>& x, int64_t num_rows, const WeightView& weight,
                   const float* bias, const std::vector<float>& y) {
  std::vector<float> expected(y.size());
  ref::MatMul(x.data(), num_rows, weight, bias, expected.data());
  for (size_t i = 0; i < y.size(); ++i) {
    // |x|, |w| <= 1.01 and |bias| <= 1.
    const double tolerance = static_cast<double>(weight.cols + 3) * 0x1p-24 *
                             (1.01 * static_cast<double>(weight.cols) + 1.0);
    ASSERT_NEAR(static_cast<double>(y[i]), static_cast<double>(expected[i]), tolerance)
        << num_rows << "x" << weight.rows << "x" << weight.cols << " at " << i;
  }
}

TEST(WeightQ8Test, OracleOfTheProductByHand) {
  std::vector<float> values(34, 0.0f);
  values[0] = 127.0f;
  values[1] = 3.0f;
  values[33] = -254.0f;
  const Q8Weight weight = Quantized(ViewOf(values, 1, 34));
  std::vector<float> x(34, 1.0f);
  x[1] = 10.0f;
  const float bias = 0.5f;
  float y = 0.0f;
  ref::MatMul(x.data(), 1, weight.view(), &bias, &y);
  EXPECT_EQ(y, 127.0f + 30.0f - 254.0f + 0.5f);
}

TEST_P(WeightQ8Test, DecodeMatchesOracle) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 16, 17, 64}) {
    for (const int64_t cols : {1, 15, 17, 32, 33, 97}) {
      for (const int64_t outs : {1, 7, 8, 29}) {
        const ExactlySized weight(outs, cols, 1);
        const auto x = RandomFloats(rows * cols, 2);
        const auto bias = RandomFloats(outs, 3);
        std::vector<float> y(static_cast<size_t>(rows * outs), 777.0f);
        MatMul(x.data(), rows, weight.view(), bias.data(), y.data(), 2);
        ExpectProduct(x, rows, weight.view(), bias.data(), y);
      }
    }
  }
}

// Around the widths at which columns are cut into tiles, and outputs into panels.
TEST_P(WeightQ8Test, DecodeInTilesMatchesOracle) {
  for (const int64_t rows : {1, 2, 5, 16}) {
    for (const int64_t cols : {255, 257, 512, 545}) {
      const int64_t outs = internal::kDecodeGrain + 1;
      const ExactlySized weight(outs, cols, 1);
      const auto x = RandomFloats(rows * cols, 2);
      std::vector<float> y(static_cast<size_t>(rows * outs), 777.0f);
      MatMul<float>(x.data(), rows, weight.view(), nullptr, y.data(), 2);
      ExpectProduct(x, rows, weight.view(), nullptr, y);
    }
  }
}

TEST_P(WeightQ8Test, ManyRowsAndGradientsMatchOracle) {
  constexpr int64_t kRows = 66;
  constexpr int64_t kOuts = 130;
  constexpr int64_t kCols = 1041;
  const ExactlySized weight(kOuts, kCols, 1);
  const auto x = RandomFloats(kRows * kCols, 2);
  std::vector<float> y(kRows * kOuts);
  MatMul<float>(x.data(), kRows, weight.view(), nullptr, y.data(), 2);
  ExpectProduct(x, kRows, weight.view(), nullptr, y);

  // dx of a unit vector is a row of the weight.
  std::vector<double> dy(kOuts, 0.0);
  dy[77] = 1.0;
  std::vector<double> dx(kCols);
  MatMulGradInput<double>(dy.data(), 1, weight.view(), dx.data(), false, 2);
  std::vector<double> row(kCols);
  ExpandRow(weight.view(), 77, row.data());
  EXPECT_EQ(dx, row);
}

TEST_P(WeightQ8Test, DecodeBitsDependOnlyOnTheRow) {
  constexpr int64_t kOuts = 157;
  constexpr int64_t kCols = 1403;
  const ExactlySized weight(kOuts, kCols, 1);
  const auto x = RandomFloats(kDecodeRows * kCols, 5);
  std::vector<float> alone(static_cast<size_t>(kDecodeRows * kOuts));
  for (int64_t t = 0; t < kDecodeRows; ++t) {
    MatMul<float>(x.data() + t * kCols, 1, weight.view(), nullptr, alone.data() + t * kOuts, 1);
  }
  for (const int64_t rows : {2, 3, 4, 7, 16, 18, 64}) {
    for (const int threads : {1, 2, 3}) {
      std::vector<float> y(static_cast<size_t>(rows * kOuts));
      MatMul<float>(x.data(), rows, weight.view(), nullptr, y.data(), threads);
      ASSERT_EQ(std::memcmp(y.data(), alone.data(), y.size() * sizeof(float)), 0)
          << rows << " rows, " << threads << " threads";
    }
  }
}

// Several products in one loop have the bits of each alone, whatever the types.
TEST_P(SharedProductTest, EqualsSeparateProducts) {
  constexpr int64_t kCols = 300;
  const auto floats = RandomFloats(41 * kCols, 7);
  const ExactlySized codes(157, kCols, 8);
  const ExactlySized more_codes(3, kCols, 9);
  const WeightView weights[] = {codes.view(), more_codes.view(), ViewOf(floats, 41, kCols),
                                WeightView{nullptr, WeightFormat::kF32, 0, kCols}};
  const auto bias = RandomFloats(157, 10);
  for (const int64_t rows : {1, 5, 64, 70}) {
    const auto x = RandomFloats(rows * kCols, 11);
    testing_support::ExpectSharedEqualsAlone(weights, x, rows, bias);
  }
}

TEST(SharedProductDeathTest, RefusesOtherInputs) {
  const auto values = RandomFloats(8, 1);
  const WeightView weights[] = {ViewOf(values, 2, 4), ViewOf(values, 4, 2)};
  std::vector<float> y(8);
  const Projection<float> projections[] = {{&weights[0], nullptr, y.data()},
                                           {&weights[1], nullptr, y.data() + 2}};
  EXPECT_DEATH(MatMulShared<float>(values.data(), 1, projections, 1), "same inputs");
}

}  // namespace
}  // namespace pmkvq
