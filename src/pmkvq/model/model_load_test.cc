#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>

#include "pmkvq/base/error.h"
#include "pmkvq/io/weights/hugging_face_names.h"
#include "pmkvq/model/blocks/attention_gqa.h"
#include "pmkvq/model/blocks/attention_mla.h"
#include "pmkvq/model/blocks/mlp_dense.h"
#include "pmkvq/model/blocks/mlp_moe.h"
#include "pmkvq/model/model.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/model/weight_list.h"
#include "support/dense_kv_store.h"
#include "support/expect_error.h"
#include "support/fused_model.h"
#include "support/temp_folder.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::FusedAsPhi3;
using testing_support::MakeTinyWeights;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::TinyModels;
using testing_support::TinyWeights;
using testing_support::WithFusedExperts;
using testing_support::WriteTinyModel;

const AttentionGqaWeights& AttentionOf(const Model& model, int64_t layer) {
  return dynamic_cast<const AttentionGqa&>(model.attention(layer)).weights();
}

struct MlpMatrices {
  const WeightView& gate;
  const WeightView& up;
  const WeightView& down;
};

// Of a dense block; of a block with experts those of its last one.
MlpMatrices MlpOf(const Model& model, int64_t layer) {
  if (const auto* const dense = dynamic_cast<const MlpDense*>(&model.mlp(layer))) {
    return {dense->weights().gate, dense->weights().up, dense->weights().down};
  }
  const auto& last = dynamic_cast<const MlpMoe&>(model.mlp(layer)).weights().experts.back();
  return {last.gate, last.up, last.down};
}

TEST(ModelLoad, BindsEveryArchitecture) {
  for (const auto& [name, tiny] : TinyModels()) {
    if (tiny.is_mla()) continue;  // Below.
    SCOPED_TRACE(name);
    TempFolder folder;
    const TinyWeights weights = MakeTinyWeights(tiny);
    WriteTinyModel(tiny, weights, folder);
    const std::shared_ptr<const Model> model = Model::Load(folder.path());

    EXPECT_EQ(model->config().architecture, tiny.architecture);
    EXPECT_EQ(model->kv_geometry().num_layers(), tiny.layers);
    EXPECT_EQ(model->kv_geometry().blocks[0].k().values(), tiny.kv_dim());
    EXPECT_DOUBLE_EQ(model->attention_scale(), 1.0 / std::sqrt(double(tiny.head_dim)));
    EXPECT_EQ(model->output_head().data == model->embedding().data, tiny.tied);
    EXPECT_EQ(model->output_head().rows, tiny.vocab);
    EXPECT_EQ(model->final_norm().size(), static_cast<size_t>(tiny.hidden));
    for (int64_t layer = 0; layer < tiny.layers; ++layer) {
      const AttentionGqaWeights& attention = AttentionOf(*model, layer);
      const MlpMatrices mlp = MlpOf(*model, layer);
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      EXPECT_EQ(NameOf(attention.q.format), NameOf(tiny.dtype)) << "weights stay as stored";
      EXPECT_EQ(mlp.down.rows, tiny.hidden);
      EXPECT_EQ(mlp.down.cols, tiny.has_experts(layer) ? tiny.expert_size() : tiny.inner);
      EXPECT_EQ(attention.q_bias.empty(), !tiny.qkv_bias);
      EXPECT_EQ(attention.o_bias.empty(), !tiny.o_bias);
      EXPECT_EQ(attention.k_norm.empty(), !tiny.qk_norm);
      const std::vector<double> norm =
          testing_support::Values(weights.at(prefix + "input_layernorm.weight"));
      const double offset = tiny.is_gemma ? 1 : 0;
      EXPECT_TRUE(std::equal(norm.begin(), norm.end(), attention.norm.begin(),
                             [&](double stored, float bound) {
                               return static_cast<float>(stored + offset) == bound;
                             }));
    }
  }
}

