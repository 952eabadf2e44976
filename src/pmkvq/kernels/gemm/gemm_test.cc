#include "pmkvq/kernels/gemm/gemm.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <numeric>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/gemm_decode.h"
#include "support/expect_error.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

PMKVQ_TARGET_SUITE(GemmTest, internal::DecodeKernelTarget, "kernels/gemm/gemm_decode.cc");

constexpr WeightFormat kWeightTypes[] = {WeightFormat::kF32, WeightFormat::kF16,
                                         WeightFormat::kBF16};

// Bytes of a value of a plain format.
size_t SizeOf(WeightFormat format) { return static_cast<size_t>(LayoutOf(format).block_bytes); }

// A random weight that starts `offset` elements into its memory and ends with it, so that a read
// past the end is one past the allocation.
class Weight {
 public:
  Weight(WeightFormat format, int64_t rows, int64_t cols, size_t offset = 0, uint64_t seed = 1)
      : size_(static_cast<size_t>(rows * cols)),
        memory_(new std::byte[(size_ + offset) * SizeOf(format)]) {
    view_ = {memory_.get() + offset * SizeOf(format), format, rows, cols};
    Random random(seed);
    for (size_t i = 0; i < size_; ++i) {
      Set(i, static_cast<float>(random.Uniform() * 2.0 - 1.0));
    }
  }

  const WeightView& view() const { return view_; }
  double At(int64_t row, int64_t col) const {
    return static_cast<double>(values_[static_cast<size_t>(row * view_.cols + col)]);
  }

 private:
  void Set(size_t i, float value) {
    std::byte* target = memory_.get() + (view_.data - memory_.get()) +
                        static_cast<std::ptrdiff_t>(i * SizeOf(view_.format));
    if (view_.format == WeightFormat::kF32) {
      std::memcpy(target, &value, 4);
      values_.push_back(value);
    } else if (view_.format == WeightFormat::kF16) {
      const F16 half = ToF16(value);
      std::memcpy(target, &half, 2);
      values_.push_back(ToFloat(half));
    } else {
      const BF16 half = ToBF16(value);
      std::memcpy(target, &half, 2);
      values_.push_back(ToFloat(half));
    }
  }

  size_t size_;
  std::unique_ptr<std::byte[]> memory_;
  WeightView view_;
  std::vector<float> values_;
};

template <class Real>
std::vector<Real> RandomReals(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<Real> values(static_cast<size_t>(count));
  for (Real& value : values) value = static_cast<Real>(random.Uniform() * 2.0 - 1.0);
  return values;
}

// Rounding error of a sum of `terms` products, added in any order: at most (terms + 2) roundings,
// each of half an ulp (2^-24 or 2^-53) of at most the sum of magnitudes.
template <class Real>
double SumTolerance(int64_t terms, double sum_of_magnitudes) {
  const double half_ulp = std::is_same_v<Real, float> ? 0x1p-24 : 0x1p-53;
  return static_cast<double>(terms + 2) * half_ulp * sum_of_magnitudes;
}

// y against sums in double, each within its own tolerance.
template <class Real>
void ExpectProduct(const std::vector<Real>& x, int64_t num_rows, const Weight& weight,
                   const float* bias, const std::vector<Real>& y) {
  const int64_t cols = weight.view().cols;
  const int64_t outs = weight.view().rows;
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t n = 0; n < outs; ++n) {
      double sum = bias == nullptr ? 0.0 : static_cast<double>(bias[n]);
      double magnitudes = std::abs(sum);
      for (int64_t k = 0; k < cols; ++k) {
        const double term =
            static_cast<double>(x[static_cast<size_t>(t * cols + k)]) * weight.At(n, k);
        sum += term;
        magnitudes += std::abs(term);
      }
      ASSERT_NEAR(static_cast<double>(y[static_cast<size_t>(t * outs + n)]), sum,
                  SumTolerance<Real>(cols + 1, magnitudes) + 0x1p-52 * magnitudes)
          << "row " << t << " output " << n << " of " << num_rows << "x" << outs << "x" << cols
          << " " << NameOf(weight.view().format);
    }
  }
}

