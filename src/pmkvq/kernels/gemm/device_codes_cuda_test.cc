// Products with quantised weights on CUDA against sums in double of the operands as stored. Sums
// are float, by tensor cores: device_gemm_cuda_test.cc has the bound for each sum.
#include "pmkvq/kernels/gemm/device_codes.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/captured_work.h"
#include "support/code_weights.h"
#include "support/gpu_test.h"

namespace pmkvq {
namespace {

using testing_support::kCodeFormats;
using testing_support::RandomCodeWeight;

// |y - expected| / |expected| of a whole result. One part of F16 in place of two would give 2e-4.
constexpr double kAllTogether = 1e-5;

// A weight on both sides.
struct Weight {
  WeightFormat format = WeightFormat::kQ8;
  int64_t n = 0;
  int64_t k = 0;
  std::vector<std::byte> laid_out;
  std::vector<float> values;      // [n, k]
  std::vector<float> magnitudes;  // Of scale * code and of the minimum, added.
};

Weight RandomWeight(WeightFormat format, int64_t n, int64_t k, uint64_t seed) {
  const testing_support::CodeWeight from = RandomCodeWeight(format, n, k, seed);
  Weight weight{format, n, k, std::vector<std::byte>(DeviceCodesBytes(format, n, k)), {}, {}};
  LayOutCodes(from.view(), weight.laid_out.data(), 2);
  weight.values.resize(static_cast<size_t>(n * k));
  for (int64_t i = 0; i < n; ++i) {
    ExpandRow(from.view(), i, &weight.values[static_cast<size_t>(i * k)]);
  }
  // RandomBlocks has weights and minima up to 0.25.
  constexpr float kMost = 0.5f;
  for (const float value : weight.values) weight.magnitudes.push_back(std::abs(value) + kMost);
  return weight;
}

// Two parts of F16, [2 * count, k], and their sums.
struct Rows {
  int64_t count = 0;
  int64_t k = 0;
  std::vector<F16> parts;
  std::vector<float> values;
};

Rows RandomRows(int64_t count, int64_t k, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  Rows rows{count, k, std::vector<F16>(static_cast<size_t>(2 * count * k)), {}};
  const auto half = static_cast<size_t>(count * k);
  for (size_t i = 0; i < half; ++i) {
    const float value = normal(random);
    rows.parts[i] = ToF16(value);
    rows.parts[half + i] = ToF16(value - ToFloat(rows.parts[i]));
    rows.values.push_back(ToFloat(rows.parts[i]) + ToFloat(rows.parts[half + i]));
  }
  return rows;
}

class DeviceCodesTestBase : public GpuTest, public testing::WithParamInterface<WeightFormat> {
 protected:
  std::unique_ptr<Buffer> Upload(const void* data, size_t num_bytes) {
    auto buffer = std::make_unique<Buffer>(kDevice, num_bytes);
    CopyToDevice(stream(), buffer->data(), data, num_bytes);
    stream().Synchronize();
    return buffer;
  }

  // Rows [first, first + count) of x. Rows of y lie `stride` apart, and what lies between them must
  // stay.
  std::vector<float> Multiply(const Rows& x, const Buffer& w, const Weight& weight, int64_t first,
                              int64_t count, bool captured = false, int64_t gap = 0) {
    const auto rows = Upload(x.parts.data(), x.parts.size() * sizeof(F16));
    const int64_t stride = weight.n + gap;
    std::vector<float> y(static_cast<size_t>(count * stride), -77.0f);
    const auto out = Upload(y.data(), y.size() * sizeof(float));
    const DeviceCodesProduct product{.x = {rows->data() + first * x.k * 2, DType::kF16, 2, x.count},
                                     .w = {w.data(), weight.format, weight.n, weight.k},
                                     .y = reinterpret_cast<float*>(out->data()),
                                     .y_stride = stride,
                                     .rows = count};
    if (captured) {
      CapturedWork work(stream(), [&] { MultiplyCodes(product, stream()); });
      work.Launch(stream());
      stream().Synchronize();
    } else {
      MultiplyCodes(product, stream());
    }
    CopyToHost(stream(), y.data(), out->data(), y.size() * sizeof(float));
    stream().Synchronize();
    std::vector<float> packed;
    for (int64_t row = 0; row < count; ++row) {
      const auto begin = y.begin() + row * stride;
      packed.insert(packed.end(), begin, begin + weight.n);
      for (int64_t i = weight.n; i < stride; ++i) EXPECT_EQ(begin[i], -77.0f);
    }
    return packed;
  }

