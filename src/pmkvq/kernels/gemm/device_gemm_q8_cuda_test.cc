// Products with q8 weights on CUDA against sums in double of the operands as stored. Sums are
// float, by tensor cores: device_gemm_cuda_test.cc has the bound for each sum.
#include "pmkvq/kernels/gemm/device_gemm_q8.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/gemm/weight_q8.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/captured_work.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

// |y - expected| / |expected| of a whole result. BF16 in place of F32 x would give 2e-3.
constexpr double kAllTogether = 1e-5;

// A weight on both sides.
struct Weight {
  int64_t n = 0;
  int64_t k = 0;
  std::vector<std::byte> laid_out;
  std::vector<float> values;  // [n, k]
};

Weight RandomWeight(int64_t n, int64_t k, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> values(static_cast<size_t>(n * k));
  for (float& value : values) value = normal(random);
  if (n > 1) std::fill_n(values.begin() + k, k, 0.0f);  // A row of zeros.
  Q8Weight q8;
  EXPECT_TRUE(QuantizeWeight(
      {reinterpret_cast<const std::byte*>(values.data()), WeightFormat::kF32, n, k}, 2, q8));
  Weight weight{n, k, std::vector<std::byte>(DeviceQ8Bytes(n, k)), std::move(values)};
  LayOutQ8(q8.view(), weight.laid_out.data(), 2);
  for (int64_t i = 0; i < n; ++i)
    ExpandRow(q8.view(), i, &weight.values[static_cast<size_t>(i * k)]);
  return weight;
}

struct Rows {
  std::vector<std::byte> stored;
  std::vector<float> values;
};

Rows RandomRows(DType type, int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Rows rows;
  rows.stored.resize(static_cast<size_t>(count) * SizeOf(type));
  internal::VisitFloatType(type, [&]<class T>(T) {
    for (int64_t i = 0; i < count; ++i) {
      const T value = FromFloat<T>(normal(random));
      std::memcpy(rows.stored.data() + static_cast<size_t>(i) * sizeof(T), &value, sizeof(T));
      rows.values.push_back(ToFloat(value));
    }
  });
  return rows;
}

class DeviceQ8TestBase : public GpuTest, public testing::WithParamInterface<DType> {
 protected:
  std::unique_ptr<Buffer> Upload(const void* data, size_t num_bytes) {
    auto buffer = std::make_unique<Buffer>(kDevice, num_bytes);
    CopyToDevice(stream(), buffer->data(), data, num_bytes);
    stream().Synchronize();
    return buffer;
  }

  // Rows [first, first + count) of x; `before`: what y holds, and is added to.
  std::vector<float> Multiply(const Rows& x, const Buffer& w, const Weight& weight, int64_t first,
                              int64_t count, const std::vector<float>& before = {},
                              bool captured = false) {
    const size_t row_bytes = static_cast<size_t>(weight.k) * SizeOf(GetParam());
    const auto rows = Upload(x.stored.data() + static_cast<size_t>(first) * row_bytes,
                             static_cast<size_t>(count) * row_bytes);
    std::vector<float> y(static_cast<size_t>(count * weight.n), std::nanf(""));
    if (!before.empty()) y = before;
    const auto out = Upload(y.data(), y.size() * sizeof(float));
    const DeviceQ8Product product{.type = GetParam(),
                                  .x = rows->data(),
                                  .w = w.data(),
                                  .y = reinterpret_cast<float*>(out->data()),
                                  .rows = count,
                                  .n = weight.n,
                                  .k = weight.k,
                                  .accumulate = !before.empty()};
    if (captured) {
      CapturedWork work(stream(), [&] { MultiplyQ8(product, stream()); });
      work.Launch(stream());
      stream().Synchronize();
    } else {
      MultiplyQ8(product, stream());
    }
    CopyToHost(stream(), y.data(), out->data(), y.size() * sizeof(float));
    stream().Synchronize();
    return y;
  }

  void Check(int64_t n, int64_t k, const std::vector<int64_t>& row_counts) {
    const Weight weight = RandomWeight(n, k, 1);
    const int64_t most = *std::max_element(row_counts.begin(), row_counts.end());
    const Rows x = RandomRows(GetParam(), most * k, 2);
    const auto w = Upload(weight.laid_out.data(), weight.laid_out.size());
    std::vector<double> sums(static_cast<size_t>(most * n));
    std::vector<double> magnitudes(sums.size());
    for (int64_t i = 0; i < most * n; ++i) {
      const float* row = &x.values[static_cast<size_t>(i / n * k)];
      const float* weights = &weight.values[static_cast<size_t>(i % n * k)];
      const auto at = static_cast<size_t>(i);
      for (int64_t c = 0; c < k; ++c) {
        const double product = static_cast<double>(row[c]) * static_cast<double>(weights[c]);
        sums[at] += product;
        magnitudes[at] += std::abs(product);
      }
    }
    for (const int64_t rows : row_counts) {
      SCOPED_TRACE(testing::Message() << rows << " rows of " << k << " to " << n);
      std::vector<float> before(static_cast<size_t>(rows * n));
      for (size_t i = 0; i < before.size(); ++i) before[i] = static_cast<float>(i % 17) - 8.0f;
      ExpectSums(Multiply(x, *w, weight, 0, rows), {}, sums, magnitudes, k);
      ExpectSums(Multiply(x, *w, weight, 0, rows, before), before, sums, magnitudes, k);
    }
  }

