// Products by cuBLASLt against sums in double of the operands as stored. A sum of K products in
// float, in any order, errs by at most K 2^-24 of the sum of their magnitudes; tensor cores cut
// instead of rounding, twice that. The bound leaves another factor of two. Together the errors are
// much smaller, and tell float from shorter types: docs/numerics.md.
#include "pmkvq/kernels/gemm/device_gemm.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/captured_work.h"
#include "support/expect_error.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

// |y - expected| / |expected| over a whole result: sums of up to 4,096 products.
constexpr double kFloatError = 1e-5;  // TF32 would give 3e-4.
constexpr double kTensorCoreError = 1e-4;

// Random values as stored and as doubles.
struct Matrix {
  std::vector<std::byte> stored;
  std::vector<double> values;
};

Matrix RandomMatrix(DType type, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Matrix matrix;
  matrix.stored.resize(static_cast<size_t>(count) * SizeOf(type));
  matrix.values.resize(static_cast<size_t>(count));
  internal::VisitFloatType(type, [&]<class T>(T) {
    for (size_t i = 0; i < matrix.values.size(); ++i) {
      const T value = FromFloat<T>(normal(random));
      std::memcpy(matrix.stored.data() + i * sizeof(T), &value, sizeof(T));
      matrix.values[i] = ToFloat(value);
    }
  });
  return matrix;
}

// The bytes of a large matrix: the same million values again and again.
std::vector<std::byte> LargeMatrix(DType type, int64_t count, uint32_t seed) {
  const std::vector<std::byte> part =
      RandomMatrix(type, std::min<int64_t>(count, 1'000'003), seed).stored;
  std::vector<std::byte> stored(static_cast<size_t>(count) * SizeOf(type));
  for (size_t at = 0; at < stored.size(); at += part.size()) {
    std::memcpy(stored.data() + at, part.data(), std::min(part.size(), stored.size() - at));
  }
  return stored;
}

std::vector<float> AsFloats(DType type, const std::vector<std::byte>& stored) {
  std::vector<float> values(stored.size() / SizeOf(type));
  internal::VisitFloatType(type, [&]<class T>(T) {
    for (size_t i = 0; i < values.size(); ++i) {
      T value;
      std::memcpy(&value, stored.data() + i * sizeof(T), sizeof(T));
      values[i] = ToFloat(value);
    }
  });
  return values;
}

struct Dot {
  double value = 0.0;
  double magnitudes = 0.0;
};

Dot DotOf(const double* a, const double* b, int64_t count, int64_t stride_b = 1) {
  Dot dot;
  for (int64_t i = 0; i < count; ++i) {
    const double product = a[i] * b[i * stride_b];
    dot.value += product;
    dot.magnitudes += std::abs(product);
  }
  return dot;
}

// Compares results with sums one by one, and all together.
class Comparison {
 public:
  Comparison(DType type, int64_t k) : type_(type), bound_(static_cast<double>(k + 1) * 0x1p-22) {}

  // `rounding`: of the result to its own type, relatively.
  void Add(float found, double expected, double magnitudes, double rounding = 0.0) {
    const double error = std::abs(found - expected);
    const double allowed = bound_ * magnitudes + rounding * std::abs(expected);
    if (!(error <= allowed) && num_wrong_++ == 0) {
      ADD_FAILURE() << "found " << found << ", expected " << expected << " within " << allowed;
    }
    errors_ += error * error;
    sizes_ += expected * expected;
  }
  void ExpectSmall() const {
    EXPECT_EQ(num_wrong_, 0);
    EXPECT_LE(std::sqrt(errors_ / sizes_), type_ == DType::kF32 ? kFloatError : kTensorCoreError);
  }

 private:
  DType type_;
  double bound_;
  int64_t num_wrong_ = 0;
  double errors_ = 0.0;
  double sizes_ = 0.0;
};

class DeviceGemmTestBase : public GpuTest {
 protected:
  void SetUp() override {
    GpuTest::SetUp();
    if (!IsSkipped() && !HasFatalFailure()) gemm_ = std::make_unique<DeviceGemm>(kDevice);
  }

  DeviceGemm& gemm() { return *gemm_; }

  std::unique_ptr<Buffer> Upload(const void* data, size_t num_bytes) {
    auto buffer = std::make_unique<Buffer>(kDevice, num_bytes);
    CopyToDevice(stream(), buffer->data(), data, num_bytes);
    stream().Synchronize();
    return buffer;
  }
  std::unique_ptr<Buffer> Upload(const std::vector<std::byte>& bytes) {
    return Upload(bytes.data(), bytes.size());
  }

