#include "pmkvq/tensor/weight_format.h"

#include <gtest/gtest.h>

#include "pmkvq/tensor/dtype.h"

namespace pmkvq {
namespace {

TEST(WeightFormat, BytesOfRowsByHand) {
  EXPECT_EQ(RowBytes(WeightFormat::kF32, 7), 28);
  EXPECT_EQ(RowBytes(WeightFormat::kBF16, 7), 14);
  EXPECT_EQ(RowBytes(WeightFormat::kQ8, 0), 0);
  EXPECT_EQ(RowBytes(WeightFormat::kQ8, 1), 34) << "the last block is filled up";
  EXPECT_EQ(RowBytes(WeightFormat::kQ8, 32), 34);
  EXPECT_EQ(RowBytes(WeightFormat::kQ8, 33), 68);
  EXPECT_EQ(BytesBefore(WeightFormat::kQ8, 64), 68);
  EXPECT_EQ(BytesBefore(WeightFormat::kF16, 64), 128);
}

TEST(WeightFormat, NamesLeadBack) {
  for (size_t i = 0; i < kNumWeightFormats; ++i) {
    const auto format = static_cast<WeightFormat>(i);
    EXPECT_EQ(WeightFormatNamed(NameOf(format)), format);
  }
  EXPECT_EQ(WeightFormatNamed("I32"), std::nullopt);
}

// Tensor files name element types; those of plain formats are the same number of bytes.
TEST(WeightFormat, PlainFormatsAreElementTypes) {
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    const std::optional<WeightFormat> format = WeightFormatNamed(NameOf(dtype));
    ASSERT_TRUE(format.has_value()) << NameOf(dtype);
    EXPECT_EQ(LayoutOf(*format).block_values, 1);
    EXPECT_EQ(LayoutOf(*format).block_bytes, static_cast<int64_t>(SizeOf(dtype)));
  }
}

TEST(WeightFormatDeath, RefusesWhatIsNotInTheList) {
  EXPECT_DEATH(LayoutOf(static_cast<WeightFormat>(kNumWeightFormats)), "unknown weight format");
}

}  // namespace
}  // namespace pmkvq