 private:
  static void ExpectSums(const std::vector<float>& y, const std::vector<float>& before,
                         const std::vector<double>& sums, const std::vector<double>& magnitudes,
                         int64_t k) {
    double errors = 0.0;
    double sizes = 0.0;
    for (size_t i = 0; i < y.size(); ++i) {
      const double was = before.empty() ? 0.0 : static_cast<double>(before[i]);
      const double expected = sums[i] + was;
      const double error = std::abs(y[i] - expected);
      ASSERT_LE(error, static_cast<double>(k + 8) * 0x1p-22 * (magnitudes[i] + std::abs(was))) << i;
      errors += error * error;
      sizes += expected * expected;
    }
    EXPECT_LE(std::sqrt(errors / sizes), kAllTogether);
  }
};

class DeviceQ8SmallTest : public DeviceQ8TestBase {};
class DeviceQ8Test : public DeviceQ8TestBase {};
constexpr auto kNameOf = [](const auto& param) { return std::string(NameOf(param.param)); };
const auto kTypes = testing::Values(DType::kBF16, DType::kF16, DType::kF32);
INSTANTIATE_TEST_SUITE_P(Types, DeviceQ8SmallTest, kTypes, kNameOf);
INSTANTIATE_TEST_SUITE_P(Types, DeviceQ8Test, kTypes, kNameOf);

TEST_P(DeviceQ8SmallTest, SumsAreThoseOfDouble) {
  Check(16, 32, {1, 8});
  Check(17, 40, {1, 2, 9, 16, 17, 33, 64});
  Check(100, 264, {1, 7, 8, 31, 64});
  Check(40, 1000, {3, 20});
}

TEST_P(DeviceQ8Test, SumsAreThoseOfDouble) {
  Check(4608, 3584, {1, 8});
  Check(1000, 3584, {1, 9, 32, 64});
  Check(256, 18944, {1, 16, 64});
}

TEST_P(DeviceQ8Test, ARowsBitsDependOnTheRowAlone) {
  for (const auto& [n, k] :
       std::vector<std::pair<int64_t, int64_t>>{{4608, 3584}, {3584, 4096}, {1003, 264}}) {
    SCOPED_TRACE(testing::Message() << n << " x " << k);
    const Weight weight = RandomWeight(n, k, 3);
    const Rows x = RandomRows(GetParam(), 64 * k, 4);
    const auto w = Upload(weight.laid_out.data(), weight.laid_out.size());
    const auto all = Multiply(x, *w, weight, 0, 64);
    for (const auto& [first, rows] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 1}, {63, 1}, {5, 7}, {9, 8}, {40, 16}, {11, 17}, {0, 32}, {3, 33}, {0, 64}}) {
      SCOPED_TRACE(testing::Message() << rows << " rows from row " << first);
      for (const bool captured : {false, true}) {
        const auto some = Multiply(x, *w, weight, first, rows, {}, captured);
        EXPECT_EQ(std::memcmp(some.data(), all.data() + first * n, some.size() * sizeof(float)), 0);
      }
    }
    for (int i = 0; i < 50; ++i) {
      const auto again = Multiply(x, *w, weight, 0, 7);
      ASSERT_EQ(std::memcmp(again.data(), all.data(), again.size() * sizeof(float)), 0) << i;
    }
  }
}

TEST_P(DeviceQ8SmallTest, ExpandedRowsAreRoundedWeights) {
  for (const auto& [n, k] :
       std::vector<std::pair<int64_t, int64_t>>{{16, 32}, {17, 40}, {100, 264}, {300, 1024}}) {
    const Weight weight = RandomWeight(n, k, 5);
    const auto w = Upload(weight.laid_out.data(), weight.laid_out.size());
    const size_t bytes = weight.values.size() * SizeOf(GetParam());
    // Something behind the end, which must stay.
    const auto out = Upload(std::vector<uint8_t>(bytes + 64, 0xee).data(), bytes + 64);
    ExpandQ8OnDevice(w->data(), n, k, GetParam(), out->data(), stream());
    std::vector<std::byte> found(bytes + 64);
    CopyToHost(stream(), found.data(), out->data(), found.size());
    stream().Synchronize();
    internal::VisitFloatType(GetParam(), [&]<class T>(T) {
      for (size_t i = 0; i < weight.values.size(); ++i) {
        const T expected = FromFloat<T>(weight.values[i]);
        T value;
        std::memcpy(&value, found.data() + i * sizeof(T), sizeof(T));
        ASSERT_EQ(ToFloat(value), ToFloat(expected)) << n << " x " << k << ", value " << i;
      }
    });
    for (size_t i = bytes; i < found.size(); ++i) ASSERT_EQ(found[i], std::byte{0xee});
  }
}

}  // namespace
}  // namespace pmkvq