  // The first `rows` rows of x, with other rows behind them, on the device.
  std::unique_ptr<Buffer> UploadRows(DType type, const Matrix& x, int64_t rows, int64_t k,
                                     int64_t first_row = 0) {
    const auto row_bytes = static_cast<size_t>(k) * SizeOf(type);
    Matrix padded = RandomMatrix(type, DeviceGemm::PaddedRows(rows) * k, 999);
    std::memcpy(padded.stored.data(), x.stored.data() + static_cast<size_t>(first_row) * row_bytes,
                static_cast<size_t>(rows) * row_bytes);
    return Upload(padded.stored);
  }

  std::vector<float> Download(const std::byte* data, int64_t count) {
    std::vector<float> values(static_cast<size_t>(count));
    CopyToHost(stream(), values.data(), data, values.size() * sizeof(float));
    stream().Synchronize();
    return values;
  }

  // y of `rows` rows; `before` is what y holds at first, and is added to.
  std::vector<float> Multiply(DType type, const Buffer& x, const Buffer& w, int64_t rows, int64_t n,
                              int64_t k, const std::vector<float>& before = {}) {
    std::vector<float> y(static_cast<size_t>(DeviceGemm::PaddedRows(rows) * n), std::nanf(""));
    if (!before.empty()) {
      std::fill(y.begin(), y.end(), 1.0f);
      std::copy_n(before.begin(), rows * n, y.begin());
    }
    const auto out = Upload(y.data(), y.size() * sizeof(float));
    DeviceProduct product{.type = type,
                          .x = x.data(),
                          .w = w.data(),
                          .y = reinterpret_cast<float*>(out->data()),
                          .rows = rows,
                          .n = n,
                          .k = k,
                          .accumulate = !before.empty()};
    gemm().Multiply(product, stream());
    return Download(out->data(), rows * n);
  }

 private:
  std::unique_ptr<DeviceGemm> gemm_;
};

class DeviceGemmTest : public DeviceGemmTestBase, public testing::WithParamInterface<DType> {
 protected:
  void Check(int64_t n, int64_t k, const std::vector<int64_t>& row_counts) {
    const DType type = GetParam();
    const int64_t most = *std::max_element(row_counts.begin(), row_counts.end());
    const Matrix x = RandomMatrix(type, most * k, 1);
    const Matrix w = RandomMatrix(type, n * k, 2);
    std::vector<Dot> expected(static_cast<size_t>(most * n));
    for (int64_t i = 0; i < most * n; ++i) {
      expected[static_cast<size_t>(i)] = DotOf(&x.values[static_cast<size_t>(i / n * k)],
                                               &w.values[static_cast<size_t>(i % n * k)], k);
    }
    const auto weight = Upload(w.stored);
    for (const int64_t rows : row_counts) {
      SCOPED_TRACE(testing::Message() << rows << " rows of " << k << " to " << n);
      const auto rows_of_x = UploadRows(type, x, rows, k);
      const auto y = Multiply(type, *rows_of_x, *weight, rows, n, k);
      Comparison plain(type, k);
      for (size_t i = 0; i < y.size(); ++i) {
        plain.Add(y[i], expected[i].value, expected[i].magnitudes);
      }
      plain.ExpectSmall();
      std::vector<float> before(y.size());
      for (size_t i = 0; i < before.size(); ++i) before[i] = static_cast<float>(i % 17) - 8.0f;
      const auto sum = Multiply(type, *rows_of_x, *weight, rows, n, k, before);
      Comparison added(type, k);
      for (size_t i = 0; i < sum.size(); ++i) {
        const auto was = static_cast<double>(before[i]);
        added.Add(sum[i], expected[i].value + was, expected[i].magnitudes + std::abs(was));
      }
      added.ExpectSmall();
    }
  }
};
INSTANTIATE_TEST_SUITE_P(Types, DeviceGemmTest,
                         testing::Values(DType::kBF16, DType::kF16, DType::kF32),
                         [](const auto& param) { return std::string(NameOf(param.param)); });

