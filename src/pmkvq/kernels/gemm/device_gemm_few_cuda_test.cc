// Products of few rows on CUDA against double precision, and bit for bit against themselves.
#include "pmkvq/kernels/gemm/device_gemm_few.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/tensor/device/buffer.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

constexpr int64_t kPartRows = 64;

class DeviceGemmFewSmallTest : public GpuTest, public testing::WithParamInterface<DType> {
 protected:
  // Weights and an operand of two parts, of kMostFewRows rows.
  struct Product {
    int64_t n = 0;
    int64_t k = 0;
    std::vector<double> w, x;  // [n, k], and the sum of both parts [kMostFewRows, k]
    std::unique_ptr<Buffer> device_w, device_x, y;
  };

  Product Make(int64_t n, int64_t k) {
    Product made;
    made.n = n;
    made.k = k;
    std::normal_distribution<float> normal;
    std::vector<uint16_t> w;
    for (int64_t i = 0; i < n * k; ++i) w.push_back(Bits(normal(random_), made.w));
    std::vector<uint16_t> x(static_cast<size_t>(2 * kPartRows * k),
                            0x7fff);  // NaN where no row is.
    for (int64_t i = 0; i < kMostFewRows * k; ++i) {
      std::vector<double> parts;
      x[static_cast<size_t>(i)] = Bits(normal(random_), parts);
      x[static_cast<size_t>(kPartRows * k + i)] = Bits(normal(random_) * 1e-3f, parts);
      made.x.push_back(parts[0] + parts[1]);
    }
    made.device_w = Upload(w);
    made.device_x = Upload(x);
    made.y =
        std::make_unique<Buffer>(kDevice, static_cast<size_t>(kMostFewRows * n) * sizeof(float));
    return made;
  }
  uint16_t Bits(float value, std::vector<double>& values) {
    uint16_t bits = 0;
    if (GetParam() == DType::kF16) {
      const F16 rounded = ToF16(value);
      std::memcpy(&bits, &rounded, 2);
      values.push_back(ToFloat(rounded));
    } else {
      const BF16 rounded = ToBF16(value);
      std::memcpy(&bits, &rounded, 2);
      values.push_back(ToFloat(rounded));
    }
    return bits;
  }
  std::unique_ptr<Buffer> Upload(const std::vector<uint16_t>& values) {
    auto buffer = std::make_unique<Buffer>(kDevice, values.size() * 2);
    CopyToDevice(stream(), buffer->data(), values.data(), values.size() * 2);
    stream().Synchronize();
    return buffer;
  }
  std::vector<float> Run(const Product& product, int64_t first_row, int64_t rows) {
    FillOnDevice(stream(), product.y->data(), 0xff, product.y->num_bytes());
    MultiplyFewRows({.x = {product.device_x->data(), GetParam(), 2, kPartRows},
                     .first_row = first_row,
                     .rows = rows,
                     .w = product.device_w->data(),
                     .n = product.n,
                     .k = product.k,
                     .y = reinterpret_cast<float*>(product.y->data())},
                    stream());
    std::vector<float> y(static_cast<size_t>(kMostFewRows * product.n));
    CopyToHost(stream(), y.data(), product.y->data(), y.size() * sizeof(float));
    stream().Synchronize();
    for (size_t i = static_cast<size_t>(rows * product.n); i < y.size(); ++i) {
      EXPECT_TRUE(std::isnan(y[i])) << "wrote behind its rows";
    }
    y.resize(static_cast<size_t>(rows * product.n));
    return y;
  }

  std::mt19937 random_{3};
};
INSTANTIATE_TEST_SUITE_P(Types, DeviceGemmFewSmallTest, testing::Values(DType::kF16, DType::kBF16));

// Fewer columns than warps have units, units that are not full, rows that are no multiple of a
// tile, more tiles than blocks.
TEST_P(DeviceGemmFewSmallTest, IsTheProductForEveryNumberOfRows) {
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{
           {16, 64}, {5, 192}, {100, 1088}, {4616, 128}, {48, 5184}}) {
    SCOPED_TRACE(testing::Message() << n << " x " << k);
    const Product product = Make(n, k);
    for (int64_t rows = 1; rows <= kMostFewRows; ++rows) {
      const std::vector<float> y = Run(product, 0, rows);
      for (int64_t r = 0; r < rows; ++r) {
        for (int64_t i = 0; i < n; ++i) {
          double sum = 0.0;
          double size = 0.0;
          for (int64_t c = 0; c < k; ++c) {
            const double term = product.x[static_cast<size_t>(r * k + c)] *
                                product.w[static_cast<size_t>(i * k + c)];
            sum += term;
            size += std::abs(term);
          }
          // Float sums of k terms: a tensor core's rounding is at most 2 ulp a step of 16.
          ASSERT_NEAR(y[static_cast<size_t>(r * n + i)], sum, 1e-6 * size + 1e-6)
              << "row " << r << " of " << rows << ", output " << i;
        }
      }
    }
  }
}

TEST_P(DeviceGemmFewSmallTest, BitsOfARowDependOnItAlone) {
  const Product product = Make(4616, 1216);
  const std::vector<float> all = Run(product, 0, kMostFewRows);
  for (int64_t rows = 1; rows <= 4; ++rows) {
    for (const int64_t first : {int64_t{0}, int64_t{3}, kMostFewRows - rows}) {
      const std::vector<float> some = Run(product, first, rows);
      EXPECT_EQ(
          std::memcmp(some.data(), all.data() + first * product.n, some.size() * sizeof(float)), 0)
          << rows << " rows from " << first;
    }
  }
}

// Bit for bit what products and SiluMulRows give one after the other.
TEST_P(DeviceGemmFewSmallTest, GatedProductsAreRoundedToOperands) {
  for (const int64_t n : {8, 300, 2308}) {
    constexpr int64_t k = 448;
    const Product product = Make(2 * n, k);
    for (const auto& [first, rows] :
         std::vector<std::pair<int64_t, int64_t>>{{0, 1}, {0, 2}, {2, 3}, {0, 8}}) {
      SCOPED_TRACE(testing::Message() << n << ", " << rows << " rows from " << first);
      const Buffer sums(kDevice, static_cast<size_t>(rows * 2 * n) * sizeof(float));
      const auto operand_bytes = static_cast<size_t>(2 * kPartRows * n) * 2;
      const Buffer expected(kDevice, operand_bytes);
      const Buffer got(kDevice, operand_bytes);
      FillOnDevice(stream(), expected.data(), 0xff, operand_bytes);
      FillOnDevice(stream(), got.data(), 0xff, operand_bytes);
      FewRowsProduct op{.x = {product.device_x->data(), GetParam(), 2, kPartRows},
                        .first_row = first,
                        .rows = rows,
                        .w = product.device_w->data(),
                        .n = 2 * n,
                        .k = k,
                        .y = reinterpret_cast<float*>(sums.data())};
      MultiplyFewRows(op, stream());
      SiluMulRows({op.y, 1, rows}, rows, n,
                  {expected.data() + first * n * 2, GetParam(), 2, kPartRows}, stream());
      op.n = n;
      op.y = nullptr;
      op.gated = {got.data(), GetParam(), 2, kPartRows};
      MultiplyFewRows(op, stream());
      std::vector<uint16_t> values[2];
      for (int i = 0; i < 2; ++i) {
        values[i].resize(operand_bytes / 2);
        CopyToHost(stream(), values[i].data(), (i == 0 ? expected : got).data(), operand_bytes);
      }
      stream().Synchronize();
      EXPECT_EQ(values[0], values[1]);
    }
  }
}

}  // namespace
}  // namespace pmkvq