  void Check(int64_t n, int64_t k, const std::vector<int64_t>& row_counts) {
    const Weight weight = RandomWeight(GetParam(), n, k, 1);
    const int64_t most = *std::max_element(row_counts.begin(), row_counts.end());
    const Rows x = RandomRows(most, k, 2);
    const auto w = Upload(weight.laid_out.data(), weight.laid_out.size());
    std::vector<double> sums(static_cast<size_t>(most * n));
    std::vector<double> magnitudes(sums.size());
    for (int64_t i = 0; i < most * n; ++i) {
      const auto row = static_cast<size_t>(i / n * k);
      const auto output = static_cast<size_t>(i % n * k);
      const auto at = static_cast<size_t>(i);
      for (size_t c = 0; c < static_cast<size_t>(k); ++c) {
        const auto value = static_cast<double>(x.values[row + c]);
        sums[at] += value * static_cast<double>(weight.values[output + c]);
        magnitudes[at] += std::abs(value) * static_cast<double>(weight.magnitudes[output + c]);
      }
    }
    for (const int64_t rows : row_counts) {
      SCOPED_TRACE(testing::Message() << rows << " rows of " << k << " to " << n);
      const std::vector<float> y = Multiply(x, *w, weight, 0, rows, false, rows % 3);
      double errors = 0.0;
      double sizes = 0.0;
      for (size_t i = 0; i < y.size(); ++i) {
        const double error = std::abs(static_cast<double>(y[i]) - sums[i]);
        ASSERT_LE(error, static_cast<double>(k + 8) * 0x1p-22 * magnitudes[i]) << i;
        errors += error * error;
        sizes += sums[i] * sums[i];
      }
      EXPECT_LE(std::sqrt(errors / sizes), kAllTogether);
    }
  }
};

class DeviceCodesSmallTest : public DeviceCodesTestBase {};
class DeviceCodesTest : public DeviceCodesTestBase {};
constexpr auto kNameOf = [](const auto& param) { return std::string(NameOf(param.param)); };
const auto kFormats = testing::ValuesIn(kCodeFormats);
INSTANTIATE_TEST_SUITE_P(Formats, DeviceCodesSmallTest, kFormats, kNameOf);
INSTANTIATE_TEST_SUITE_P(Formats, DeviceCodesTest, kFormats, kNameOf);

TEST_P(DeviceCodesSmallTest, SumsAreThoseOfDouble) {
  Check(16, 256, {1, 8});
  Check(17, 512, {1, 2, 4, 5, 9, 16, 17, 33, 64});
  Check(100, 1792, {1, 7, 8, 31, 64});
  if (LayoutOf(GetParam()).block_values == 32) Check(40, 864, {3, 20});
  if (GetParam() == WeightFormat::kQ8) Check(40, 1000, {3, 20});
}

TEST_P(DeviceCodesTest, SumsAreThoseOfDouble) {
  Check(1000, 3584, {1, 9, 32, 64});
  Check(256, 18944, {1, 16});
}

TEST_P(DeviceCodesTest, ARowsBitsDependOnTheRowAlone) {
  for (const auto& [n, k] : std::vector<std::pair<int64_t, int64_t>>{
           {4608, 3584}, {3584, 4096}, {1003, 256}, {17001, 256}}) {
    SCOPED_TRACE(testing::Message() << n << " x " << k);
    const Weight weight = RandomWeight(GetParam(), n, k, 3);
    const Rows x = RandomRows(64, k, 4);
    const auto w = Upload(weight.laid_out.data(), weight.laid_out.size());
    const auto all = Multiply(x, *w, weight, 0, 64);
    for (const auto& [first, rows] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 1}, {63, 1}, {5, 3}, {7, 4}, {5, 7}, {9, 8}, {40, 16}, {11, 17}, {3, 33}}) {
      SCOPED_TRACE(testing::Message() << rows << " rows from row " << first);
      for (const bool captured : {false, true}) {
        const auto some = Multiply(x, *w, weight, first, rows, captured);
        EXPECT_EQ(std::memcmp(some.data(), all.data() + first * n, some.size() * sizeof(float)), 0);
      }
    }
    for (int i = 0; i < 10; ++i) {
      const auto again = Multiply(x, *w, weight, 0, 7);
      ASSERT_EQ(std::memcmp(again.data(), all.data(), again.size() * sizeof(float)), 0) << i;
    }
  }
}

TEST_P(DeviceCodesSmallTest, ExpandedRowsAreRoundedWeights) {
  std::vector<std::pair<int64_t, int64_t>> sizes = {{16, 256}, {17, 512}, {300, 1024}};
  if (GetParam() == WeightFormat::kQ8) sizes.insert(sizes.end(), {{17, 40}, {100, 264}});
  for (const auto& [n, k] : sizes) {
    const Weight weight = RandomWeight(GetParam(), n, k, 5);
    const auto w = Upload(weight.laid_out.data(), weight.laid_out.size());
    for (const DType type : {DType::kBF16, DType::kF16, DType::kF32}) {
      const size_t bytes = weight.values.size() * SizeOf(type);
      // Something behind the end, which must stay.
      const auto out = Upload(std::vector<uint8_t>(bytes + 64, 0xee).data(), bytes + 64);
      ExpandCodes({w->data(), GetParam(), n, k}, type, out->data(), stream());
      std::vector<std::byte> found(bytes + 64);
      CopyToHost(stream(), found.data(), out->data(), found.size());
      stream().Synchronize();
      internal::VisitFloatType(type, [&]<class T>(T) {
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
}

}  // namespace
}  // namespace pmkvq