std::vector<float> LogitsOf(const Model& model) {
  testing_support::DenseKvStore store(model.kv_geometry());
  const std::vector<int32_t> tokens =
      testing_support::RandomTokens(model.config().vocab_size, 20, 3);
  const ForwardChunk chunk{store.Open().value(), tokens, 0, ForwardChunk::Logits::kAll};
  ForwardWorkspace workspace;
  ThrowIfFailed(model.Forward({&chunk, 1}, store, workspace, 1));
  return {workspace.logits.begin(), workspace.logits.end()};
}

// A model with other weights in place of some is the one that would be loaded with them.
TEST(ModelLoad, ReplacesWeights) {
  TinyModel tiny;
  tiny.qkv_bias = true;
  tiny.architecture = "Qwen2ForCausalLM";
  TinyWeights weights = MakeTinyWeights(tiny);
  const TempFolder folder;
  WriteTinyModel(tiny, weights, folder);
  std::map<std::string, Tensor> replacements;
  const auto replace = [&](const std::string& canonical, const std::string& stored) {
    Tensor values(DType::kF32, weights.at(stored).shape());
    for (int64_t i = 0; i < values.num_elements(); ++i) {
      values.As<float>()[i] = 0.125f * static_cast<float>(i % 7 - 3);
    }
    weights.at(stored) = values;
    replacements.emplace(canonical, std::move(values));
  };
  replace("blocks.1.attn.k", "model.layers.1.self_attn.k_proj.weight");
  replace("blocks.2.attn.v.bias", "model.layers.2.self_attn.v_proj.bias");
  const TempFolder replaced_folder;
  WriteTinyModel(tiny, weights, replaced_folder);
  for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8}) {
    const auto model = Model::Load(folder.path(), {mode, 1});
    const auto expected = Model::Load(replaced_folder.path(), {mode, 1});
    const auto found = model->WithWeights(replacements, 1);
    EXPECT_EQ(&found->checkpoint(), &model->checkpoint());
    EXPECT_EQ(found->weights(), mode);
    EXPECT_EQ(LogitsOf(*found), LogitsOf(*expected));
    EXPECT_NE(LogitsOf(*found), LogitsOf(*model));
    ExpectError<InvalidInput>(
        [&] {
          model->WithWeights({{"blocks.9.attn.k", {}}}, 1);
        },
        {"replacement 'blocks.9.attn.k'", "no such weight"});
    std::map<std::string, Tensor> wrong;
    wrong.emplace("blocks.0.attn.k", Tensor(DType::kF32, {3, 4}));
    ExpectError<InvalidInput>([&] { model->WithWeights(std::move(wrong), 1); },
                              {"blocks.0.attn.k", "[3, 4]"});
  }
}

// The graph of Phi-3 is Llama's; its files hold q, k, v as one matrix, and gate and up as another.
TEST(ModelLoad, FusedMatricesOfPhi3ComputeTheSame) {
  TinyModel tiny;
  const TinyWeights plain = MakeTinyWeights(tiny);
  const TinyWeights fused = FusedAsPhi3(tiny, plain);
  const TempFolder plain_folder;
  WriteTinyModel(tiny, plain, plain_folder);
  tiny.architecture = "Phi3ForCausalLM";
  const TempFolder folder;
  WriteTinyModel(tiny, fused, folder);
  for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8, WeightMode::kQ4}) {
    const auto phi = Model::Load(folder.path(), {mode, 1});
    const auto llama = Model::Load(plain_folder.path(), {mode, 1});
    EXPECT_EQ(phi->weight_bytes(), llama->weight_bytes());
    EXPECT_EQ(LogitsOf(*phi), LogitsOf(*llama)) << NameOf(mode);
  }
}