template <class Real>
void CheckMatMul(WeightFormat format, int64_t num_rows, int64_t outs, int64_t cols, size_t offset,
                 bool with_bias) {
  const Weight weight(format, outs, cols, offset);
  const auto x = RandomReals<Real>(num_rows * cols, 2);
  const auto bias = RandomReals<float>(outs, 3);
  std::vector<Real> y(static_cast<size_t>(num_rows * outs), Real{777});
  MatMul(x.data(), num_rows, weight.view(), with_bias ? bias.data() : nullptr, y.data(), 2);
  ExpectProduct(x, num_rows, weight, with_bias ? bias.data() : nullptr, y);
}

TEST_P(GemmTest, DecodeMatchesOracle) {
  for (const WeightFormat format : kWeightTypes) {
    for (const int64_t rows : {1, 2, 3, 4, 5, 7, 16, 17, 63, 64}) {
      for (const int64_t cols : {1, 8, 15, 32, 33, 97}) {
        for (const int64_t outs : {1, 7, 8, 29}) {
          CheckMatMul<float>(format, rows, outs, cols, static_cast<size_t>(cols % 3),
                             outs % 2 == 1);
        }
      }
    }
  }
}

// Around the widths at which columns are cut into tiles, and outputs into panels.
TEST_P(GemmTest, DecodeInTilesMatchesOracle) {
  for (const WeightFormat format : kWeightTypes) {
    for (const int64_t rows : {1, 2, 4, 5, 11, 16, 17}) {
      for (const int64_t cols : {255, 256, 257, 512, 513, 1100}) {
        CheckMatMul<float>(format, rows, rows == 5 ? 2 * internal::kDecodeGrain + 1 : 64, cols,
                           static_cast<size_t>(cols % 3), rows % 2 == 1);
      }
    }
  }
}

TEST_P(GemmTest, DecodeMatchesOracleWithThreads) {
  for (const WeightFormat format : kWeightTypes) {
    CheckMatMul<float>(format, 1, 211, 1031, 1, true);
    CheckMatMul<float>(format, 19, 101, 515, 1, false);
  }
}

TEST_P(GemmTest, ManyRowsMatchOracle) {
  for (const WeightFormat format : kWeightTypes) {
    CheckMatMul<float>(format, 65, 1, 1, 0, true);
    CheckMatMul<float>(format, 66, 129, 37, 1, true);
    CheckMatMul<float>(format, 65, 40, 1025, 1, false);
  }
}

TEST(GemmTest, DoubleMatchesOracle) {
  for (const WeightFormat format : kWeightTypes) {
    CheckMatMul<double>(format, 3, 17, 45, 1, true);
    CheckMatMul<double>(format, 20, 130, 1030, 1, true);
  }
}

TEST_P(GemmTest, NoColumnsLeaveTheBias) {
  const Weight weight(WeightFormat::kBF16, 3, 0);
  const float bias[] = {1.0f, 2.0f, 3.0f};
  for (const int64_t rows : {1, 100}) {
    std::vector<float> y(static_cast<size_t>(rows * 3), 9.0f);
    const float none = 0.0f;
    MatMul<float>(&none, rows, weight.view(), bias, y.data(), 1);
    EXPECT_EQ(y.front(), 1.0f);
    EXPECT_EQ(y.back(), 3.0f);
  }
}

// The oracle itself, against numbers worked out by hand.
TEST(GemmTest, OracleOnAHandMadeExample) {
  const float w[] = {1, 2, 3, 4, 5, 6};
  const WeightView weight{reinterpret_cast<const std::byte*>(w), WeightFormat::kF32, 2, 3};
  const float x[] = {1, 0, -1, 2, 1, 1};
  const float bias[] = {10, 20};
  float y[4];
  ref::MatMul<float>(x, 2, weight, bias, y);
  EXPECT_EQ(y[0], 8);
  EXPECT_EQ(y[1], 18);
  EXPECT_EQ(y[2], 17);
  EXPECT_EQ(y[3], 39);
}

