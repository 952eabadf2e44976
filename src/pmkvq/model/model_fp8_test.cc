// A checkpoint with float8 weights computes what the same weights in BF16 compute.
#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "pmkvq/base/error.h"
#include "pmkvq/io/weights/fp8_weights.h"
#include "pmkvq/model/model.h"
#include "support/dense_kv_store.h"
#include "support/expect_error.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::DenseKvStore;
using testing_support::ExpectError;
using testing_support::MakeTinyWeights;
using testing_support::RandomTokens;
using testing_support::Slurp;
using testing_support::TempFolder;
using testing_support::TinyConfigJson;
using testing_support::TinyModel;
using testing_support::TinyWeights;
using testing_support::WriteTinyModel;

constexpr int64_t kBlock = 24;  // Divides no size of the model.

bool IsQuantized(const std::string& name) { return name.find("_proj.weight") != std::string::npos; }

// Codes and scales of every projection, beside what they stand for.
struct Fp8Model {
  Fp8Model() {
    tiny.dtype = DType::kBF16;
    plain = MakeTinyWeights(tiny);
    Random random(11);
    for (auto& [name, tensor] : plain) {
      if (!IsQuantized(name)) {
        fp8.emplace(name, tensor);
        continue;
      }
      const Shape shape = tensor.shape();
      Tensor codes(DType::kU8, shape);
      for (int64_t i = 0; i < codes.num_elements(); ++i) {
        codes.As<uint8_t>()[i] = static_cast<uint8_t>(random.Below(2) * 128 + random.Below(0x50));
      }
      const Shape grid = {(shape[0] + kBlock - 1) / kBlock, (shape[1] + kBlock - 1) / kBlock};
      Tensor scales(DType::kF32, grid);
      for (int64_t i = 0; i < scales.num_elements(); ++i) {
        scales.As<float>()[i] = static_cast<float>(0.01 + 0.04 * random.Uniform());
      }
      StoredWeight weight;
      weight.name = "blocks.";
      weight.stored_name = name;
      weight.type = "F8_E4M3";
      weight.shape = shape;
      weight.data = codes.data();
      StoredWeight scale;
      scale.stored_name = name + "_scale_inv";
      scale.type = "F32";
      scale.format = WeightFormat::kF32;
      scale.shape = grid;
      scale.data = scales.data();
      std::vector<StoredWeight> tensors = {weight, scale};
      AttachFp8Scales({kBlock, kBlock}, tensors);
      ExpandFp8(tensors[0], 1, tensor.As<BF16>());
      fp8.emplace(name + "_scale_inv", scales);
      fp8.emplace(name, codes);
    }
  }

  // safetensors with the codes' type changed in its header: no tensor here has that type.
  void WriteFp8(const TempFolder& folder, const std::string& quantization) const {
    WriteTinyModel(tiny, fp8, folder);
    std::string config = TinyConfigJson(tiny);
    config.insert(1, "\"quantization_config\": " + quantization + ",\n");
    folder.Write("config.json", config);
    const std::string file = Slurp(folder.File("model.safetensors"));
    uint64_t size = 0;
    std::memcpy(&size, file.data(), sizeof(size));
    std::string header = file.substr(8, size);
    for (size_t at = header.find("\"U8\""); at != std::string::npos; at = header.find("\"U8\"")) {
      header.replace(at, 4, "\"F8_E4M3\"");
    }
    const uint64_t new_size = header.size();
    std::string start(8, '\0');
    std::memcpy(start.data(), &new_size, sizeof(new_size));
    folder.Write("model.safetensors", start + header + file.substr(8 + size));
  }

  TinyModel tiny;
  TinyWeights plain;
  TinyWeights fp8;
};

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
  const Fp8Model made;
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