TEST_P(DeviceGemmTest, SumsAreThoseOfDouble) {
  Check(64, 64, {1, 2, 3, 7, 8, 33, 63, 64, 65, 128});
  Check(8, 8, {1, 64});
  Check(1000, 264, {1, 5, 64, 100, 129, 512});
  Check(520, 1536, {1, 64, 128, 512});
  Check(264, 4096, {1, 64});
}

TEST_P(DeviceGemmTest, OddSizesWorkOrAreRefusedByName) {
  if (GetParam() == DType::kF32) return Check(37, 131, {1, 64, 77});
  try {
    Check(37, 131, {1, 64, 77});
  } catch (const Unsupported& error) {
    EXPECT_NE(std::string(error.what()).find("found 37 outputs of 131 inputs"), std::string::npos)
        << error.what();
  }
}

// Shapes of the products of a Qwen2-7B block, and small ones.
TEST_P(DeviceGemmTest, ARowsBitsDependOnTheRowAlone) {
  const DType type = GetParam();
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{
           {4608, 3584}, {3584, 3584}, {37888, 3584}, {3584, 18944}, {512, 64}, {1024, 256}}) {
    SCOPED_TRACE(testing::Message() << n << " x " << k);
    const Matrix x = RandomMatrix(type, 64 * k, 3);
    const auto weight = Upload(LargeMatrix(type, n * k, 4));
    gemm().Prepare(type, n, k, 1, false, stream());
    const auto all = Multiply(type, *UploadRows(type, x, 64, k), *weight, 64, n, k);
    // Rows from `first` on, `rows` of them, at places from 0 on.
    for (const auto& [first, rows] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 1}, {0, 7}, {1, 1}, {31, 1}, {32, 7}, {57, 7}, {63, 1}, {13, 51}}) {
      SCOPED_TRACE(testing::Message() << rows << " rows from row " << first);
      const auto some = Multiply(type, *UploadRows(type, x, rows, k, first), *weight, rows, n, k);
      EXPECT_EQ(std::memcmp(some.data(), all.data() + first * n, some.size() * sizeof(float)), 0);
    }
  }
}

TEST_P(DeviceGemmTest, RepeatsAndCapturedWorkGiveEqualBits) {
  const DType type = GetParam();
  constexpr int64_t kN = 4608;
  constexpr int64_t kK = 3584;
  for (const int64_t rows : {7, 200}) {
    SCOPED_TRACE(testing::Message() << rows << " rows");
    const auto x = UploadRows(type, RandomMatrix(type, rows * kK, 5), rows, kK);
    const auto weight = Upload(LargeMatrix(type, kN * kK, 6));
    const auto first = Multiply(type, *x, *weight, rows, kN, kK);
    for (int i = 0; i < 50; ++i) {
      const auto again = Multiply(type, *x, *weight, rows, kN, kK);
      ASSERT_EQ(std::memcmp(first.data(), again.data(), first.size() * sizeof(float)), 0) << i;
    }
    const Buffer y(kDevice, static_cast<size_t>(DeviceGemm::PaddedRows(rows) * kN) * sizeof(float));
    const DeviceProduct product{.type = type,
                                .x = x->data(),
                                .w = weight->data(),
                                .y = reinterpret_cast<float*>(y.data()),
                                .rows = rows,
                                .n = kN,
                                .k = kK};
    gemm().Prepare(type, kN, kK, rows, false, stream());
    CapturedWork work(stream(), [&] { gemm().Multiply(product, stream()); });
    for (int i = 0; i < 3; ++i) {
      FillOnDevice(stream(), y.data(), 0xff, y.num_bytes());
      work.Launch(stream());
      const auto captured = Download(y.data(), rows * kN);
      EXPECT_EQ(std::memcmp(first.data(), captured.data(), first.size() * sizeof(float)), 0);
    }
  }
}

// An object that has never run the product before.
TEST_P(DeviceGemmTest, AnotherObjectGivesEqualBits) {
  const DType type = GetParam();
  const auto x = UploadRows(type, RandomMatrix(type, 64 * 3584, 7), 64, 3584);
  const auto weight = Upload(LargeMatrix(type, 512 * 3584, 8));
  const auto first = Multiply(type, *x, *weight, 64, 512, 3584);
  DeviceGemm other(kDevice);
  const Buffer y(kDevice, first.size() * sizeof(float));
  other.Prepare(type, 512, 3584, 64, false, stream());
  other.Multiply({.type = type,
                  .x = x->data(),
                  .w = weight->data(),
                  .y = reinterpret_cast<float*>(y.data()),
                  .rows = 3,
                  .n = 512,
                  .k = 3584},
                 stream());
  const auto again = Download(y.data(), std::ssize(first));
  EXPECT_EQ(std::memcmp(first.data(), again.data(), first.size() * sizeof(float)), 0);
}

