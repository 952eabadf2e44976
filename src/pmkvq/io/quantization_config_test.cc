#include "pmkvq/io/quantization_config.h"

#include <gtest/gtest.h>

#include <string>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

std::optional<Fp8Format> Parse(const std::string& value,
                               const std::string& key = "quantization_config") {
  return ParseQuantizationConfig(
      JsonValue::Parse("{\"" + key + "\":" + value + "}", "config.json"));
}

TEST(QuantizationConfig, NoneIsNone) {
  EXPECT_FALSE(Parse("null").has_value());
  EXPECT_FALSE(Parse("{}", "other").has_value());
}

// As DeepSeek-V3, Qwen3-8B-FP8 and others publish it.
TEST(QuantizationConfig, BlocksOfFp8) {
  const auto format = Parse(
      R"({"activation_scheme":"dynamic","fmt":"e4m3","quant_method":"fp8",
          "weight_block_size":[128,64],"modules_to_not_convert":["lm_head"]})");
  ASSERT_TRUE(format.has_value());
  EXPECT_EQ(format->block_rows, 128);
  EXPECT_EQ(format->block_cols, 64);
  EXPECT_EQ(Parse(R"({"quant_method":"fp8","weight_block_size":null})")->block_rows, 0);
  EXPECT_EQ(Parse(R"({"quant_method":"fbgemm_fp8","activation_scale_ub":1200.0})")->block_rows, 0);
}

TEST(QuantizationConfig, BlocksOfPmkvq) {
  const auto format = [](const std::string& value) {
    return ParseBlockFormat(
        JsonValue::Parse("{\"quantization_config\":" + value + "}", "config.json"));
  };
  const std::string own = R"({"quant_method":"pmkvq","format":"Q4_1"})";
  EXPECT_EQ(format(own), WeightFormat::kQ4_1);
  EXPECT_FALSE(Parse(own).has_value());
  EXPECT_FALSE(format("null").has_value());
  EXPECT_FALSE(format(R"({"quant_method":"fp8"})").has_value());
  EXPECT_FALSE(format(R"({"load_in_4bit":true})").has_value());
  ExpectError<Unsupported>([&] { format(R"({"quant_method":"pmkvq","format":"Q4_0"})"); },
                           {"quantization_config.format: found \"Q4_0\"", "Q4_1"});
  ExpectError<InvalidInput>([&] { format(R"({"quant_method":"pmkvq"})"); },
                            {"quantization_config"});
}

TEST(QuantizationConfig, CompressedTensorsOfFloat8) {
  const auto group = [](const std::string& weights) {
    return R"({"quant_method":"compressed-tensors","format":"float-quantized","config_groups":
              {"group_0":{"targets":["Linear"],"weights":)" +
           weights + "}}}";
  };
  EXPECT_EQ(Parse(group(R"({"type":"float","num_bits":8,"strategy":"channel"})"))->block_rows, 0);
  EXPECT_EQ(
      Parse(group(R"({"type":"float","num_bits":8,"strategy":"tensor"})"), "compression_config")
          ->block_rows,
      0);
  EXPECT_EQ(Parse(group(R"({"type":"float","num_bits":8,"strategy":"block",
                            "block_structure":[128,128]})"))
                ->block_cols,
            128);
  const auto refused = [&](const std::string& weights, const std::string& part) {
    ExpectError<Unsupported>([&] { Parse(group(weights)); }, {"config.json", part});
  };
  refused(R"({"type":"int","num_bits":4,"strategy":"group"})", "weights.type: found \"int\"");
  refused(R"({"type":"float","num_bits":4,"strategy":"group"})", "weights.num_bits: found 4");
  refused(R"({"type":"float","num_bits":8,"strategy":"group"})", "weights.strategy: found \"group");
}

TEST(QuantizationConfig, OthersAreRefusedByNameWithWhatToUse) {
  for (const char* method : {"gptq", "awq", "bitsandbytes", "mxfp4", "hqq", "aqlm", "modelopt"}) {
    ExpectError<Unsupported>(
        [&] { Parse(std::string(R"({"quant_method":")") + method + R"(","bits":4})"); },
        {"config.json] quantization_config.quant_method: found \"" + std::string(method),
         "expected float 8", "--weights q8"});
  }
  ExpectError<Unsupported>([] { Parse(R"({"load_in_4bit":true})"); },
                           {"quantization_config: found {\"load_in_4bit\":true}", "quant_method"});
}

TEST(QuantizationConfig, MalformedFields) {
  for (const char* value :
       {"5", "[]", R"({"quant_method":5})", R"({"quant_method":"fp8","weight_block_size":128})",
        R"({"quant_method":"fp8","weight_block_size":[128]})",
        R"({"quant_method":"fp8","weight_block_size":[0,128]})",
        R"({"quant_method":"compressed-tensors"})",
        R"({"quant_method":"compressed-tensors","config_groups":{"a":{}}})"}) {
    ExpectError<InvalidInput>([&] { Parse(value); }, {"config.json] quantization_config"});
  }
  ExpectError<Unsupported>([] { Parse(R"({"quant_method":"fp8","fmt":"e5m2"})"); },
                           {"quantization_config.fmt: found \"e5m2\""});
}

}  // namespace
}  // namespace pmkvq
