#include "pmkvq/io/checkpoint.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/safetensors.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

constexpr const char* kConfig =
    R"({"architectures":["LlamaForCausalLM"],"vocab_size":8,"hidden_size":16,"intermediate_size":16,
        "num_hidden_layers":1,"num_attention_heads":1,"max_position_embeddings":64{}})";

// A folder with a config and the given shards (file name -> names of its tensors, each [2, 3]).
class Folder : public TempFolder {
 public:
  explicit Folder(const std::string& more_config = "") {
    std::string config = kConfig;
    config.replace(config.rfind("{}"), 2, more_config);
    Write("config.json", config);
  }

  void WriteShard(const std::string& name, const std::vector<std::string>& tensors, float value = 1,
                  DType dtype = DType::kF32) const {
    Tensor tensor(dtype, {2, 3});
    if (dtype == DType::kF32) std::fill_n(tensor.As<float>(), 6, value);
    std::map<std::string, TensorView> views;
    for (const std::string& each : tensors) views.emplace(each, tensor.view());
    WriteSafetensors(File(name), views);
  }

  void WriteIndex(const std::string& weight_map) const {
    Write("model.safetensors.index.json", fmt::format(R"({{"weight_map":{}}})", weight_map));
  }

  Checkpoint Open() const { return Checkpoint::Open(path()); }
};

TEST(Checkpoint, OpensTheShippedModel) {
  const std::string folder = PMKVQ_SOURCE_DIR "/models/longcot-10m";
  const Checkpoint checkpoint = Checkpoint::Open(folder);
  EXPECT_EQ(checkpoint.folder(), folder);
  EXPECT_EQ(checkpoint.weights().num_files(), 2);
  const ModelConfig& config = checkpoint.config();
  EXPECT_EQ(config.model_type, "qwen2");
  EXPECT_EQ(config.num_layers, 12);
  EXPECT_EQ(config.head_dim, 128);
  EXPECT_EQ(config.kv_dim(), 128);
  EXPECT_EQ(config.q_dim(), 256);
  EXPECT_EQ(config.vocab_size, 576);
  EXPECT_EQ(config.max_position_embeddings, 8192);
  EXPECT_TRUE(config.tie_word_embeddings && config.qkv_bias);
  EXPECT_EQ(config.bos_token_id, 542);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{544, 542}));
  EXPECT_EQ(checkpoint.weights().Get("embedding", {576, 256}).format, WeightFormat::kBF16);
  EXPECT_NE(checkpoint.weights().Find("blocks.11.attn.q.bias"), nullptr);
  EXPECT_EQ(checkpoint.weights().Find("output_head"), nullptr);
  // Plans of this model carry this number: it must not change by itself.
  EXPECT_EQ(checkpoint.Identity(), "c8907b1f54657f313a66a60b983195a9");
}

TEST(Checkpoint, MissingPieces) {
  ExpectError<IoError>([] { Checkpoint::Open("/no/such/folder"); },
                       {"[/no/such/folder] model: found no such folder or file"});
  const Folder folder;
  ExpectError<InvalidInput>([&] { folder.Open(); },
                            {folder.path(), "weights: found none, expected model.safetensors or"});
  folder.WriteIndex(R"({"a":"model-1.safetensors"})");
  ExpectError<InvalidInput>(
      [&] { folder.Open(); },
      {"model.safetensors.index.json] weight_map: shard 'model-1.safetensors' is missing"});
  folder.WriteShard("model-1.safetensors", {"b"});
  ExpectError<InvalidInput>([&] { folder.Open(); },
                            {"model-1.safetensors] tensor 'a': found nothing"});
  std::filesystem::remove(folder.File("config.json"));
  ExpectError<IoError>([&] { folder.Open(); }, {"config.json", "cannot open"});
}