// A row has the same bits alone, among any number of others, and with any number of threads.
TEST_P(GemmTest, DecodeBitsDependOnlyOnTheRow) {
  constexpr int64_t kOuts = 157;
  constexpr int64_t kCols = 1403;
  for (const WeightFormat format : kWeightTypes) {
    const Weight weight(format, kOuts, kCols, 1);
    const auto x = RandomReals<float>(kDecodeRows * kCols, 5);
    std::vector<float> alone(static_cast<size_t>(kDecodeRows * kOuts));
    for (int64_t t = 0; t < kDecodeRows; ++t) {
      MatMul(x.data() + t * kCols, 1, weight.view(), nullptr, alone.data() + t * kOuts, 1);
    }
    for (const int64_t rows : {2, 3, 4, 7, 16, 18, 64}) {
      for (const int threads : {1, 2, 3}) {
        std::vector<float> y(static_cast<size_t>(rows * kOuts));
        MatMul(x.data(), rows, weight.view(), nullptr, y.data(), threads);
        ASSERT_EQ(std::memcmp(y.data(), alone.data(), y.size() * sizeof(float)), 0)
            << rows << " rows, " << threads << " threads, " << NameOf(format);
      }
    }
    // Another place in the batch.
    std::vector<float> y(3 * kOuts);
    MatMul(x.data() + 5 * kCols, 3, weight.view(), nullptr, y.data(), 2);
    ASSERT_EQ(std::memcmp(y.data(), alone.data() + 5 * kOuts, y.size() * sizeof(float)), 0);
  }
}

TEST_P(GemmTest, ManyRowsBitsDoNotDependOnThreads) {
  constexpr int64_t kRows = 70;
  const Weight weight(WeightFormat::kBF16, 300, 1100, 1);
  const auto x = RandomReals<float>(kRows * 1100, 6);
  const auto dy = RandomReals<float>(kRows * 300, 7);
  std::vector<float> y(kRows * 300);
  std::vector<float> dx(kRows * 1100);
  MatMul(x.data(), kRows, weight.view(), nullptr, y.data(), 1);
  MatMulGradInput(dy.data(), kRows, weight.view(), dx.data(), false, 1);
  for (const int threads : {2, 3}) {
    std::vector<float> y2(y.size());
    std::vector<float> dx2(dx.size());
    MatMul(x.data(), kRows, weight.view(), nullptr, y2.data(), threads);
    MatMulGradInput(dy.data(), kRows, weight.view(), dx2.data(), false, threads);
    EXPECT_EQ(std::memcmp(y.data(), y2.data(), y.size() * sizeof(float)), 0);
    EXPECT_EQ(std::memcmp(dx.data(), dx2.data(), dx.size() * sizeof(float)), 0);
  }
}

template <class Real>
void CheckGradInput(WeightFormat format, int64_t num_rows, int64_t outs, int64_t cols,
                    bool accumulate) {
  const Weight weight(format, outs, cols, 1);
  const auto dy = RandomReals<Real>(num_rows * outs, 8);
  const auto before = RandomReals<Real>(num_rows * cols, 9);
  std::vector<Real> dx = before;
  MatMulGradInput(dy.data(), num_rows, weight.view(), dx.data(), accumulate, 2);
  for (int64_t t = 0; t < num_rows; ++t) {
    for (int64_t k = 0; k < cols; ++k) {
      const size_t index = static_cast<size_t>(t * cols + k);
      double sum = accumulate ? static_cast<double>(before[index]) : 0.0;
      double magnitudes = std::abs(sum);
      for (int64_t n = 0; n < outs; ++n) {
        const double term =
            static_cast<double>(dy[static_cast<size_t>(t * outs + n)]) * weight.At(n, k);
        sum += term;
        magnitudes += std::abs(term);
      }
      ASSERT_NEAR(static_cast<double>(dx[index]), sum,
                  SumTolerance<Real>(outs + 1, magnitudes) + 0x1p-52 * magnitudes)
          << "row " << t << " column " << k << " " << NameOf(format);
    }
  }
}

TEST_P(GemmTest, GradInputMatchesOracle) {
  for (const WeightFormat format : kWeightTypes) {
    for (const bool accumulate : {false, true}) {
      CheckGradInput<float>(format, 1, 1, 1, accumulate);
      CheckGradInput<float>(format, 5, 37, 300, accumulate);
      CheckGradInput<float>(format, 18, 1030, 40, accumulate);
      CheckGradInput<double>(format, 4, 1030, 33, accumulate);
    }
  }
}

TEST(GemmTest, GradInputOfNoOutputsIsZero) {
  const Weight weight(WeightFormat::kF32, 0, 3);
  std::vector<float> dx = {1, 2, 3};
  MatMulGradInput<float>(nullptr, 1, weight.view(), dx.data(), true, 1);
  EXPECT_EQ(dx, (std::vector<float>{1, 2, 3}));
  MatMulGradInput<float>(nullptr, 1, weight.view(), dx.data(), false, 1);
  EXPECT_EQ(dx, (std::vector<float>{0, 0, 0}));
}