// Experts as newer versions of transformers hold them, beside those of files on hubs.
TEST(ModelLoad, FusedExpertsComputeTheSame) {
  for (const char* name : {"mixtral_f32", "qwen3_moe_bf16", "deepseek2_f32"}) {
    SCOPED_TRACE(name);
    const TinyModel tiny = TinyModels().at(name);
    const TinyWeights plain = MakeTinyWeights(tiny);
    std::map<std::string, TensorView> views;
    for (const auto& [stored, tensor] : plain) views[stored] = tensor.view();
    const TinyWeights fused = WithFusedExperts(views);
    ASSERT_LT(fused.size(), plain.size());
    const TempFolder plain_folder;
    WriteTinyModel(tiny, plain, plain_folder);
    const TempFolder folder;
    WriteTinyModel(tiny, fused, folder);
    for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8}) {
      const auto expected = Model::Load(plain_folder.path(), {mode, 1});
      const auto model = Model::Load(folder.path(), {mode, 1});
      EXPECT_EQ(model->weight_bytes(), expected->weight_bytes());
      EXPECT_EQ(LogitsOf(*model), LogitsOf(*expected)) << NameOf(mode);
    }
  }
}

// A model that never was on disk is the same one: its weights, its identity in plans.
TEST(ModelLoad, FromMemoryIsThatOfTheFolder) {
  for (const auto& [name, tiny] : TinyModels()) {
    SCOPED_TRACE(name);
    TempFolder folder;
    const TinyWeights weights = MakeTinyWeights(tiny);
    WriteTinyModel(tiny, weights, folder);
    const std::shared_ptr<const Model> loaded = Model::Load(folder.path());
    const std::shared_ptr<const Model> made =
        Model::FromCheckpoint(Checkpoint::FromMemory("(memory)", loaded->config(), weights));
    EXPECT_EQ(made->checkpoint().Identity(), loaded->checkpoint().Identity());
    const WeightView& a = MlpOf(*made, tiny.layers - 1).down;
    const WeightView& b = MlpOf(*loaded, tiny.layers - 1).down;
    ASSERT_EQ(a.rows * a.cols, b.rows * b.cols);
    EXPECT_EQ(std::memcmp(a.data, b.data, a.num_bytes()), 0);
  }
  TinyWeights weights = MakeTinyWeights({});
  TempFolder folder;
  WriteTinyModel({}, weights, folder);
  const ModelConfig config = Model::Load(folder.path())->config();
  weights.erase("model.norm.weight");
  ExpectError<InvalidInput>(
      [&] { Model::FromCheckpoint(Checkpoint::FromMemory("(memory)", config, weights)); },
      {"(memory)", "model.norm.weight"});
}

TEST(ModelLoad, QuantisesMatricesButNotTheEmbedding) {
  for (const auto& [name, tiny] : TinyModels()) {
    if (tiny.is_mla()) continue;  // Below.
    SCOPED_TRACE(name);
    TempFolder folder;
    WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
    const std::shared_ptr<const Model> stored = Model::Load(folder.path());
    EXPECT_EQ(stored->weights(), WeightMode::kAsStored);
    for (const WeightMode mode : {WeightMode::kQ8, WeightMode::kQ4}) {
      const WeightFormat made = mode == WeightMode::kQ8 ? WeightFormat::kQ8 : WeightFormat::kQ4_1;
      const std::shared_ptr<const Model> model = Model::Load(folder.path(), {mode, 2});
      EXPECT_EQ(NameOf(model->embedding().format), NameOf(tiny.dtype));
      EXPECT_EQ(model->output_head().format, made);
      EXPECT_EQ(model->output_head().rows, tiny.vocab);
      const AttentionGqaWeights& attention = AttentionOf(*model, tiny.layers - 1);
      const MlpMatrices mlp = MlpOf(*model, tiny.layers - 1);
      for (const WeightView* view : {&attention.q, &attention.k, &attention.v, &attention.o,
                                     &mlp.gate, &mlp.up, &mlp.down}) {
        EXPECT_EQ(view->format, made);
      }
      if (tiny.has_experts(tiny.layers - 1)) {
        const auto& moe = dynamic_cast<const MlpMoe&>(model->mlp(tiny.layers - 1));
        EXPECT_EQ(NameOf(moe.weights().router.format), NameOf(tiny.dtype)) << "a router stays";
      }
      // What was given back to the system is read again: plans still know the model.
      EXPECT_EQ(model->checkpoint().Identity(), stored->checkpoint().Identity());
    }
  }
}

