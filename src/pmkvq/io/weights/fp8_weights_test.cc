#include "pmkvq/io/weights/fp8_weights.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "pmkvq/base/error.h"
#include "pmkvq/io/json.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

constexpr char kName[] = "model.layers.0.self_attn.q_proj.weight";

// A weight and its scales as a source lists them. Their data must outlive it.
std::vector<StoredWeight> Tensors(const std::vector<uint8_t>& codes, const Shape& shape,
                                  const std::vector<float>& scales, const Shape& scale_shape,
                                  const std::string& suffix = "_scale_inv") {
  StoredWeight weight;
  weight.name = "blocks.0.attn.q";
  weight.stored_name = kName;
  weight.file = "w.safetensors";
  weight.type = "F8_E4M3";
  weight.shape = shape;
  weight.data = reinterpret_cast<const std::byte*>(codes.data());
  weight.num_bytes = codes.size();
  StoredWeight scale;
  scale.stored_name = kName + suffix;
  scale.file = "w.safetensors";
  scale.type = "F32";
  scale.format = WeightFormat::kF32;
  scale.shape = scale_shape;
  scale.data = reinterpret_cast<const std::byte*>(scales.data());
  scale.of_block = true;
  return {scale, weight};
}

// numpy's values, bit for bit: blocks that are not whole, rows, the whole tensor.
TEST(Fp8Weights, GoldenValues) {
  const JsonValue golden = JsonValue::ParseFile(PMKVQ_SOURCE_DIR "/tests/golden/fp8.json");
  const int64_t rows = golden.At("rows").AsInt();
  const int64_t cols = golden.At("cols").AsInt();
  const int64_t block = golden.At("block").AsInt();
  std::vector<uint8_t> codes;
  for (const int64_t code : golden.At("codes").AsIntArray()) {
    codes.push_back(static_cast<uint8_t>(code));
  }
  for (size_t i = 0; i < golden.At("cases").size(); ++i) {
    const JsonValue each = golden.At("cases").At(i);
    const std::string name = each.At("name").AsString();
    std::vector<float> scales;
    for (const double scale : golden.At("scales").At(name).AsDoubleArray()) {
      scales.push_back(static_cast<float>(scale));
    }
    const std::vector<int64_t> expected = each.At("values").AsIntArray();
    for (const char* suffix : {"_scale_inv", "_scale"}) {
      std::vector<StoredWeight> tensors =
          Tensors(codes, {rows, cols}, scales, each.At("scale_shape").AsIntArray(), suffix);
      AttachFp8Scales({block, block}, tensors);
      EXPECT_EQ(tensors[1].format, WeightFormat::kBF16);
      EXPECT_TRUE(tensors[1].of_block);
      EXPECT_FALSE(tensors[0].of_block);
      for (const int threads : {1, 3}) {
        std::vector<BF16> values(codes.size());
        ExpandFp8(tensors[1], threads, values.data());
        for (size_t j = 0; j < values.size(); ++j) {
          uint16_t bits = 0;
          std::memcpy(&bits, &values[j], sizeof(bits));
          ASSERT_EQ(bits, expected[j]) << name << " at " << j << ", code " << int{codes[j]};
        }
      }
    }
  }
}

TEST(Fp8Weights, CodesByHand) {
  // 1, -2, the smallest subnormal, the largest value, zero.
  const std::vector<uint8_t> codes = {0x38, 0xc0, 0x01, 0x7e, 0x80};
  const std::vector<float> scales = {0.5f};
  std::vector<StoredWeight> tensors = Tensors(codes, {1, 5}, scales, {});
  AttachFp8Scales({}, tensors);
  std::vector<BF16> values(5);
  ExpandFp8(tensors[1], 1, values.data());
  EXPECT_EQ(ToFloat(values[0]), 0.5f);
  EXPECT_EQ(ToFloat(values[1]), -1.0f);
  EXPECT_EQ(ToFloat(values[2]), 0x1p-10f);
  EXPECT_EQ(ToFloat(values[3]), 224.0f);
  EXPECT_EQ(ToFloat(values[4]), 0.0f);
}

TEST(Fp8Weights, WrongScalesAreNamed) {
  const std::vector<uint8_t> codes(6 * 4, 0x38);
  const auto refused = [&](std::vector<float> scales, const Shape& shape,
                           std::initializer_list<std::string> parts) {
    std::vector<StoredWeight> tensors = Tensors(codes, {6, 4}, scales, shape);
    ExpectError<InvalidInput>([&] { AttachFp8Scales({2, 2}, tensors); }, parts);
  };
  const std::string scale = "w.safetensors] tensor '" + std::string(kName) + "_scale_inv': ";
  refused({1, 1, 1, 1, 1}, {5},
          {scale + "found scales [5] for weights [6, 4]", "[1] or [6, 1]", "[3, 2] for blocks"});
  refused({1, 1, 1, 1, 1, 1}, {2, 3}, {"found scales [2, 3]"});
  refused({1, 1, 1, 0, 1, 1}, {3, 2}, {scale + "scale 3: found 0", "above 0"});
  refused({1, -1, 1, 1, 1, 1}, {6}, {"scale 1: found -1"});
  refused({NAN}, {1}, {"scale 0: found nan"});
  refused({INFINITY}, {1}, {"scale 0: found inf"});

  std::vector<StoredWeight> alone = {Tensors(codes, {6, 4}, {}, {1})[1]};
  ExpectError<InvalidInput>(
      [&] {
        AttachFp8Scales({2, 2}, alone);
      },
      {"tensor '" + std::string(kName) + "': found F8_E4M3 without scales",
       "q_proj.weight_scale_inv or "});
  const std::vector<float> one = {1.0f};
  std::vector<StoredWeight> integers = Tensors(codes, {6, 4}, one, {1});
  integers[0].format.reset();
  integers[0].type = "I32";
  ExpectError<InvalidInput>(
      [&] {
        AttachFp8Scales({2, 2}, integers);
      },
      {"found scales of type I32"});
}

TEST(Fp8Weights, NotANumberIsNamed) {
  std::vector<uint8_t> codes(6 * 4, 0x38);
  codes[9] = 0xff;
  const std::vector<float> one = {1.0f};
  std::vector<StoredWeight> tensors = Tensors(codes, {6, 4}, one, {1});
  AttachFp8Scales({}, tensors);
  std::vector<BF16> values(codes.size());
  ExpectError<InvalidInput>([&] { ExpandFp8(tensors[1], 1, values.data()); },
                            {"tensor '" + std::string(kName), "row 2, column 1: found NaN"});
}

}  // namespace
}  // namespace pmkvq