// All patterns of both 16-bit types, bit by bit.
TEST_P(GemmTest, ExpandRowIsExact) {
  constexpr int64_t kSize = 0x8000;
  std::vector<uint16_t> patterns(2 * kSize);
  std::iota(patterns.begin(), patterns.end(), uint16_t{0});
  const auto* data = reinterpret_cast<const std::byte*>(patterns.data());
  const auto check = [&](WeightFormat format, int64_t row) {
    std::vector<float> out(kSize);
    std::vector<double> wide(kSize);
    ExpandRow<float>({data, format, 2, kSize}, row, out.data());
    ExpandRow<double>({data, format, 2, kSize}, row, wide.data());
    for (size_t i = 0; i < kSize; ++i) {
      const uint16_t bits = patterns[static_cast<size_t>(row) * kSize + i];
      // Not all instruction sets expand F16 infinities and NaN exactly; no weight has them.
      if (format == WeightFormat::kF16 && (bits & 0x7c00) == 0x7c00) continue;
      const float expected =
          format == WeightFormat::kF16 ? ToFloat(F16{bits}) : ToFloat(BF16{bits});
      ASSERT_EQ(std::bit_cast<uint32_t>(out[i]), std::bit_cast<uint32_t>(expected)) << bits;
      if (!std::isnan(expected)) {
        ASSERT_EQ(wide[i], static_cast<double>(expected)) << bits;
      }
    }
  };
  for (const int64_t row : {0, 1}) {
    check(WeightFormat::kF16, row);
    check(WeightFormat::kBF16, row);
  }
}

TEST(GemmTest, ExpandRowCopiesFloats) {
  const float w[] = {1.5f, -2.5f, 3.5f, 4.5f};
  float out[2];
  ExpandRow<float>({reinterpret_cast<const std::byte*>(w), WeightFormat::kF32, 2, 2}, 1, out);
  EXPECT_EQ(out[0], 3.5f);
  EXPECT_EQ(out[1], 4.5f);
}

template <class Real>
void CheckBlasGemm(bool transpose_a, bool transpose_b) {
  constexpr int64_t kM = 5, kN = 7, kK = 9, kPad = 2;
  const int64_t lda = (transpose_a ? kM : kK) + kPad;
  const int64_t ldb = (transpose_b ? kK : kN) + kPad;
  const int64_t ldc = kN + kPad;
  const auto a = RandomReals<Real>((transpose_a ? kK : kM) * lda, 10);
  const auto b = RandomReals<Real>((transpose_b ? kN : kK) * ldb, 11);
  const auto before = RandomReals<Real>(kM * ldc, 12);
  std::vector<Real> c = before;
  BlasGemm<Real>(transpose_a, transpose_b, kM, kN, kK, Real{2}, a.data(), lda, b.data(), ldb,
                 Real{3}, c.data(), ldc);
  for (int64_t i = 0; i < kM; ++i) {
    for (int64_t j = 0; j < ldc; ++j) {
      const size_t index = static_cast<size_t>(i * ldc + j);
      if (j >= kN) {
        EXPECT_EQ(c[index], before[index]) << "written beyond the matrix";
        continue;
      }
      double sum = 0.0;
      for (int64_t l = 0; l < kK; ++l) {
        sum +=
            static_cast<double>(a[static_cast<size_t>(transpose_a ? l * lda + i : i * lda + l)]) *
            static_cast<double>(b[static_cast<size_t>(transpose_b ? j * ldb + l : l * ldb + j)]);
      }
      const double expected = 2.0 * sum + 3.0 * static_cast<double>(before[index]);
      // Magnitudes: 2 * kK terms below 1, and 3.
      EXPECT_NEAR(static_cast<double>(c[index]), expected, SumTolerance<Real>(kK + 2, 21.0));
    }
  }
}

TEST(GemmTest, BlasGemmTransposes) {
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      CheckBlasGemm<float>(transpose_a, transpose_b);
      CheckBlasGemm<double>(transpose_a, transpose_b);
    }
  }
}

