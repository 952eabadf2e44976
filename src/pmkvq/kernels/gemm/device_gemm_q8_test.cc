#include "pmkvq/kernels/gemm/device_gemm_q8.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/gemm/weight_q8.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

Q8Weight RandomWeight(int64_t rows, int64_t cols) {
  std::mt19937 random(static_cast<uint32_t>(rows * 1000 + cols));
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(rows * cols));
  for (float& value : values) value = normal(random);
  Q8Weight weight;
  EXPECT_TRUE(QuantizeWeight(
      {reinterpret_cast<const std::byte*>(values.data()), WeightFormat::kF32, rows, cols}, 1,
      weight));
  return weight;
}

// Each weight is found at its place, and what fills up is zero.
void ExpectLaidOut(const WeightView& weight) {
  const int64_t rows = (weight.rows + 15) / 16 * 16;
  const int64_t cols = (weight.cols + 31) / 32 * 32;
  ASSERT_EQ(DeviceQ8Bytes(weight.rows, weight.cols),
            static_cast<size_t>(rows * cols / kQ8Group * kQ8GroupBytes));
  std::vector<std::byte> out(DeviceQ8Bytes(weight.rows, weight.cols), std::byte{0xee});
  LayOutQ8(weight, out.data(), 2);
  std::vector<float> expected(static_cast<size_t>(weight.cols));
  for (int64_t row = 0; row < rows; ++row) {
    if (row < weight.rows) ExpandRow(weight, row, expected.data());
    for (int64_t col = 0; col < cols; ++col) {
      const bool is_weight = row < weight.rows && col < weight.cols;
      ASSERT_EQ(internal::DeviceQ8At(out.data(), weight.cols, row, col),
                is_weight ? expected[static_cast<size_t>(col)] : 0.0f)
          << "row " << row << ", column " << col;
    }
  }
}

TEST(DeviceQ8Test, EveryWeightIsAtItsPlace) {
  for (const auto& [rows, cols] : std::initializer_list<std::pair<int64_t, int64_t>>{
           {1, 1}, {16, 32}, {17, 33}, {40, 64}, {130, 200}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << cols);
    ExpectLaidOut(RandomWeight(rows, cols).view());
  }
}

// Rows of a head in pairs are put in order.
TEST(DeviceQ8Test, PairedRowsComeInOrder) {
  const Q8Weight weight = RandomWeight(64, 96);
  WeightView view = weight.view();
  view.pair_rows = 16;
  ExpectLaidOut(view);
}

// The header's bytes, by hand: row 9, column 37 is in the second tile, row 1 of its second half,
// column 5 of lane 4: byte 544 + 256 + 8 * 4 + 5.
TEST(DeviceQ8Test, BytesAreThoseOfTheHeader) {
  std::vector<float> values(16 * 64, 0.0f);
  values[9 * 64 + 37] = -1.0f;
  values[9 * 64 + 38] = 0.5f;
  Q8Weight weight;
  ASSERT_TRUE(QuantizeWeight(
      {reinterpret_cast<const std::byte*>(values.data()), WeightFormat::kF32, 16, 64}, 1, weight));
  std::vector<std::byte> out(DeviceQ8Bytes(16, 64));
  LayOutQ8(weight.view(), out.data(), 1);
  ASSERT_EQ(out.size(), 2u * 544u);
  const std::byte* group = weight.data.data() + (9 * 2 + 1) * kQ8GroupBytes;
  const int code = std::abs(static_cast<int>(static_cast<int8_t>(group[5])));
  EXPECT_EQ(out[544 + 256 + 32 + 5], static_cast<std::byte>(0x80 + code));
  EXPECT_EQ(out[544 + 256 + 32 + 6], group[6]);
  EXPECT_EQ(out[544 + 512 + 4 + 2], group[32]);
  EXPECT_EQ(out[544 + 512 + 4 + 3], group[33]);
}

}  // namespace
}  // namespace pmkvq