// The declared list and a checkpoint that loads are the same tensors.
TEST(ModelLoad, DeclaresWhatItBinds) {
  for (const auto& [name, tiny] : TinyModels()) {
    SCOPED_TRACE(name);
    TempFolder folder;
    const TinyWeights weights = MakeTinyWeights(tiny);
    WriteTinyModel(tiny, weights, folder);
    const ModelConfig config = Model::Load(folder.path())->config();
    std::map<std::string, Shape> declared;
    for (const WeightDeclaration& each : DeclaredWeights(config)) {
      declared[HuggingFaceName(each.name, tiny.naming())] = each.shape;
      EXPECT_EQ(IsMatrix(each.role), each.shape.size() == 2) << each.name;
      EXPECT_EQ(each.role == WeightRole::kBias, each.name.ends_with(".bias")) << each.name;
    }
    std::map<std::string, Shape> stored;
    for (const auto& [tensor_name, tensor] : weights) stored[tensor_name] = tensor.shape();
    EXPECT_EQ(declared, stored);
  }
}

TEST(ModelLoad, BindsAndQuantisesLatentAttention) {
  for (const auto& [name, tiny] : TinyModels()) {
    if (!tiny.is_mla()) continue;
    SCOPED_TRACE(name);
    TempFolder folder;
    WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
    for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8, WeightMode::kQ4}) {
      const std::shared_ptr<const Model> model = Model::Load(folder.path(), {mode, 2});
      const WeightFormat format = FormatInMode(mode, *WeightFormatNamed(NameOf(tiny.dtype)));
      EXPECT_EQ(model->kv_geometry(), KvGeometryOf(model->config()));
      const KvBlockGeometry block = model->kv_geometry().block(1);
      EXPECT_EQ(block.latent_width(), tiny.latent);
      EXPECT_EQ(block.rope_width(), tiny.rope_dim);
      EXPECT_EQ(model->rope().head_dim(), tiny.rope_dim);
      EXPECT_DOUBLE_EQ(model->attention_scale(),
                       1.0 / std::sqrt(static_cast<double>(tiny.nope_dim + tiny.rope_dim)));
      const AttentionMlaWeights& weights =
          dynamic_cast<const AttentionMla&>(model->attention(1)).weights();
      for (const WeightView* view : {&weights.kv_a, &weights.kv_b, &weights.o,
                                     tiny.query_rank > 0 ? &weights.q_b : &weights.q}) {
        EXPECT_EQ(view->format, format);
      }
      EXPECT_EQ(weights.q.data == nullptr, tiny.query_rank > 0);
      EXPECT_EQ(weights.q_a_norm.size(), static_cast<size_t>(tiny.query_rank));
      EXPECT_EQ(weights.kv_a_norm.size(), static_cast<size_t>(tiny.latent));
    }
  }
}

// DeepSeek-V3 has a block behind the last one for predicting two tokens at once. It is left out
// where the config announces it, and refused where it does not.
TEST(ModelLoad, LeavesOutBlocksForSeveralTokens) {
  const TinyModel tiny = TinyModels().at("deepseek3_bf16");
  TinyWeights weights = MakeTinyWeights(tiny);
  const TempFolder plain;
  WriteTinyModel(tiny, weights, plain);
  const auto expected = Model::Load(plain.path());
  for (const char* name :
       {"self_attn.o_proj.weight", "eh_proj.weight", "shared_head.head.weight"}) {
    weights.emplace("model.layers.3." + std::string(name), Tensor(DType::kBF16, {4, 4}));
  }
  TempFolder folder;
  WriteTinyModel(tiny, weights, folder);
  ExpectError<InvalidInput>([&] { Model::Load(folder.path()); },
                            {"'model.layers.3.", "found here", "DeepseekV3ForCausalLM, 3 blocks"});
  std::string config = TinyConfigJson(tiny);
  config.insert(1, "\"num_nextn_predict_layers\": 1,\n");
  folder.Write("config.json", config);
  const auto model = Model::Load(folder.path());
  EXPECT_EQ(model->config().num_layers, 3);
  EXPECT_EQ(model->weight_bytes(), expected->weight_bytes());
  weights.emplace("model.layers.4.eh_proj.weight", Tensor(DType::kBF16, {4, 4}));
  WriteTinyModel(tiny, weights, folder);
  folder.Write("config.json", config);
  ExpectError<InvalidInput>([&] { Model::Load(folder.path()); }, {"'model.layers.4.eh_proj"});
}

