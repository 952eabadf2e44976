#include "pmkvq/kernels/gemm/device_codes_layout.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "pmkvq/kernels/gemm/code_tile.h"
#include "support/code_weights.h"

namespace pmkvq {
namespace {

using testing_support::CodeWeight;
using testing_support::kCodeFormats;
using testing_support::RandomCodeWeight;

// Each weight is found at its place, and what fills up is zero.
void ExpectLaidOut(const WeightView& weight) {
  const int64_t rows = (weight.rows + 15) / 16 * 16;
  const int64_t cols = (weight.cols + 127) / 128 * 128;
  const size_t num_bytes = DeviceCodesBytes(weight.format, weight.rows, weight.cols);
  ASSERT_EQ(num_bytes,
            static_cast<size_t>(rows * cols / 2048 *
                                code_tile::TileBytes(code_tile::FormatOf(weight.format))));
  // Something behind the end, which must stay.
  std::vector<std::byte> out(num_bytes + 16, std::byte{0xee});
  LayOutCodes(weight, out.data(), 2);
  for (size_t i = num_bytes; i < out.size(); ++i) ASSERT_EQ(out[i], std::byte{0xee});
  const DeviceCodes codes{out.data(), weight.format, weight.rows, weight.cols};
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t col = 0; col < cols; ++col) {
      const bool is_weight = row < weight.rows && col < weight.cols;
      ASSERT_EQ(internal::DeviceCodesAt(codes, row, col),
                is_weight ? static_cast<float>(ref::WeightAt(weight, row, col)) : 0.0f)
          << "row " << row << ", column " << col;
    }
  }
}

class DeviceCodesTest : public testing::TestWithParam<WeightFormat> {};
INSTANTIATE_TEST_SUITE_P(Formats, DeviceCodesTest, testing::ValuesIn(kCodeFormats),
                         [](const auto& param) { return std::string(NameOf(param.param)); });

TEST_P(DeviceCodesTest, EveryWeightIsAtItsPlace) {
  const int64_t block = LayoutOf(GetParam()).block_values;
  for (const auto& [rows, blocks] : std::initializer_list<std::pair<int64_t, int64_t>>{
           {1, 1}, {16, 4}, {17, 3}, {40, 2}, {130, 5}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << blocks * block);
    ExpectLaidOut(RandomCodeWeight(GetParam(), rows, blocks * block, 1).view());
  }
}

// Rows of a head in pairs are put in order.
TEST_P(DeviceCodesTest, PairedRowsComeInOrder) {
  const CodeWeight weight = RandomCodeWeight(GetParam(), 64, 256, 2);
  WeightView view = weight.view();
  view.pair_rows = 16;
  ExpectLaidOut(view);
}

// At most 1.06 times the bytes of the file.
TEST_P(DeviceCodesTest, TakesHardlyMoreThanTheFile) {
  const auto on_device = static_cast<double>(DeviceCodesBytes(GetParam(), 1024, 4096));
  EXPECT_LE(on_device, 1.06 * static_cast<double>(1024 * RowBytes(GetParam(), 4096)));
}

// Only Q8 has rows that end within a group.
TEST(DeviceCodesOfQ8Test, LastGroupsAreFilledUp) {
  for (const auto& [rows, cols] :
       std::initializer_list<std::pair<int64_t, int64_t>>{{1, 1}, {17, 33}, {130, 200}}) {
    SCOPED_TRACE(testing::Message() << rows << " x " << cols);
    ExpectLaidOut(RandomCodeWeight(WeightFormat::kQ8, rows, cols, 3).view());
  }
}

TEST(DeviceCodesOfOthersTest, HaveNone) {
  for (const WeightFormat format : {WeightFormat::kF32, WeightFormat::kBF16, WeightFormat::kQ2_K,
                                    WeightFormat::kQ3_K, WeightFormat::kMXFP4}) {
    EXPECT_FALSE(HasDeviceCodes(format)) << NameOf(format);
  }
}

// The header's bytes, by hand: row 9, column 37 is side 1, g 1, group 1, column 5 of it: lane
// 4 * 1 + 5 / 4 = 5, pair (5 % 4) / 2 = 0, odd 1.
TEST(DeviceCodesOfQ8Test, BytesAreThoseOfTheHeader) {
  std::string blocks(16 * 2 * 34, '\0');
  blocks[(9 * 2 + 1) * 34 + 5] = static_cast<char>(-3);
  blocks[(9 * 2 + 1) * 34 + 32] = 0x34;
  blocks[(9 * 2 + 1) * 34 + 33] = 0x12;
  std::vector<std::byte> out(DeviceCodesBytes(WeightFormat::kQ8, 16, 64));
  LayOutCodes({reinterpret_cast<const std::byte*>(blocks.data()), WeightFormat::kQ8, 16, 64},
              out.data(), 1);
  ASSERT_EQ(out.size(), 2176u);
  EXPECT_EQ(out[512 * 1 + 16 * 5 + 8 * 1 + 2 * 0 + 1], std::byte{128 - 3});
  // Scales of half 0, g 1, side 1, the second group.
  EXPECT_EQ(out[2048 + 16 * 1 + 8 * 0 + 4 * 1 + 2], std::byte{0x34});
  EXPECT_EQ(out[2048 + 16 * 1 + 8 * 0 + 4 * 1 + 3], std::byte{0x12});
}

// Q6_K, row 9, column 70: side 1, g 1, group 2, column 6: lane 5, pair 1, odd 0. Its 6 bits
// are bits 64 + 70 % 64 ... of ggml's order: r = 70 of the first half, so low nibble of byte
// 64 * 0 + 70 - 64 + 0, upper half; here code 45 = 13 + 16 * 2.
TEST(DeviceCodesOfQ6KTest, BytesAreThoseOfTheHeader) {
  std::string blocks(16 * 210, '\0');
  char* const block = &blocks[9 * 210];
  block[70 % 64] = static_cast<char>(13 << 4);  // r / 64 = 1: upper nibble.
  block[128 + 70 % 32] = 2 << 4;                // r / 32 = 2: bits 4 and 5.
  block[192 + 4] = -7;
  block[208] = 0x34;
  block[209] = 0x12;
  std::vector<std::byte> out(DeviceCodesBytes(WeightFormat::kQ6_K, 16, 256));
  LayOutCodes({reinterpret_cast<const std::byte*>(blocks.data()), WeightFormat::kQ6_K, 16, 256},
              out.data(), 1);
  ASSERT_EQ(out.size(), 2u * 1696u);
  const auto word = [&](size_t at) {
    uint32_t value;
    std::memcpy(&value, &out[at], sizeof(value));
    return value;
  };
  // From bit 4 side + 8 (pair % 2) on, in the word of pairs 0 and 1.
  EXPECT_EQ(word(4 * (128 * 1 + 4 * 5 + 2 * 0 + 0)), 13u << 12);
  // From bit 2 (pair % 2) + 4 side on.
  EXPECT_EQ(word(1024 + 4 * (4 * 5 + 2)), 2u << 6);
  const size_t scales = 1024 + 512 + 20 * 1;
  EXPECT_EQ(out[scales + 2], std::byte{0x34});
  EXPECT_EQ(out[scales + 3], std::byte{0x12});
  EXPECT_EQ(out[scales + 4 + 8 * 1 + 4 * 1 + 0], std::byte{128 - 7});
}

}  // namespace
}  // namespace pmkvq
