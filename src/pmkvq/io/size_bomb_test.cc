// Every parser of io/ on files made to be expensive.
#include "support/size_bomb.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <limits>
#include <vector>

#include "pmkvq/io/checkpoint.h"
#include "pmkvq/io/dataset.h"
#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/io/model_config.h"
#include "pmkvq/io/safetensors.h"
#include "support/gguf_writer.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectBounded;
using testing_support::GgufWriter;
using testing_support::Members;
using testing_support::Repeat;
using testing_support::TempFolder;

constexpr size_t kMiB = size_t{1} << 20;

// JSON texts of about `bytes` that are mostly one kind of thing.
std::vector<std::pair<std::string, std::string>> Texts(size_t bytes) {
  return {{"numbers", "[" + Repeat("0", bytes) + "]"},
          {"arrays", "[" + Repeat("[]", bytes) + "]"},
          {"arrays of a number", "[" + Repeat("[0]", bytes) + "]"},
          {"objects", "[" + Repeat("{}", bytes) + "]"},
          {"objects with a member", "[" + Repeat(R"({"":0})", bytes) + "]"},
          {"empty strings", "[" + Repeat(R"("")", bytes) + "]"},
          {"members", "{" + Members("0", bytes) + "}"},
          {"members with arrays", "{" + Members("[0]", bytes) + "}"},
          {"one string", "[\"" + std::string(bytes, 'x') + "\"]"},
          {"one string of escapes", "[\"" + std::string(bytes / 2 * 2, '\\') + "\"]"},
          {"one key", "{\"" + std::string(bytes, 'x') + "\":1}"},
          {"a long number", "[1" + std::string(bytes, '0') + "]"},
          {"nesting", std::string(bytes, '[')},
          {"blanks", std::string(bytes, ' ')}};
}

TEST(SizeBombs, Json) {
  const TempFolder folder;
  for (const size_t bytes : {2 * kMiB, 12 * kMiB}) {
    for (const auto& [name, text] : Texts(bytes)) {
      const std::string path = folder.Write("a.json", text);
      ExpectBounded("json: " + name, text.size(), 0, [&] { JsonValue::ParseFile(path); });
      if (bytes > 2 * kMiB) continue;  // The tree is what may grow faster than the text.
      ExpectBounded("numbers of " + name, text.size(), 0,
                    [&] { JsonValue::ParseFile(path).AsDoubleArray(); });
      ExpectBounded("an error about " + name, text.size(), 0,
                    [&] { JsonValue::ParseFile(path).AsString(); });
      ExpectBounded("config: " + name, text.size(), 0,
                    [&] { ParseModelConfig(JsonValue::ParseFile(path)); });
    }
  }
}

TEST(SizeBombs, GenerationConfigAndRope) {
  const TempFolder folder;
  const std::string config = R"({"architectures":["LlamaForCausalLM"],"vocab_size":1000,
      "hidden_size":64,"intermediate_size":64,"num_hidden_layers":1,"num_attention_heads":8,
      "max_position_embeddings":64)";
  folder.Write("config.json", config + "}");
  const std::string generation = R"({"eos_token_id":[)" + Repeat("7", 8 * kMiB) + "]}";
  folder.Write("generation_config.json", generation);
  ExpectBounded("eos ids", generation.size(), 0, [&] { LoadModelConfig(folder.path()); });
  const std::string rope =
      config + R"(,"rope_parameters":{)" + Members(R"({"a":1})", 4 * kMiB) + "}}";
  ExpectBounded("rope", rope.size(), 0,
                [&] { ParseModelConfig(JsonValue::ParseFile(folder.Write("config.json", rope))); });
}

std::string Image(const std::string& header, size_t data_bytes = 0) {
  const uint64_t size = header.size();
  std::string image(sizeof(size), '\0');
  std::memcpy(image.data(), &size, sizeof(size));
  return image + header + std::string(data_bytes, '\0');
}

TEST(SizeBombs, SafetensorsHeader) {
  const TempFolder folder;
  const auto check = [&](const std::string& name, const std::string& header) {
    const std::string image = Image(header);
    const std::string path = folder.Write("m.safetensors", image);
    ExpectBounded("safetensors: " + name, image.size(), image.size(),
                  [&] { SafetensorsFile::Open(path); });
  };
  for (const auto& [name, text] : Texts(8 * kMiB)) check(name, text);
  for (const size_t bytes : {4 * kMiB, 7 * kMiB}) {
    const auto tensors = [&](const char* dtype, const char* shape) {
      return "{" +
             Members(
                 fmt::format(R"({{"dtype":"{}","shape":{},"data_offsets":[0,0]}})", dtype, shape),
                 bytes) +
             "}";
    };
    check("tensors", tensors("U8", "[0]"));
    check("tensors of rank 8", tensors("U8", "[0,0,0,0,0,0,0,0]"));
    check("foreign tensors", tensors("F4", "[0]"));
    check("metadata", R"({"__metadata__":{)" + Members(R"("")", bytes) + "}}");
    check("a long shape",
          R"({"a":{"dtype":"U8","shape":[)" + Repeat("0", bytes) + R"(],"data_offsets":[0,0]}})");
  }
}

