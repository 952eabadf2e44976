// A checkpoint with float8 weights computes what the same weights in BF16 compute.
#include <gtest/gtest.h>

#include <string>

#include "pmkvq/base/error.h"
#include "pmkvq/model/model.h"
#include "support/dense_kv_store.h"
#include "support/expect_error.h"
#include "support/fp8_model.h"

namespace pmkvq {
namespace {

using testing_support::DenseKvStore;
using testing_support::ExpectError;
using testing_support::Fp8Model;
using testing_support::RandomTokens;
using testing_support::TempFolder;
using testing_support::TinyModels;
using testing_support::WriteTinyModel;

constexpr char kConfig[] = R"({"quant_method": "fp8", "weight_block_size": [24, 24]})";

std::vector<float> LogitsOf(const Model& model) {
  DenseKvStore store(model.kv_geometry());
  const std::vector<int32_t> tokens = RandomTokens(model.config().vocab_size, 20, 3);
  const ForwardChunk chunk{store.Open().value(), tokens, 0, ForwardChunk::Logits::kAll};
  ForwardWorkspace workspace;
  ThrowIfFailed(model.Forward({&chunk, 1}, store, workspace, 1));
  return {workspace.logits.begin(), workspace.logits.end()};
}

TEST(ModelFp8, ComputesWhatTheWeightsStandFor) {
  // DeepSeek-V3 is published so, the matrices of latent attention among them.
  for (const char* name : {"llama_f32", "deepseek3_bf16"}) {
    SCOPED_TRACE(name);
    const Fp8Model made(/*by_row=*/false, TinyModels().at(name));
    EXPECT_EQ(made.fp8.contains("model.layers.0.self_attn.kv_a_proj_with_mqa.weight_scale_inv"),
              made.tiny.is_mla());
    const TempFolder fp8_folder;
    const TempFolder plain_folder;
    made.WriteFp8(fp8_folder, kConfig);
    WriteTinyModel(made.tiny, made.plain, plain_folder);
    for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8}) {
      const auto fp8 = Model::Load(fp8_folder.path(), {mode, 2});
      const auto plain = Model::Load(plain_folder.path(), {mode, 1});
      EXPECT_EQ(LogitsOf(*fp8), LogitsOf(*plain)) << NameOf(mode);
      EXPECT_EQ(fp8->weight_bytes(), plain->weight_bytes());
    }
  }
}

// A rank expands what it has of a weight (model/ranks/shard.h).
TEST(ModelFp8, SlicesComputeWhatTheWeightsStandFor) {
  const Fp8Model made(/*by_row=*/false, TinyModels().at("llama_f32"));
  const TempFolder fp8_folder;
  const TempFolder plain_folder;
  made.WriteFp8(fp8_folder, kConfig);
  WriteTinyModel(made.tiny, made.plain, plain_folder);
  for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8}) {
    const auto fp8 = Model::Load(fp8_folder.path(), {.weights = mode, .tp_slices = 2});
    const auto plain = Model::Load(plain_folder.path(), {.weights = mode, .tp_slices = 2});
    EXPECT_EQ(LogitsOf(*fp8), LogitsOf(*plain)) << NameOf(mode);
    EXPECT_EQ(fp8->weight_bytes(), plain->weight_bytes());
  }
}

TEST(ModelFp8, CodesAreAPartOfTheIdentity) {
  Fp8Model made;
  const TempFolder folder;
  made.WriteFp8(folder, kConfig);
  const std::string identity = Checkpoint::Open(folder.path()).Identity();
  made.fp8.at("model.layers.1.mlp.up_proj.weight").As<uint8_t>()[3] ^= 1;
  made.WriteFp8(folder, kConfig);
  EXPECT_NE(Checkpoint::Open(folder.path()).Identity(), identity);
}

TEST(ModelFp8, IsRefusedWhereTheConfigDoesNotSaySo) {
  Fp8Model made;
  const TempFolder folder;
  made.WriteFp8(folder, "null");
  ExpectError<Unsupported>([&] { Model::Load(folder.path()); },
                           {"model.safetensors", "found F8_E4M3"});
  made.WriteFp8(folder, R"({"quant_method": "fp8", "weight_block_size": [128, 128]})");
  ExpectError<InvalidInput>([&] { Model::Load(folder.path()); },
                            {"model.safetensors", "weight_scale_inv", "blocks of 128 x 128"});
  made.fp8.erase("model.layers.0.self_attn.k_proj.weight_scale_inv");
  made.WriteFp8(folder, kConfig);
  ExpectError<InvalidInput>([&] { Model::Load(folder.path()); },
                            {"k_proj.weight", "without scales"});
  made.fp8.emplace("model.layers.0.self_attn.k_proj.weight_scale_inv", Tensor(DType::kF32, {1}));
  made.WriteFp8(folder, kConfig);
  ExpectError<InvalidInput>([&] { Model::Load(folder.path()); }, {"scale 0: found 0"});
}

TEST(ModelFp8, OtherMethodsAreRefusedByName) {
  const Fp8Model made;
  const TempFolder folder;
  for (const char* method : {"gptq", "awq", "bitsandbytes"}) {
    made.WriteFp8(folder, std::string(R"({"quant_method": ")") + method + "\"}");
    ExpectError<Unsupported>(
        [&] { Model::Load(folder.path()); },
        {"config.json", "quant_method: found \"" + std::string(method), "--weights q8"});
  }
}

}  // namespace
}  // namespace pmkvq