TEST(GemmTest, ADeviceWithoutCodeIsRefused) {
  const std::byte data[8] = {};
  float out[8] = {};
  const WeightView weight = {data, WeightFormat::kBF16, 1, 4, 0, {Device::kCuda, 1}};
  const std::string message = "[cuda:1] products with weights";
  const Projection<float> projection = {&weight, nullptr, out + 4};
  ExpectError<Unsupported>([&] { MatMul<float>(out, 1, weight, nullptr, out + 4, 1); }, {message});
  ExpectError<Unsupported>([&] { MatMulShared<float>(out, 1, {&projection, 1}, 1); }, {message});
  ExpectError<Unsupported>([&] { MatMulGradInput<float>(out, 1, weight, out + 4, false, 1); },
                           {message});
  ExpectError<Unsupported>([&] { ExpandRow<float>(weight, 0, out); }, {message});
}

// Rows in pairs: the bits of a weight whose rows lie in order, for few rows, many rows and
// gradients.
TEST_P(GemmTest, RowsInPairsGiveTheSameBits) {
  constexpr int64_t kPairRows = 8;
  constexpr int64_t kOuts = 20 * kPairRows;
  constexpr int64_t kCols = 130;
  for (const WeightFormat format : kWeightTypes) {
    const Weight ordered(format, kOuts, kCols, 0);
    const size_t row_bytes = static_cast<size_t>(RowBytes(format, kCols));
    std::vector<std::byte> stored(ordered.view().num_bytes());
    WeightView paired{stored.data(), format, kOuts, kCols, kPairRows};
    for (int64_t head = 0; head < kOuts / kPairRows; ++head) {
      for (int64_t s = 0; s < 2; ++s) {
        for (int64_t i = 0; i < kPairRows / 2; ++i) {
          const int64_t row = head * kPairRows + s * kPairRows / 2 + i;
          const int64_t place = head * kPairRows + 2 * i + s;
          ASSERT_EQ(paired.StoredRow(row), place);
          std::memcpy(stored.data() + static_cast<size_t>(place) * row_bytes,
                      ordered.view().data + static_cast<size_t>(row) * row_bytes, row_bytes);
        }
      }
    }
    const auto bias = RandomReals<float>(kOuts, 3);
    for (const int64_t rows : {1, 3, 17, 64, 80}) {
      const auto x = RandomReals<float>(rows * kCols, 2);
      for (const float* with_bias : {bias.data(), static_cast<const float*>(nullptr)}) {
        std::vector<float> expected(static_cast<size_t>(rows * kOuts));
        std::vector<float> y(expected.size());
        MatMul(x.data(), rows, ordered.view(), with_bias, expected.data(), 2);
        MatMul(x.data(), rows, paired, with_bias, y.data(), 2);
        EXPECT_EQ(y, expected) << rows;
      }
      const auto dy = RandomReals<float>(rows * kOuts, 4);
      std::vector<float> expected(x.size());
      std::vector<float> dx(x.size());
      MatMulGradInput(dy.data(), rows, ordered.view(), expected.data(), false, 2);
      MatMulGradInput(dy.data(), rows, paired, dx.data(), false, 2);
      EXPECT_EQ(dx, expected) << rows;
    }
    const auto x = RandomReals<double>(kCols, 2);
    std::vector<double> expected(kOuts);
    std::vector<double> y(kOuts);
    MatMul(x.data(), 1, ordered.view(), bias.data(), expected.data(), 1);
    MatMul(x.data(), 1, paired, bias.data(), y.data(), 1);
    EXPECT_EQ(y, expected);
    std::vector<float> row(kCols);
    std::vector<float> paired_row(kCols);
    ExpandRow(ordered.view(), 13, row.data());
    ExpandRow(paired, 13, paired_row.data());
    EXPECT_EQ(paired_row, row);
  }
}

TEST(GemmDeathTest, RefusesOtherFormatsAndRows) {
  const std::byte data[8] = {};
  float out[8] = {};
  const auto unknown = static_cast<WeightFormat>(kNumWeightFormats);
  EXPECT_DEATH(MatMul<float>(out, 1, {data, unknown, 1, 4}, nullptr, out + 4, 1),
               "unknown weight format");
  EXPECT_DEATH(ExpandRow<float>({data, WeightFormat::kBF16, 1, 4}, 1, out), "row < weight.rows");
}

}  // namespace
}  // namespace pmkvq
