#include "pmkvq/io/quantization_config.h"

#include <string>

namespace pmkvq {
namespace {

constexpr int64_t kMostBlock = 1 << 20;
constexpr char kInstead[] =
    "float 8 weights (quant_method fp8, fbgemm_fp8 or compressed-tensors); use the checkpoint that "
    "is not quantised, with --weights q8 for half of its memory";

// A pair of sizes in an array, or null for no blocks.
Fp8Format ParseBlocks(const JsonValue& sizes) {
  Fp8Format format;
  if (sizes.IsNull()) return format;
  if (!sizes.IsArray() || sizes.size() != 2) sizes.Fail("an array of rows and columns, or null");
  format.block_rows = sizes.At(0).AsInt(1, kMostBlock);
  format.block_cols = sizes.At(1).AsInt(1, kMostBlock);
  return format;
}

// Of one group of compressed-tensors.
Fp8Format ParseGroup(const JsonValue& group) {
  const JsonValue weights = group.Find("weights");
  if (!weights.IsObject()) weights.Fail("an object that describes the weights");
  const JsonValue type = weights.Find("type");
  if (type.AsString() != "float") type.Refuse(std::string("\"float\": ") + kInstead);
  const JsonValue bits = weights.Find("num_bits");
  if (bits.AsInt() != 8) bits.Refuse(std::string("8: ") + kInstead);
  const JsonValue strategy = weights.Find("strategy");
  const std::string name = strategy.AsString();
  if (name == "tensor" || name == "channel") return {};
  if (name != "block") strategy.Refuse("\"tensor\", \"channel\" or \"block\"");
  const Fp8Format format = ParseBlocks(weights.Find("block_structure"));
  if (format.block_rows == 0) weights.Find("block_structure").Fail("an array of rows and columns");
  return format;
}

Fp8Format ParseGroups(const JsonValue& quantization) {
  const JsonValue groups = quantization.Find("config_groups");
  if (!groups.IsObject() || groups.size() == 0) groups.Fail("an object with a group of weights");
  std::optional<Fp8Format> format;
  groups.ForEachMember([&](std::string_view, const JsonValue& group) {
    const Fp8Format of_group = ParseGroup(group);
    if (format &&
        (format->block_rows != of_group.block_rows || format->block_cols != of_group.block_cols)) {
      group.Refuse("blocks of one size in all groups");
    }
    format = of_group;
  });
  return *format;
}

}  // namespace

std::optional<WeightFormat> ParseBlockFormat(const JsonValue& config) {
  const JsonValue quantization = config.Find("quantization_config");
  if (!quantization.IsObject()) return std::nullopt;
  const JsonValue method = quantization.Find("quant_method");
  if (!method.IsString() || method.AsStringView() != kBlockMethod) return std::nullopt;
  const JsonValue format = quantization.Find("format");
  if (format.AsString() != NameOf(kStoredBlockFormat)) {
    format.Refuse(std::string("\"").append(NameOf(kStoredBlockFormat)).append("\""));
  }
  return kStoredBlockFormat;
}

std::optional<Fp8Format> ParseQuantizationConfig(const JsonValue& config) {
  const JsonValue compression = config.Find("compression_config");
  const JsonValue quantization = config.Find("quantization_config");
  const JsonValue& found = quantization.IsNull() ? compression : quantization;
  if (found.IsNull()) return std::nullopt;
  if (!found.IsObject()) found.Fail("an object or null");
  const JsonValue method = found.Find("quant_method");
  if (method.IsNull()) {  // As bitsandbytes wrote it first.
    found.Refuse("a quant_method of " + std::string(kInstead));
  }
  const std::string name = method.AsString();
  if (name == kBlockMethod) return std::nullopt;  // ParseBlockFormat
  if (name == "fp8") {
    const JsonValue format = found.Find("fmt");
    if (!format.IsNull() && format.AsString() != "e4m3") format.Refuse("\"e4m3\"");
    return ParseBlocks(found.Find("weight_block_size"));
  }
  if (name == "fbgemm_fp8") return Fp8Format{};
  if (name == "compressed-tensors") return ParseGroups(found);
  method.Refuse(kInstead);
}

}  // namespace pmkvq