class DeviceGemmBatchedTest : public DeviceGemmTestBase,
                              public testing::WithParamInterface<std::tuple<DType, bool, bool>> {};
INSTANTIATE_TEST_SUITE_P(Kinds, DeviceGemmBatchedTest,
                         testing::Combine(testing::Values(DType::kBF16, DType::kF16, DType::kF32),
                                          testing::Bool(), testing::Bool()));

// Scores and weighted values of attention: rows of heads side by side, so that strides are shorter
// than leading dimensions.
TEST_P(DeviceGemmBatchedTest, SumsAreThoseOfDouble) {
  const auto& [type, transpose_b, float_out] = GetParam();
  const DType out_type = float_out ? DType::kF32 : type;
  constexpr int64_t kBatches = 3;
  for (const auto& [m, n, k] : std::vector<std::tuple<int64_t, int64_t, int64_t>>{
           {128, 256, 128}, {64, 128, 1000}, {200, 64, 520}, {8, 8, 64}}) {
    for (const bool shared_b : {false, true}) {
      for (const float beta : {0.0f, 0.5f}) {
        SCOPED_TRACE(testing::Message() << m << " x " << n << " x " << k << " beta " << beta
                                        << (shared_b ? " shared" : ""));
        DeviceGemm::Batched p;
        p.type = type;
        p.out_type = out_type;
        p.transpose_b = transpose_b;
        p.batches = kBatches;
        p.m = m;
        p.n = n;
        p.k = k;
        p.alpha = 0.125f;
        p.beta = beta;
        p.lda = kBatches * k;  // [m, batch, k]
        p.stride_a = k;
        const int64_t b_rows = transpose_b ? n : k;
        const int64_t b_cols = transpose_b ? k : n;
        p.ldb = b_cols;  // [batch, rows, cols]
        p.stride_b = shared_b ? 0 : b_rows * b_cols;
        p.ldc = n + 8;
        p.stride_c = m * p.ldc;
        const Matrix a = RandomMatrix(type, m * p.lda, 11);
        const Matrix b = RandomMatrix(type, kBatches * b_rows * b_cols, 12);
        const Matrix c = RandomMatrix(out_type, kBatches * p.stride_c, 13);
        const auto a_on_device = Upload(a.stored);
        const auto b_on_device = Upload(b.stored);
        const auto c_on_device = Upload(c.stored);
        p.a = a_on_device->data();
        p.b = b_on_device->data();
        p.c = c_on_device->data();
        gemm().MultiplyBatched(p, stream());
        std::vector<std::byte> stored(c.stored.size());
        CopyToHost(stream(), stored.data(), p.c, stored.size());
        stream().Synchronize();
        const std::vector<float> found = AsFloats(out_type, stored);

        const double rounding = out_type == DType::kBF16  ? 0x1p-8
                                : out_type == DType::kF16 ? 0x1p-10
                                                          : 0x1p-23;
        bool kept = true;
        for (int64_t i = 0; i < kBatches * m; ++i) {
          const int64_t batch = i / m;
          const int64_t row = i % m;
          for (int64_t col = 0; col < p.ldc; ++col) {
            const auto at = static_cast<size_t>(batch * p.stride_c + row * p.ldc + col);
            if (col >= n) {
              kept = kept && found[at] == static_cast<float>(c.values[at]);
              continue;
            }
            const Dot dot = DotOf(
                &a.values[static_cast<size_t>(row * p.lda + batch * p.stride_a)],
                &b.values[static_cast<size_t>(batch * p.stride_b + (transpose_b ? col * k : col))],
                k, transpose_b ? 1 : n);
            const double was = beta * c.values[at];
            const double expected = 0.125 * dot.value + was;
            const double allowed =
                static_cast<double>(k + 2) * 0x1p-22 * (0.125 * dot.magnitudes + std::abs(was)) +
                rounding * std::abs(expected);
            ASSERT_LE(std::abs(found[at] - expected), allowed) << batch << ' ' << row << ' ' << col;
          }
        }
        EXPECT_TRUE(kept) << "memory between rows was written";
      }
    }
  }
}

}  // namespace
}  // namespace pmkvq
