#include "pmkvq/io/gguf/block_decode.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/io/safetensors.h"

namespace pmkvq {
namespace {

constexpr const char* kGolden = PMKVQ_SOURCE_DIR "/tests/golden/gguf/";

std::vector<float> Decode(GgufTensorType type, const std::byte* data, int64_t count) {
  std::vector<float> values(static_cast<size_t>(count));
  DecodeBlocks(type, data, count, values.data());
  return values;
}

TEST(BlockDecode, EqualsTheGoldenBlocks) {
  const GgufSet blocks = GgufSet::Open(std::string(kGolden) + "blocks.gguf");
  const SafetensorsFile values = SafetensorsFile::Open(std::string(kGolden) + "blocks.safetensors");
  ASSERT_EQ(blocks.tensors().size(), kNumGgufTensorTypes);
  for (const GgufTensor& tensor : blocks.tensors()) {
    SCOPED_TRACE(std::string(tensor.name));
    const TensorView* expected = values.Find(std::string(tensor.name));
    ASSERT_NE(expected, nullptr);
    const int64_t count = tensor.rows * tensor.cols;
    ASSERT_EQ(expected->shape, (Shape{tensor.rows, tensor.cols}));
    const std::vector<float> found = Decode(tensor.type, tensor.data, count);
    EXPECT_EQ(std::memcmp(found.data(), expected->data, expected->num_bytes()), 0);
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_EQ(std::bit_cast<uint32_t>(ref::DecodeBlockValue(tensor.type, tensor.data, i)),
                std::bit_cast<uint32_t>(expected->As<float>()[i]))
          << i;
    }
  }
}

// Any bytes are a block; scales may be infinite or NaN.
TEST(BlockDecode, EqualsTheOracleOnRandomBytes) {
  Random random(7);
  for (size_t t = 0; t < kNumGgufTensorTypes; ++t) {
    const auto type = static_cast<GgufTensorType>(t);
    const GgufTensorLayout& layout = LayoutOf(type);
    SCOPED_TRACE(std::string(layout.name));
    constexpr int64_t kBlocks = 301;
    std::vector<std::byte> data(static_cast<size_t>(kBlocks * layout.block_bytes));
    for (std::byte& byte : data) byte = static_cast<std::byte>(random.Uniform() * 256);
    const std::vector<float> found = Decode(type, data.data(), kBlocks * layout.block_values);
    for (int64_t i = 0; i < std::ssize(found); ++i) {
      const float value = found[static_cast<size_t>(i)];
      const float expected = ref::DecodeBlockValue(type, data.data(), i);
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(value)) << i;  // Of any sign and payload.
      } else {
        ASSERT_EQ(std::bit_cast<uint32_t>(value), std::bit_cast<uint32_t>(expected)) << i;
      }
    }
  }
}

// The worked example of docs/formats.md.
TEST(BlockDecode, DecodesABlockByHand) {
  std::vector<std::byte> block(18);
  block[1] = std::byte{0x38};  // d = 0.5.
  block[2] = std::byte{0x1f};  // Value 0 has code 15, value 16 code 1.
  const std::vector<float> values = Decode(GgufTensorType::kQ4_0, block.data(), 32);
  EXPECT_EQ(values[0], 3.5f);
  EXPECT_EQ(values[16], -3.5f);
  EXPECT_EQ(values[1], -4.0f);
  for (const int exponent : {0, 1, 2, 127, 255}) {
    std::vector<std::byte> mx(17, std::byte{0x21});  // 1 and 2.
    mx[0] = static_cast<std::byte>(exponent);
    const std::vector<float> small = Decode(GgufTensorType::kMXFP4, mx.data(), 32);
    EXPECT_EQ(small[0], std::ldexp(1.0f, exponent - 128)) << exponent;
    EXPECT_EQ(small[16], std::ldexp(2.0f, exponent - 128)) << exponent;
  }
}

}  // namespace
}  // namespace pmkvq