TEST(ModelLoad, RefusesExpertsThatTheConfigDoesNotAnnounce) {
  const TinyModel tiny = TinyModels().at("mixtral_f32");
  TinyWeights weights = MakeTinyWeights(tiny);
  const std::string block = "model.layers.1.block_sparse_moe.experts.";
  weights[block + "5.w1.weight"] = weights.at(block + "4.w1.weight");
  const TempFolder more;
  WriteTinyModel(tiny, weights, more);
  ExpectError<InvalidInput>([&] { Model::Load(more.path()); },
                            {"'" + block + "5.w1.weight': found here"});
  weights.erase(block + "5.w1.weight");
  weights.erase(block + "2.w2.weight");
  const TempFolder less;
  WriteTinyModel(tiny, weights, less);
  ExpectError<InvalidInput>([&] { Model::Load(less.path()); },
                            {"'" + block + "2.w2.weight': found nothing", "[32, 28]"});
}

TEST(ModelLoad, NamesAMatrixThatCannotBeQuantised) {
  TinyWeights weights = MakeTinyWeights({});
  weights.at("model.layers.1.mlp.up_proj.weight").As<float>()[5] =
      std::numeric_limits<float>::quiet_NaN();
  TempFolder folder;
  WriteTinyModel({}, weights, folder);
  for (const WeightMode mode : {WeightMode::kQ8, WeightMode::kQ4}) {
    ExpectError<InvalidInput>(
        [&] {
          Model::Load(folder.path(), {mode, 1});
        },
        {"model.safetensors", "model.layers.1.mlp.up_proj.weight", "not finite"});
  }
}

TEST(ModelLoad, WeightModesByName) {
  EXPECT_EQ(ParseWeightMode("as-stored"), WeightMode::kAsStored);
  EXPECT_EQ(ParseWeightMode("q8"), WeightMode::kQ8);
  EXPECT_EQ(NameOf(WeightMode::kQ8), "q8");
  EXPECT_EQ(ParseWeightMode("q4"), WeightMode::kQ4);
  EXPECT_EQ(NameOf(WeightMode::kQ4), "q4");
  ExpectError<InvalidInput>([] { ParseWeightMode("q5"); },
                            {"--weights", "q5", "as-stored, q8, q4"});
}

TEST(ModelLoad, ModesChangeWhatSavesAQuarter) {
  for (size_t i = 0; i < kNumWeightFormats; ++i) {
    const auto format = static_cast<WeightFormat>(i);
    EXPECT_EQ(FormatInMode(WeightMode::kAsStored, format), format);
  }
  for (const WeightFormat plain : {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16}) {
    EXPECT_EQ(FormatInMode(WeightMode::kQ8, plain), WeightFormat::kQ8);
    EXPECT_EQ(FormatInMode(WeightMode::kQ4, plain), WeightFormat::kQ4_1);
  }
  EXPECT_EQ(FormatInMode(WeightMode::kQ8, WeightFormat::kQ8_0), WeightFormat::kQ8_0);
  EXPECT_EQ(FormatInMode(WeightMode::kQ4, WeightFormat::kQ8_0), WeightFormat::kQ4_1);
  for (const WeightFormat few : {WeightFormat::kQ6_K, WeightFormat::kQ5_1, WeightFormat::kQ4_0,
                                 WeightFormat::kQ2_K, WeightFormat::kMXFP4}) {
    EXPECT_EQ(FormatInMode(WeightMode::kQ8, few), few);
    EXPECT_EQ(FormatInMode(WeightMode::kQ4, few), few);
  }
}