TEST(SizeBombs, Index) {
  const TempFolder folder;
  folder.Write("config.json", R"({"architectures":["LlamaForCausalLM"],"vocab_size":1000,
      "hidden_size":64,"intermediate_size":64,"num_hidden_layers":1,"num_attention_heads":8,
      "max_position_embeddings":64})");
  folder.Write("x", Image("{}"));
  for (const size_t bytes : {2 * kMiB, 12 * kMiB}) {
    const std::string one = R"({"weight_map":{)" + Members(R"("x")", bytes) + "}}";
    folder.Write("model.safetensors.index.json", one);
    ExpectBounded("index: one shard", one.size(), 0, [&] { Checkpoint::Open(folder.path()); });
    std::string many = R"({"weight_map":{)";
    for (size_t i = 0; many.size() < bytes; ++i) {
      many += fmt::format("{}\"{}\":\"s{}\"", i == 0 ? "" : ",", i, i);
    }
    many += "}}";
    folder.Write("model.safetensors.index.json", many);
    ExpectBounded("index: many shards", many.size(), 0, [&] { Checkpoint::Open(folder.path()); });
  }
}

std::string Lines(const std::string& line, size_t bytes) {
  std::string text;
  while (text.size() < bytes) text += line + "\n";
  return text;
}

TEST(SizeBombs, DataSets) {
  const TempFolder folder;
  for (const size_t bytes : {4 * kMiB, 9 * kMiB}) {
    std::vector<std::pair<std::string, std::string>> files;
    if (bytes > 4 * kMiB) files = Texts(bytes);
    files.emplace_back("blank lines", std::string(bytes, '\n'));
    files.emplace_back("short texts", Lines(R"({"text":""})", bytes));
    files.emplace_back("short ids", Lines(R"({"input_ids":[0]})", bytes));
    files.emplace_back("one row of ids", R"({"input_ids":[)" + Repeat("0", bytes) + "]}");
    files.emplace_back("one text", R"({"text":")" + std::string(bytes, 'x') + "\"}");
    files.emplace_back("short problems", Lines(R"({"problem":"a","answer":""})", bytes));
    files.emplace_back("one problem",
                       R"({"problem":")" + std::string(bytes, 'x') + R"(","answer":"1"})");
    for (const auto& [name, text] : files) {
      const std::string path = folder.Write("a.jsonl", text);
      ExpectBounded("texts: " + name, text.size(), 0, [&] { LoadTextRows(path); });
      ExpectBounded("problems: " + name, text.size(), 0, [&] { LoadProblems(path); });
    }
    const std::string path = folder.Write("a.txt", std::string(bytes, 'x'));
    ExpectBounded("txt", bytes, 0, [&] { LoadTextRows(path); });
  }
}

TEST(Limits, CheckedArithmetic) {
  constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
  EXPECT_EQ(CheckedProduct("x", {3, 5, 7}), 105);
  EXPECT_EQ(CheckedProduct("x", {kMax, 1}), kMax);
  EXPECT_EQ(CheckedSum("x", {kMax - 1, 1}), kMax);
  EXPECT_THROW(CheckedProduct("x", {kMax / 2 + 1, 2}), InvalidInput);
  EXPECT_THROW(CheckedProduct("x", {int64_t{1} << 40, int64_t{1} << 40, 0}), InvalidInput);
  EXPECT_THROW(CheckedSum("x", {kMax, 1}), InvalidInput);
}

TEST(SizeBombs, Gguf) {
  const TempFolder folder;
  for (const size_t bytes : {3 * kMiB, 12 * kMiB}) {
    GgufWriter strings;
    strings.Texts("tokens", std::vector<std::string>(bytes / 8));
    std::string path = folder.Write("strings.gguf", strings.Bytes());
    ExpectBounded("gguf: strings", std::filesystem::file_size(path), 0,
                  [&] { GgufSet::Open(path); });
    GgufWriter tensors;
    for (size_t i = 0; i < std::min<size_t>(bytes / 64, limits::kGgufTensors); ++i) {
      tensors.Tensor(fmt::format("{}", i), {1}, GgufTensorType::kF32, std::string(4, '\0'));
    }
    path = folder.Write("tensors.gguf", tensors.Bytes());
    ExpectBounded("gguf: tensors", std::filesystem::file_size(path), 0,
                  [&] { GgufSet::Open(path); });
    GgufWriter pairs;
    for (size_t i = 0; i < std::min<size_t>(bytes / 20, limits::kMetadataEntries); ++i)
      pairs.Bool(fmt::format("{}", i), true);
    path = folder.Write("pairs.gguf", pairs.Bytes());
    ExpectBounded("gguf: pairs", std::filesystem::file_size(path), 0, [&] { GgufSet::Open(path); });
  }
}

}  // namespace
}  // namespace pmkvq
