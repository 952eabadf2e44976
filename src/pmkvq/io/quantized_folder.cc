#include "pmkvq/io/quantized_folder.h"

#include <fmt/format.h>

#include <filesystem>
#include <optional>
#include <system_error>
#include <vector>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/quantization_config.h"
#include "pmkvq/io/safetensors.h"

namespace pmkvq {
namespace {

constexpr char kConfigName[] = "config.json";
constexpr char kQuantization[] = "quantization_config";
constexpr char kTied[] = "tie_word_embeddings";
constexpr char kHead[] = "output_head";
constexpr const char* kCopied[] = {"tokenizer.json",
                                   "tokenizer.model",
                                   "tokenizer_config.json",
                                   "special_tokens_map.json",
                                   "added_tokens.json",
                                   "vocab.json",
                                   "merges.txt",
                                   "chat_template.jinja",
                                   "chat_template.json",
                                   "generation_config.json"};

std::string Quoted(const std::string& text) {
  JsonWriter json;
  json.String(text);
  return json.text();
}

std::string QuantizationText(const std::map<std::string, std::string>& made) {
  JsonWriter json;
  json.BeginObject();
  json.Key("quant_method").String(kBlockMethod);
  json.Key("format").String(NameOf(kStoredBlockFormat));
  for (const auto& [key, value] : made) json.Key(key).String(value);
  json.EndObject();
  return json.text();
}

// The members of the checkpoint's config in their order, the changed ones at the end.
std::string ConfigText(const JsonValue& config, bool unties,
                       const std::map<std::string, std::string>& made) {
  std::string text = "{\n";
  config.ForEachMember([&](std::string_view name, const JsonValue& value) {
    if (name == kQuantization || name == "compression_config" || (unties && name == kTied)) return;
    text += fmt::format("  {}: {},\n", Quoted(std::string(name)), value.Dump());
  });
  if (unties) text += fmt::format("  \"{}\": false,\n", kTied);
  text += fmt::format("  \"{}\": {}\n}}\n", kQuantization, QuantizationText(made));
  return text;
}

TensorView ViewOf(const StoredBlocks& blocks) {
  const WeightLayout& layout = LayoutOf(kStoredBlockFormat);
  PMKVQ_CHECK(blocks.cols % layout.block_values == 0);
  return {blocks.data,
          DType::kU8,
          {blocks.rows, blocks.cols / layout.block_values, layout.block_bytes}};
}

std::optional<DType> PlainTypeOf(const StoredWeight& weight) {
  if (weight.fp8 != nullptr) return std::nullopt;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
    if (weight.type == NameOf(dtype)) return dtype;
  }
  return std::nullopt;
}

}  // namespace

void CheckQuantizedFolder(const Checkpoint& checkpoint, const std::string& folder) {
  std::error_code error;
  if (!std::filesystem::is_directory(checkpoint.folder(), error) ||
      !FileExists(JoinPath(checkpoint.folder(), kConfigName))) {
    throw Unsupported(checkpoint.folder(),
                      "model: found no config.json, expected a Hugging Face folder; GGUF files "
                      "already hold quantised weights, or are quantised with llama.cpp's tools");
  }
  if (std::filesystem::exists(folder, error) &&
      !(std::filesystem::is_directory(folder, error) && std::filesystem::is_empty(folder, error))) {
    throw IoError(folder, "found files there, expected a folder that is new or empty");
  }
}

void WriteQuantizedFolder(const Checkpoint& checkpoint,
                          const std::map<std::string, StoredBlocks>& matrices,
                          const std::map<std::string, std::string>& made,
                          const std::string& folder) {
  CheckQuantizedFolder(checkpoint, folder);
  const JsonValue config = JsonValue::ParseFile(JoinPath(checkpoint.folder(), kConfigName));
  const WeightSource& source = checkpoint.weights();
  std::map<std::string, TensorView> tensors;
  for (const auto& [name, blocks] : matrices) tensors[source.StoredName(name)] = ViewOf(blocks);
  for (const StoredWeight& weight : source.tensors()) {
    if (weight.name.empty() || matrices.contains(weight.name)) continue;
    const std::optional<DType> dtype = PlainTypeOf(weight);
    if (!dtype.has_value()) {
      throw Unsupported(weight.file, fmt::format("tensor '{}': found {}, expected F32, F16 or BF16 "
                                                 "for a tensor that is not quantised",
                                                 weight.stored_name, weight.type));
    }
    tensors[source.StoredName(weight.name)] = {weight.data, *dtype, weight.shape};
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) throw IoError(folder, "cannot make the folder: " + error.message());
  for (const char* name : kCopied) {
    const std::string from = JoinPath(checkpoint.folder(), name);
    if (FileExists(from)) WriteFileAtomically(JoinPath(folder, name), ReadFile(from));
  }
  WriteSafetensors(JoinPath(folder, "model.safetensors"), tensors, {{"format", "pt"}});
  const bool adds_head = matrices.contains(kHead) && checkpoint.config().tie_word_embeddings;
  // Last: without it the folder is no model.
  WriteFileAtomically(JoinPath(folder, kConfigName), ConfigText(config, adds_head, made));
}

}  // namespace pmkvq