TEST(ModelLoad, NamesAMissingTensor) {
  const TinyModel tiny = TinyModels().at("qwen3_f32");
  for (const char* name : {"model.layers.1.self_attn.k_norm.weight", "model.norm.weight",
                           "lm_head.weight", "model.layers.2.mlp.up_proj.weight"}) {
    TempFolder folder;
    TinyWeights weights = MakeTinyWeights(tiny);
    weights.erase(name);
    WriteTinyModel(tiny, weights, folder);
    ExpectError<InvalidInput>([&] { Model::Load(folder.path()); }, {folder.path(), name});
  }
}

TEST(ModelLoad, NamesAWrongShape) {
  const TinyModel tiny = TinyModels().at("llama_bias_bf16");
  for (const char* name :
       {"model.layers.0.self_attn.v_proj.weight", "model.layers.2.self_attn.o_proj.bias"}) {
    TempFolder folder;
    TinyWeights weights = MakeTinyWeights(tiny);
    weights[name] = Tensor(DType::kBF16, {3, 5});
    WriteTinyModel(tiny, weights, folder);
    ExpectError<InvalidInput>([&] { Model::Load(folder.path()); },
                              {"model.safetensors", name, "[3, 5]"});
  }
}

// A bias or a block that the config does not announce would silently be left out.
TEST(ModelLoad, RefusesTensorsThatTheConfigDoesNotAnnounce) {
  const TinyModel tiny;
  for (const char* name : {"model.layers.0.self_attn.q_proj.bias", "model.layers.3.mlp.x.weight"}) {
    TempFolder folder;
    TinyWeights weights = MakeTinyWeights(tiny);
    weights[name] = Tensor(DType::kF32, {4});
    WriteTinyModel(tiny, weights, folder);
    ExpectError<InvalidInput>([&] { Model::Load(folder.path()); },
                              {"model.safetensors", name, "3 blocks"});
  }
}

TEST(ModelLoad, IgnoresStoredRopeFrequenciesAndATiedHead) {
  TinyModel tiny;
  tiny.tied = true;
  TempFolder folder;
  TinyWeights weights = MakeTinyWeights(tiny);
  weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = Tensor(DType::kF32, {8});
  weights["lm_head.weight"] = Tensor(DType::kF32, {tiny.vocab, tiny.hidden});
  WriteTinyModel(tiny, weights, folder);
  const std::shared_ptr<const Model> model = Model::Load(folder.path());
  EXPECT_EQ(model->output_head().data, model->embedding().data);
}

TEST(ModelLoad, PassesRopeScalingOn) {
  struct Case {
    const char* json;
    RopeParams params;
  };
  RopeParams base;
  base.head_dim = 16;
  RopeParams linear = base;
  linear.scaling = RopeParams::Scaling::kLinear;
  linear.factor = 4.0;
  RopeParams llama3 = base;
  llama3.scaling = RopeParams::Scaling::kLlama3;
  llama3.factor = 8.0;
  llama3.low_freq_factor = 1.0;
  llama3.high_freq_factor = 4.0;
  llama3.original_max_position = 512;
  RopeParams yarn = base;
  yarn.scaling = RopeParams::Scaling::kYarn;
  yarn.factor = 4.0;
  yarn.original_max_position = 1024;
  yarn.attention_factor = 1.25;
  const Case cases[] = {
      {R"({"rope_type": "linear", "factor": 4.0})", linear},
      {R"({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
           "original_max_position_embeddings": 512})",
       llama3},
      {R"({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024,
           "attention_factor": 1.25})",
       yarn},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.json);
    const TinyModel tiny;
    TempFolder folder;
    WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
    std::string config = testing_support::TinyConfigJson(tiny);
    config.insert(1, std::string("\"rope_scaling\": ") + each.json + ",\n");
    folder.Write("config.json", config);
    const std::shared_ptr<const Model> model = Model::Load(folder.path());
    const RopeTable expected(each.params);
    EXPECT_EQ(model->rope().frequencies(), expected.frequencies());
    EXPECT_EQ(model->rope().attention_factor(), expected.attention_factor());
    EXPECT_NE(model->rope().frequencies(), RopeTable(base).frequencies());
  }
}

}  // namespace
}  // namespace pmkvq
