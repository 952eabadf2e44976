#include "pmkvq/io/weights/weight_source.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "pmkvq/base/error.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/io/weights/hugging_face_names.h"
#include "pmkvq/io/weights/safetensors_source.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

constexpr const char* kNorm = "model.norm.weight";
constexpr const char* kQ = "model.layers.0.self_attn.q_proj.weight";

Tensor Filled(DType dtype, const Shape& shape) {
  Tensor tensor(dtype, shape);
  std::fill_n(tensor.data(), tensor.view().num_bytes(), std::byte{1});
  return tensor;
}

TEST(HuggingFaceNames, LeadThereAndBack) {
  for (const auto& [stored, name] : std::map<std::string, std::string>{
           {"model.embed_tokens.weight", "embedding"},
           {"lm_head.weight", "output_head"},
           {kNorm, "final_norm"},
           {"model.layers.0.input_layernorm.weight", "blocks.0.attn.norm"},
           {"model.layers.12.self_attn.k_proj.bias", "blocks.12.attn.k.bias"},
           {"model.layers.3.self_attn.q_norm.weight", "blocks.3.attn.q_norm"},
           {"model.layers.107.mlp.down_proj.weight", "blocks.107.mlp.down"}}) {
    EXPECT_EQ(CanonicalNameOfHuggingFace(stored), name);
    EXPECT_EQ(HuggingFaceName(name), stored);
  }
}

TEST(HuggingFaceNames, NormsBehindAttentionAndMlp) {
  const std::string block = "model.layers.12.";
  for (const auto& [stored, name] :
       std::map<std::string, std::string>{{"post_attention_layernorm.weight", "attn.post_norm"},
                                          {"pre_feedforward_layernorm.weight", "mlp.norm"},
                                          {"post_feedforward_layernorm.weight", "mlp.post_norm"},
                                          {"input_layernorm.weight", "attn.norm"}}) {
    EXPECT_EQ(CanonicalNameOfHuggingFace(block + stored, HuggingFaceNaming::kPostNorms),
              "blocks.12." + name);
    EXPECT_EQ(HuggingFaceName("blocks.12." + name, HuggingFaceNaming::kPostNorms), block + stored);
  }
  EXPECT_EQ(CanonicalNameOfHuggingFace("model.norm.weight", HuggingFaceNaming::kPostNorms),
            "final_norm");
  EXPECT_EQ(NamingShownBy(block + "pre_feedforward_layernorm.weight"),
            HuggingFaceNaming::kPostNorms);
  EXPECT_EQ(NamingShownBy(block + "post_attention_layernorm.weight"), HuggingFaceNaming::kUsual);
}

TEST(HuggingFaceNames, Experts) {
  const std::string block = "model.layers.12.";
  for (const auto& [stored, name] : std::map<std::string, std::string>{
           {"mlp.gate.weight", "mlp.router"},
           {"mlp.gate.e_score_correction_bias", "mlp.router.bias"},
           {"mlp.shared_experts.up_proj.weight", "mlp.shared.up"},
           {"mlp.experts.0.gate_proj.weight", "mlp.experts.0.gate"},
           {"mlp.experts.127.up_proj.weight", "mlp.experts.127.up"},
           {"mlp.experts.5.down_proj.weight", "mlp.experts.5.down"}}) {
    EXPECT_EQ(CanonicalNameOfHuggingFace(block + stored), "blocks.12." + name);
    EXPECT_EQ(HuggingFaceName("blocks.12." + name), block + stored);
  }
  for (const auto& [stored, name] : std::map<std::string, std::string>{
           {"block_sparse_moe.gate.weight", "mlp.router"},
           {"block_sparse_moe.experts.0.w1.weight", "mlp.experts.0.gate"},
           {"block_sparse_moe.experts.1.w3.weight", "mlp.experts.1.up"},
           {"block_sparse_moe.experts.77.w2.weight", "mlp.experts.77.down"},
           {"self_attn.q_proj.weight", "attn.q"}}) {
    EXPECT_EQ(CanonicalNameOfHuggingFace(block + stored, HuggingFaceNaming::kSparseMoe),
              "blocks.12." + name);
    EXPECT_EQ(HuggingFaceName("blocks.12." + name, HuggingFaceNaming::kSparseMoe), block + stored);
  }
  EXPECT_EQ(NamingShownBy(block + "block_sparse_moe.gate.weight"), HuggingFaceNaming::kSparseMoe);
  EXPECT_EQ(NamingShownBy(block + "mlp.gate.weight"), HuggingFaceNaming::kUsual);
  for (const char* other :
       {"mlp.experts.gate_proj.weight", "mlp.experts..gate_proj.weight",
        "mlp.experts.x.gate_proj.weight", "mlp.experts.1.2.gate_proj.weight",
        "mlp.experts.-1.gate_proj.weight", "mlp.experts.1.gate_proj.weight.x"}) {
    EXPECT_EQ(CanonicalNameOfHuggingFace(block + other), "") << other;
  }
}