TEST(Checkpoint, SenselessIndex) {
  const Folder folder;
  folder.WriteIndex("{}");
  ExpectError<InvalidInput>([&] { folder.Open(); },
                            {"weight_map: found {}, expected at least one"});
  for (const char* shard : {"\"../x.safetensors\"", "\"/etc/passwd\"", "\"\"", "\".hidden\""}) {
    folder.WriteIndex(fmt::format(R"({{"a":{}}})", shard));
    ExpectError<InvalidInput>([&] { folder.Open(); },
                              {fmt::format("weight_map.a: found {}, expected the name", shard)});
  }
  folder.WriteIndex(R"({"a":7})");
  ExpectError<InvalidInput>([&] { folder.Open(); }, {"weight_map.a: found 7, expected a string"});
  folder.Write("model.safetensors.index.json", "{}");
  ExpectError<InvalidInput>([&] { folder.Open(); }, {"weight_map: found nothing"});
}

TEST(Checkpoint, TheSameTensorTwice) {
  const Folder folder;
  folder.WriteShard("1.safetensors", {"a", "b"});
  folder.WriteShard("2.safetensors", {"b", "c"});
  folder.WriteIndex(R"({"a":"1.safetensors","c":"2.safetensors"})");
  ExpectError<InvalidInput>([&] { folder.Open(); },
                            {"2.safetensors] tensor 'b': found here and in", "1.safetensors"});
}

TEST(Checkpoint, IdentityDependsOnWeightsAndArchitectureOnly) {
  const Folder single;
  single.WriteShard("model.safetensors", {"a", "b"});
  const std::string identity = single.Open().Identity();
  EXPECT_EQ(identity.size(), 32u);

  // Neither the folder nor the sharding nor the special tokens count.
  const Folder sharded(",\"eos_token_id\":3");
  sharded.WriteShard("2.safetensors", {"a"});
  sharded.WriteShard("1.safetensors", {"b"});
  sharded.WriteIndex(R"({"a":"2.safetensors","b":"1.safetensors"})");
  EXPECT_EQ(sharded.Open().Identity(), identity);

  const Folder other_value;
  other_value.WriteShard("model.safetensors", {"a", "b"}, 2);
  EXPECT_NE(other_value.Open().Identity(), identity);
  const Folder other_name;
  other_name.WriteShard("model.safetensors", {"a", "c"});
  EXPECT_NE(other_name.Open().Identity(), identity);
  const Folder other_rope(",\"rope_theta\":10001");
  other_rope.WriteShard("model.safetensors", {"a", "b"});
  EXPECT_NE(other_rope.Open().Identity(), identity);
  // A window that changes nothing does not change it.
  const Folder unused_window(",\"sliding_window\":4096");
  unused_window.WriteShard("model.safetensors", {"a", "b"});
  EXPECT_EQ(unused_window.Open().Identity(), identity);
}

TEST(Checkpoint, IdentityCoversSlidingWindows) {
  ModelConfig config;
  const auto identity = [&] {
    std::map<std::string, Tensor> tensors;
    tensors.emplace("a", Tensor(DType::kF32, {4}));
    return Checkpoint::FromMemory("m", config, std::move(tensors)).Identity();
  };
  const std::string none = identity();
  config.sliding_windows = {0, 512};
  const std::string one = identity();
  config.sliding_windows = {512, 512};
  EXPECT_NE(one, none);
  EXPECT_NE(identity(), one);
}

TEST(Checkpoint, IdentityReadsTheFirst64KiBOfATensor) {
  const auto identity = [](int64_t changed) {
    const Folder folder;
    Tensor tensor(DType::kU8, {100'000});
    if (changed >= 0) tensor.As<uint8_t>()[changed] = 1;
    WriteSafetensors(folder.File("model.safetensors"), {{"a", tensor.view()}});
    return folder.Open().Identity();
  };
  EXPECT_NE(identity(65535), identity(-1));
  EXPECT_EQ(identity(65536), identity(-1));
}

TEST(HashFile, HashesEveryByte) {
  const TempFolder folder;
  EXPECT_EQ(HashFile(folder.Write("a", "The quick brown fox jumps over the lazy dog")),
            "ddd650205ca3e7fa24a1cc2e3a8a7651");
  EXPECT_EQ(HashFile(folder.Write("b", "")), "99aa06d3014798d86001c324468d497f");
  ExpectError<IoError>([&] { HashFile(folder.File("c")); }, {"cannot open"});
}

}  // namespace
}  // namespace pmkvq
