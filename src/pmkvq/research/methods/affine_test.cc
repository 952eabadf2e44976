#include "pmkvq/research/methods/affine.h"

#include <gtest/gtest.h>

#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

TEST(Affine, EqualsTheCachesQuantiserAtItsWidths) {
  Random random(7);
  std::vector<float> x(32 * 20);
  for (float& value : x) value = static_cast<float>(8.0 * random.Uniform() - 3.0);
  for (const DType type : {DType::kF16, DType::kBF16, DType::kF32}) {
    for (const int bits : {8, 4, 2}) {
      std::vector<uint8_t> codes(x.size());
      std::vector<float> mins(20), ranges(20), expected(x.size());
      const GroupFormat format{32, bits, type};
      ref::QuantizeGroups(format, x.data(), 20, codes.data(), mins.data(), ranges.data());
      ref::DequantizeGroups(format, codes.data(), mins.data(), ranges.data(), 20, expected.data());
      std::vector<float> rows = x;
      DamageRow({bits, type}, 32, static_cast<int64_t>(x.size()), rows.data());
      EXPECT_EQ(rows, expected) << bits;

      // The same values as columns: group g at g, g + 20, g + 40, ...
      for (size_t g = 0; g < 20; ++g) {
        std::vector<float> column(32 * 20);
        for (size_t i = 0; i < 32; ++i) column[i * 20 + g] = x[g * 32 + i];
        DamageGroup({bits, type}, 32, 20, column.data() + g);
        for (size_t i = 0; i < 32; ++i) ASSERT_EQ(column[i * 20 + g], expected[g * 32 + i]);
      }
    }
  }
}

TEST(Affine, ThreeBitsByHand) {
  // Step 3.5 / 7 = 0.5; 0.25 and 0.75 lie between two codes and go to the even one.
  std::vector<float> x = {-1.0f, 2.5f, -0.75f, -0.25f, 0.1f, 1.2f, 2.4f, -0.8f};
  DamageRow({3, DType::kF16}, 8, 8, x.data());
  EXPECT_EQ(x, (std::vector<float>{-1.0f, 2.5f, -1.0f, 0.0f, 0.0f, 1.0f, 2.5f, -1.0f}));
}

TEST(Affine, ConstantGroupsKeepTheirValue) {
  for (const float value : {0.0f, -0.0f, 1.5f, -65504.0f}) {
    std::vector<float> x(8, value);
    DamageRow({2, DType::kF16}, 8, 8, x.data());
    EXPECT_EQ(x, std::vector<float>(8, value));
  }
}

TEST(Affine, BytesOfCodesAndMetadata) {
  EXPECT_EQ(AffineBytes({2, DType::kF16}, 256, 128), 2 * (32 + 4));
  EXPECT_EQ(AffineBytes({3, DType::kBF16}, 64, 32), 2 * (12 + 4));
  EXPECT_EQ(AffineBytes({3, DType::kF32}, 20, 10), 2 * (4 + 8)) << "30 bits take 4 bytes";
  EXPECT_EQ(AffineBytes({8, DType::kF16}, 0, 128), 0);
}

TEST(Affine, GroupHasToDivideTheHead) {
  CheckGroup("rtn", 32, 96);
  testing_support::ExpectError<InvalidInput>([] { CheckGroup("rtn:group=64", 64, 96); },
                                             {"--kv", "rtn:group=64", "head_dim 96"});
}

}  // namespace
}  // namespace pmkvq