TEST(HuggingFaceNames, LatentAttention) {
  for (const auto& [stored, name] :
       std::map<std::string, std::string>{{"q_a_proj.weight", "q_a"},
                                          {"q_a_layernorm.weight", "q_a_norm"},
                                          {"q_b_proj.weight", "q_b"},
                                          {"kv_a_proj_with_mqa.weight", "kv_a"},
                                          {"kv_a_layernorm.weight", "kv_a_norm"},
                                          {"kv_b_proj.weight", "kv_b"}}) {
    EXPECT_EQ(CanonicalNameOfHuggingFace("model.layers.12.self_attn." + stored),
              "blocks.12.attn." + name);
    EXPECT_EQ(HuggingFaceName("blocks.12.attn." + name), "model.layers.12.self_attn." + stored);
  }
}

TEST(HuggingFaceNames, NumbersOfBlocks) {
  EXPECT_EQ(BlockOfHuggingFace("model.layers.61.shared_head.norm.weight"), 61);
  EXPECT_EQ(BlockOfHuggingFace("model.layers.0.x"), 0);
  for (const char* stored :
       {"model.norm.weight", "model.layers.", "model.layers.61", "model.layers.-1.x",
        "model.layers.x.y", "model.layers.1x.y", "model.layers.99999999999999999999.x"}) {
    EXPECT_EQ(BlockOfHuggingFace(stored), -1) << stored;
  }
}

TEST(HuggingFaceNames, OthersHaveNone) {
  for (const char* stored :
       {"", "embedding", "blocks.0.attn.q", "model.layers.", "model.layers.3", "model.layers.x.y",
        "model.layers..self_attn.q_proj.weight", "model.layers.3.attn.q",
        "model.layers.-1.self_attn.q_proj.weight", "model.layers.3.mlp.gate_proj.bias",
        "model.layers.3.self_attn.q_proj.weight.", "model.layers.3.self_attn.rotary_emb.inv_freq",
        "model.layers.3.model.norm.weight"}) {
    EXPECT_EQ(CanonicalNameOfHuggingFace(stored), "") << stored;
  }
  EXPECT_EQ(HuggingFaceName("blocks.3.mlp.x"), "blocks.3.mlp.x");
  EXPECT_TRUE(IsOfBlockOfHuggingFace("model.layers.3.mlp.gate_proj.bias"));
  EXPECT_FALSE(IsOfBlockOfHuggingFace("model.layers.3.self_attn.rotary_emb.inv_freq"));
  EXPECT_FALSE(IsOfBlockOfHuggingFace("vision.weight"));
}

