// Q8_0, the blocks of GGUF files, as stored.
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/gemm/gemm_decode.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(WeightQ8_0Test, internal::DecodeKernelTarget, "kernels/gemm/gemm_decode.cc");

constexpr int64_t kBlock = LayoutOf(WeightFormat::kQ8_0).block_values;
constexpr int64_t kBlockBytes = LayoutOf(WeightFormat::kQ8_0).block_bytes;

std::vector<float> RandomFloats(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.Uniform() * 2.0 - 1.0);
  return values;
}

// Random blocks of weights up to 1, which end where their memory does: a read past them is one past
// an allocation. They begin at an odd address.
class Blocks {
 public:
  Blocks(int64_t rows, int64_t cols, uint64_t seed) {
    const int64_t num_blocks = rows * ((cols + kBlock - 1) / kBlock);
    memory_.reset(new std::byte[static_cast<size_t>(num_blocks * kBlockBytes + 1)]);
    view_ = {memory_.get() + 1, WeightFormat::kQ8_0, rows, cols};
    Random random(seed);
    std::byte* out = memory_.get() + 1;
    for (int64_t b = 0; b < num_blocks; ++b, out += kBlockBytes) {
      // Also subnormal scales, and negative ones.
      const double magnitude = b % 5 == 0 ? 1e-6 : 1.0 / 128;
      const F16 scale = ToF16(static_cast<float>((2 * random.Uniform() - 1) * magnitude));
      std::memcpy(out, &scale, sizeof(scale));
      for (int64_t i = 0; i < kBlock; ++i) {
        out[2 + i] = static_cast<std::byte>(static_cast<int>(random.Uniform() * 256));
      }
    }
  }
  const WeightView& view() const { return view_; }

 private:
  std::unique_ptr<std::byte[]> memory_;
  WeightView view_;
};

TEST(WeightQ8_0Test, OracleByHand) {
  std::vector<std::byte> bytes(2 * kBlockBytes);
  const F16 half = ToF16(0.5f);
  const F16 minus_two = ToF16(-2.0f);
  std::memcpy(bytes.data(), &half, 2);
  std::memcpy(bytes.data() + kBlockBytes, &minus_two, 2);
  bytes[2] = std::byte{0x80};
  bytes[33] = static_cast<std::byte>(127);
  bytes[kBlockBytes + 2] = std::byte{3};
  const WeightView weight{bytes.data(), WeightFormat::kQ8_0, 1, 64};
  std::vector<float> row(64);
  ExpandRow(weight, 0, row.data());
  EXPECT_EQ(row[0], -64.0f);
  EXPECT_EQ(row[31], 63.5f);
  EXPECT_EQ(row[32], -6.0f);
  EXPECT_EQ(row[33], 0.0f);
  const std::vector<float> x(64, 2.0f);
  float y = 0.0f;
  ref::MatMul(x.data(), 1, weight, nullptr, &y);
  EXPECT_EQ(y, 2.0f * (-64.0f + 63.5f - 6.0f));
}

// Sum of (cols + 2) roundings of half an ulp, as in gemm_test.cc.
void ExpectProduct(const std::vector<float>& x, int64_t num_rows, const WeightView& weight,
                   const std::vector<float>& bias, const std::vector<float>& y) {
  std::vector<float> expected(y.size());
  ref::MatMul(x.data(), num_rows, weight, bias.data(), expected.data());
  for (size_t i = 0; i < y.size(); ++i) {
    const double tolerance = static_cast<double>(weight.cols + 3) * 0x1p-24 *
                             (1.01 * static_cast<double>(weight.cols) + 1.0);
    ASSERT_NEAR(static_cast<double>(y[i]), static_cast<double>(expected[i]), tolerance)
        << num_rows << "x" << weight.rows << "x" << weight.cols << " at " << i;
  }
}

TEST_P(WeightQ8_0Test, ProductsMatchOracle) {
  for (const int64_t rows : {1, 2, 3, 4, 5, 17, 64, 66}) {
    for (const int64_t cols : {32, 64, 96, 512, 1056}) {
      for (const int64_t outs : {1, 7, 8, 65}) {
        const Blocks weight(outs, cols, 1);
        const auto x = RandomFloats(rows * cols, 2);
        const auto bias = RandomFloats(outs, 3);
        std::vector<float> y(static_cast<size_t>(rows * outs), 777.0f);
        MatMul(x.data(), rows, weight.view(), bias.data(), y.data(), 2);
        ExpectProduct(x, rows, weight.view(), bias, y);
      }
    }
  }
}

// Scales of all magnitudes, also subnormal, times all codes: exact. (Infinite scales and NaN are
// errors of the file, and instruction sets without F16 do not know them.)
TEST_P(WeightQ8_0Test, ExpandsExactly) {
  std::vector<std::byte> bytes(kBlockBytes);
  float row[kBlock];
  for (int bits = 0; bits < 65536; bits += 7) {
    if ((bits & 0x7c00) == 0x7c00) continue;
    const F16 scale{static_cast<uint16_t>(bits)};
    std::memcpy(bytes.data(), &scale, 2);
    for (int64_t i = 0; i < kBlock; ++i) bytes[2 + i] = static_cast<std::byte>(bits + 8 * i);
    ExpandRow({bytes.data(), WeightFormat::kQ8_0, 1, kBlock}, 0, row);
    for (int64_t i = 0; i < kBlock; ++i) {
      const auto code = static_cast<float>(static_cast<int8_t>(bits + 8 * i));
      ASSERT_EQ(row[i], code * ToFloat(scale)) << bits << " " << i;
    }
  }
}

TEST_P(WeightQ8_0Test, BitsDependOnlyOnTheRow) {
  constexpr int64_t kOuts = 157;
  constexpr int64_t kCols = 1408;
  const Blocks weight(kOuts, kCols, 1);
  const auto x = RandomFloats(kDecodeRows * kCols, 5);
  std::vector<float> alone(static_cast<size_t>(kDecodeRows * kOuts));
  for (int64_t t = 0; t < kDecodeRows; ++t) {
    MatMul<float>(x.data() + t * kCols, 1, weight.view(), nullptr, alone.data() + t * kOuts, 1);
  }
  for (const int64_t rows : {2, 3, 16, 18, 64}) {
    for (const int threads : {1, 2, 3}) {
      std::vector<float> y(static_cast<size_t>(rows * kOuts));
      MatMul<float>(x.data(), rows, weight.view(), nullptr, y.data(), threads);
      ASSERT_EQ(std::memcmp(y.data(), alone.data(), y.size() * sizeof(float)), 0)
          << rows << " rows, " << threads << " threads";
    }
  }
}

TEST_P(WeightQ8_0Test, GradientIsARowOfTheWeight) {
  constexpr int64_t kOuts = 130;
  constexpr int64_t kCols = 1056;
  const Blocks weight(kOuts, kCols, 1);
  std::vector<double> dy(kOuts, 0.0);
  dy[77] = 1.0;
  std::vector<double> dx(kCols);
  MatMulGradInput<double>(dy.data(), 1, weight.view(), dx.data(), false, 2);
  std::vector<double> row(kCols);
  ExpandRow(weight.view(), 77, row.data());
  EXPECT_EQ(dx, row);
}

}  // namespace
}  // namespace pmkvq