TEST(SafetensorsSource, FusedMatricesAreListedPartByPart) {
  const TempFolder folder;
  Tensor qkv(DType::kF32, {4 + 2 + 2, 3});
  for (int64_t i = 0; i < qkv.num_elements(); ++i) qkv.As<float>()[i] = static_cast<float>(i);
  const Tensor gate_up = Filled(DType::kBF16, {10, 3});
  const std::string block = "model.layers.7.";
  WriteSafetensors(folder.File("model.safetensors"),
                   {{block + "self_attn.qkv_proj.weight", qkv.view()},
                    {block + "mlp.gate_up_proj.weight", gate_up.view()}});
  const auto source = OpenSafetensorsSource(folder.path(), {4, 2, 5});
  ASSERT_EQ(source->tensors().size(), 5u);
  const auto first = [&](const char* name, const Shape& shape) {
    const StoredWeight& weight = source->Get(name, shape);
    EXPECT_EQ(weight.num_bytes, static_cast<uint64_t>(NumElements(shape)) * 4);
    EXPECT_TRUE(weight.of_block);
    EXPECT_EQ(weight.stored_name, block + "self_attn.qkv_proj.weight");
    return reinterpret_cast<const float*>(weight.data)[0];
  };
  EXPECT_EQ(first("blocks.7.attn.q", {4, 3}), 0.0f);
  EXPECT_EQ(first("blocks.7.attn.k", {2, 3}), 12.0f);
  EXPECT_EQ(first("blocks.7.attn.v", {2, 3}), 18.0f);
  EXPECT_EQ(source->Get("blocks.7.mlp.up", {5, 3}).num_bytes, 5u * 3 * 2);
  EXPECT_EQ(source->Find("blocks.7.attn.qkv"), nullptr);
  // The parts are bytes of the file: the identity is that of the file.
  EXPECT_EQ(source->Identity("a"), OpenSafetensorsSource(folder.path())->Identity("a"));
  ExpectError<InvalidInput>(
      [&] {
        OpenSafetensorsSource(folder.path(), {4, 2, 6});
      },
      {"model.safetensors", "gate_up_proj.weight': found BF16 [10, 3]", "12 rows",
       "blocks.7.mlp.gate, blocks.7.mlp.up"});
  EXPECT_TRUE(FusedPartsOfHuggingFace("model.layers.x.self_attn.qkv_proj.weight").empty());
  EXPECT_TRUE(FusedPartsOfHuggingFace("self_attn.qkv_proj.weight").empty());
}

// gate_up_proj [n, 2 F, E] and down_proj [n, E, F] of all experts: n = 3, F = 5, E = 2.
TEST(SafetensorsSource, FusedExpertsAreListedOneByOne) {
  const TempFolder folder;
  Tensor gate_up(DType::kF32, {3, 10, 2});
  for (int64_t i = 0; i < 60; ++i) gate_up.As<float>()[i] = static_cast<float>(i);
  const Tensor down = Filled(DType::kBF16, {3, 2, 5});
  const std::string experts = "model.layers.7.mlp.experts.";
  std::map<std::string, TensorView> tensors = {{experts + "gate_up_proj", gate_up.view()},
                                               {experts + "down_proj", down.view()}};
  WriteSafetensors(folder.File("model.safetensors"), tensors);
  const FusedRows rows{.q = 4, .kv = 2, .inner = 8, .num_experts = 3, .expert_inner = 5};
  const auto source = OpenSafetensorsSource(folder.path(), rows);
  ASSERT_EQ(source->tensors().size(), 9u);
  for (int64_t i = 0; i < 3; ++i) {
    const std::string expert = "blocks.7.mlp.experts." + std::to_string(i);
    const auto first = [&](const std::string& name) {
      const StoredWeight& weight = source->Get(expert + name, {5, 2});
      EXPECT_EQ(weight.stored_name, experts + "gate_up_proj");
      EXPECT_EQ(weight.num_bytes, 5u * 2 * 4);
      return reinterpret_cast<const float*>(weight.data)[0];
    };
    EXPECT_EQ(first(".gate"), static_cast<float>(20 * i));
    EXPECT_EQ(first(".up"), static_cast<float>(20 * i + 10));
    const StoredWeight& one = source->Get(expert + ".down", {2, 5});
    EXPECT_EQ(one.data - source->Get("blocks.7.mlp.experts.0.down", {2, 5}).data, i * 2 * 5 * 2);
    EXPECT_TRUE(one.of_block);
    EXPECT_EQ(source->StoredName(expert + ".down"),
              experts + std::to_string(i) + ".down_proj.weight");
  }
  EXPECT_EQ(source->Identity("a"), OpenSafetensorsSource(folder.path())->Identity("a"));
  for (const FusedRows& other : {FusedRows{4, 2, 8, 4, 5}, FusedRows{4, 2, 8, 3, 6}}) {
    ExpectError<InvalidInput>(
        [&] { OpenSafetensorsSource(folder.path(), other); },
        {"model.safetensors",
         other.num_experts == 4 ? "expected matrices of 4 experts" : "12 rows"});
  }
  const Tensor again = Filled(DType::kF32, {5, 2});
  tensors[experts + "1.up_proj.weight"] = again.view();
  WriteSafetensors(folder.File("model.safetensors"), tensors);
  ExpectError<InvalidInput>(
      [&] { OpenSafetensorsSource(folder.path(), rows); },
      {"model.safetensors", "blocks.7.mlp.experts.1.up", "gate_up_proj", "expected it once"});
}

TEST(SafetensorsSource, ListsAndFindsTensorsOfAllShards) {
  const TempFolder folder;
  const Tensor norm = Filled(DType::kF32, {3});
  const Tensor q = Filled(DType::kBF16, {2, 3});
  const Tensor other = Filled(DType::kI32, {4});
  WriteSafetensors(folder.File("1.safetensors"), {{kNorm, norm.view()}});
  WriteSafetensors(folder.File("2.safetensors"), {{kQ, q.view()}, {"other", other.view()}});
  folder.Write("model.safetensors.index.json",
               std::string(R"({"weight_map":{")") + kNorm + R"(":"1.safetensors",")" + kQ +
                   R"(":"2.safetensors","other":"2.safetensors"}})");
  const std::unique_ptr<const WeightSource> source = OpenSafetensorsSource(folder.path());
  EXPECT_EQ(source->num_files(), 2);
  ASSERT_EQ(source->tensors().size(), 3u);

  const StoredWeight& found = source->Get("blocks.0.attn.q", {2, 3});
  EXPECT_EQ(source->Find("blocks.0.attn.q"), &found);
  EXPECT_EQ(found.stored_name, kQ);
  EXPECT_EQ(found.file, folder.File("2.safetensors"));
  EXPECT_EQ(found.format, WeightFormat::kBF16);
  EXPECT_EQ(found.num_bytes, 12u);
  EXPECT_TRUE(std::equal(found.data, found.data + 12, q.view().data));
  EXPECT_TRUE(found.of_block);
  EXPECT_FALSE(source->Get("final_norm", {3}).of_block);

  const auto unnamed = std::find_if(source->tensors().begin(), source->tensors().end(),
                                    [](const StoredWeight& each) { return each.name.empty(); });
  ASSERT_NE(unnamed, source->tensors().end());
  EXPECT_EQ(unnamed->stored_name, "other");
  EXPECT_EQ(unnamed->type, "I32");
  EXPECT_EQ(unnamed->format, std::nullopt);
  EXPECT_FALSE(unnamed->of_block);

  source->DropPages(found);
  EXPECT_TRUE(std::equal(found.data, found.data + 12, q.view().data)) << "read again";
}

TEST(SafetensorsSource, GetNamesFileTensorFoundAndExpected) {
  const TempFolder folder;
  const Tensor norm = Filled(DType::kF32, {2, 3});
  const Tensor head = Filled(DType::kI32, {2, 3});
  WriteSafetensors(folder.File("model.safetensors"),
                   {{kNorm, norm.view()}, {"lm_head.weight", head.view()}});
  const std::unique_ptr<const WeightSource> source = OpenSafetensorsSource(folder.path());
  ExpectError<InvalidInput>([&] { source->Get("final_norm", Shape{3}); },
                            {"model.safetensors] tensor 'model.norm.weight': found F32 [2, 3], "
                             "expected F32, F16 or BF16 [3]"});
  ExpectError<InvalidInput>(
      [&] {
        source->Get("output_head", Shape{2, 3});
      },
      {"model.safetensors] tensor 'lm_head.weight': found I32 [2, 3], expected F32"});
  ExpectError<InvalidInput>(
      [&] { source->Get("blocks.4.mlp.up", Shape{2}); },
      {folder.path(), "tensor 'model.layers.4.mlp.up_proj.weight': found nothing, expected F32"});
}

// A type whose bytes cannot be read is listed, and refused where it is a weight of the model.
TEST(SafetensorsSource, ForeignTypesAreListed) {
  const TempFolder folder;
  std::string header =
      std::string(R"({")") + kQ + R"(":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]}})";
  const uint64_t header_bytes = header.size();
  folder.Write("model.safetensors",
               std::string(reinterpret_cast<const char*>(&header_bytes), 8) + header + "ab");
  const std::unique_ptr<const WeightSource> source = OpenSafetensorsSource(folder.path());
  ASSERT_EQ(source->tensors().size(), 1u);
  EXPECT_EQ(source->tensors()[0].type, "F8_E4M3");
  EXPECT_EQ(source->tensors()[0].data, nullptr);
  EXPECT_FALSE(source->tensors()[0].of_block);
  ExpectError<Unsupported>([&] { source->Get("blocks.0.attn.q", Shape{2}); },
                           {"model.safetensors] tensor 'model.layers.0.self_attn.q_proj.weight'",
                            "found F8_E4M3 [2], expected F32, F16 or BF16", "not supported"});
}

}  // namespace
}  // namespace pmkvq
