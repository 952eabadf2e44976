#include "pmkvq/io/gguf/gguf_config.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "pmkvq/base/error.h"
#include "pmkvq/io/weights/gguf_names.h"
#include "support/expect_error.h"
#include "support/gguf_writer.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::GgufWriter;
using testing_support::TempFolder;

constexpr int64_t kHidden = 32;
constexpr int64_t kVocab = 10;

// The metadata of a model of 2 blocks, and an embedding.
GgufWriter Model(const std::string& architecture = "llama") {
  GgufWriter writer;
  const std::string a = architecture + ".";
  writer.Text("general.architecture", architecture);
  writer.U32(a + "block_count", 2).U64(a + "embedding_length", kHidden);
  writer.U32(a + "feed_forward_length", 48).U32(a + "context_length", 4096);
  writer.I32(a + "attention.head_count", 4).U32(a + "attention.head_count_kv", 2);
  writer.F32(a + "attention.layer_norm_rms_epsilon", 1e-5f);
  writer.Tensor("token_embd.weight", {kHidden, kVocab}, GgufTensorType::kF16,
                std::string(2 * kHidden * kVocab, '\0'));
  return writer;
}

ModelConfig Parse(const GgufWriter& writer, std::vector<std::string>* warnings = nullptr) {
  const TempFolder folder;
  return ParseGgufConfig(GgufSet::Open(folder.Write("m.gguf", writer.Bytes())), warnings);
}

std::string Floats(const std::vector<float>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

TEST(GgufConfig, ReadsALlama) {
  const ModelConfig config = Parse(Model());
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.num_layers, 2);
  EXPECT_EQ(config.hidden_size, kHidden);
  EXPECT_EQ(config.intermediate_size, 48);
  EXPECT_EQ(config.max_position_embeddings, 4096);
  EXPECT_EQ(config.num_heads, 4);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 8);
  EXPECT_EQ(config.vocab_size, kVocab);
  EXPECT_EQ(config.rms_norm_eps, 1e-5) << "the decimal number, stored as an f32";
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kDefault);
  EXPECT_TRUE(config.tie_word_embeddings);
  EXPECT_FALSE(config.qkv_bias || config.o_bias || config.qk_norm);
  EXPECT_EQ(config.bos_token_id, -1);
  EXPECT_TRUE(config.eos_token_ids.empty());
}

TEST(GgufConfig, ReadsTheGoldenModel) {
  const std::string folder = PMKVQ_SOURCE_DIR "/tests/golden/";
  const ModelConfig expected = LoadModelConfig(folder + "tiny-llama");
  for (const char* name : {"gguf/tiny-llama-f32.gguf", "gguf/tiny-llama-q8_0.gguf"}) {
    const ModelConfig config = LoadModelConfig(folder + name);
    EXPECT_EQ(config.architecture, expected.architecture);
    EXPECT_EQ(config.vocab_size, expected.vocab_size);
    EXPECT_EQ(config.head_dim, expected.head_dim);
    EXPECT_EQ(config.rope_theta, expected.rope_theta);
    EXPECT_EQ(config.rms_norm_eps, expected.rms_norm_eps);
    EXPECT_EQ(config.bos_token_id, expected.bos_token_id);
    EXPECT_EQ(config.eos_token_ids, expected.eos_token_ids);
    EXPECT_EQ(config.tie_word_embeddings, expected.tie_word_embeddings);
  }
}

TEST(GgufConfig, TheGraphFollowsFromArchitectureAndTensors) {
  const std::string zeros(4 * kHidden, '\0');
  const auto with = [&](GgufWriter writer, const char* tensor) {
    return Parse(writer.Tensor(tensor, {kHidden}, GgufTensorType::kF32, zeros));
  };
  EXPECT_TRUE(with(Model(), "blk.0.attn_q.bias").qkv_bias);
  EXPECT_TRUE(with(Model(), "blk.0.attn_output.bias").o_bias);
  EXPECT_FALSE(with(Model(), "output.weight").tie_word_embeddings);
  const ModelConfig qwen2 = Parse(Model("qwen2"));
  EXPECT_EQ(qwen2.architecture, "Qwen2ForCausalLM");
  EXPECT_TRUE(qwen2.qkv_bias);
  const ModelConfig qwen3 = Parse(Model("qwen3"));
  EXPECT_EQ(qwen3.architecture, "Qwen3ForCausalLM");
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
}

TEST(GgufConfig, SizesMayBeArrays) {
  const auto model = [](std::vector<int32_t> heads) {
    return Model()
        .Drop("llama.attention.head_count_kv")
        .Array("llama.attention.head_count_kv", GgufType::kI32, heads);
  };
  EXPECT_EQ(Parse(model({2, 2})).num_kv_heads, 2);
  ExpectError<Unsupported>(
      [&] {
        Parse(model({2, 4}));
      },
      {"llama.attention.head_count_kv[1]: found 4", "2, as in block 0"});
  ExpectError<InvalidInput>([&] { Parse(model({2})); }, {"an array of 2 integers"});
  EXPECT_EQ(Parse(Model().Drop("llama.attention.head_count_kv")).num_kv_heads, 4);
}

TEST(GgufConfig, HeadsMayHaveALengthOfTheirOwn) {
  const ModelConfig config = Parse(Model()
                                       .U32("llama.attention.key_length", 16)
                                       .U32("llama.attention.value_length", 16)
                                       .U32("llama.rope.dimension_count", 16));
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_EQ(config.q_dim(), 64);
  ExpectError<Unsupported>([] { Parse(Model().U32("llama.attention.value_length", 16)); },
                           {"llama.attention.value_length: found 16", "expected 8"});
  ExpectError<Unsupported>([] { Parse(Model().U32("llama.rope.dimension_count", 4)); },
                           {"llama.rope.dimension_count: found 4"});
  ExpectError<Unsupported>([] { Parse(Model().U32("llama.attention.key_length", 12)); },
                           {"llama.attention.key_length", "12", "multiple of 8"});
}

TEST(GgufConfig, ReadsRope) {
  GgufWriter linear = Model().F32("llama.rope.freq_base", 5e5f);
  linear.F32("llama.rope.scaling.factor", 4.0f);
  ModelConfig config = Parse(linear);
  EXPECT_EQ(config.rope_theta, 5e5);
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLinear) << "a factor without a type";
  EXPECT_EQ(config.rope_scaling.factor, 4.0);
  config = Parse(Model().F32("llama.rope.scale_linear", 2.0f));
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLinear) << "the older key";
  EXPECT_EQ(config.rope_scaling.factor, 2.0);
  config =
      Parse(Model().F32("llama.rope.scaling.factor", 4.0f).Text("llama.rope.scaling.type", "none"));
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kDefault);

  config = Parse(Model("qwen2")
                     .Text("qwen2.rope.scaling.type", "yarn")
                     .F32("qwen2.rope.scaling.factor", 4.0f)
                     .F32("qwen2.rope.scaling.attn_factor", 2.0f)
                     .U32("qwen2.rope.scaling.original_context_length", 4096));
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kYarn);
  EXPECT_EQ(config.rope_scaling.original_max_position_embeddings, 4096);
  EXPECT_EQ(config.rope_scaling.beta_fast, 32.0);
  EXPECT_DOUBLE_EQ(config.rope_scaling.attention_factor, 2.0 * (0.1 * std::log(4.0) + 1.0));
  EXPECT_EQ(config.max_position_embeddings, 16384) << "the original length times the factor";

  ExpectError<Unsupported>([] { Parse(Model().Text("llama.rope.scaling.type", "longrope")); },
                           {"longrope", "none, linear or yarn"});
  ExpectError<InvalidInput>([] { Parse(Model().Text("llama.rope.scaling.type", "yarn")); },
                            {"rope.scaling.factor: found nothing"});
  ExpectError<InvalidInput>([] { Parse(Model().F32("llama.rope.scaling.factor", 0.5f)); },
                            {"found 0.5", "at least 1"});
  ExpectError<Unsupported>(
      [] {
        Parse(Model()
                  .Text("llama.rope.scaling.type", "yarn")
                  .F32("llama.rope.scaling.factor", 2.0f)
                  .F32("llama.rope.scaling.yarn_ext_factor", 0.5f));
      },
      {"yarn_ext_factor: found 0.5"});
}

TEST(GgufConfig, ReadsRopeFactorsOfATensor) {
  const auto model = [](const std::vector<float>& factors) {
    GgufWriter writer = Model().F32("llama.rope.freq_base", 500000.0f);
    writer.Drop("llama.context_length").U32("llama.context_length", 131072);
    if (factors.empty()) return writer;
    return writer.Tensor("rope_freqs.weight", {factors.size()}, GgufTensorType::kF32,
                         Floats(factors));
  };
  std::vector<std::string> warnings;
  const ModelConfig config = Parse(model({1, 1, 2.5f, 8}), &warnings);
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kFactors);
  EXPECT_EQ(config.rope_scaling.factors, (std::vector<float>{1, 1, 2.5f, 8}));
  EXPECT_TRUE(warnings.empty());
  EXPECT_EQ(Parse(model({}), &warnings).rope_scaling.type, RopeScaling::Type::kDefault);
  ASSERT_EQ(warnings.size(), 1u);
  EXPECT_NE(warnings[0].find("before July 2024"), std::string::npos) << warnings[0];

  ExpectError<InvalidInput>([&] { Parse(model({1, 1})); }, {"rope_freqs.weight", "4 x F32"});
  ExpectError<InvalidInput>([&] { Parse(model({1, 1, 0, 1})); }, {"found 0", "above 0"});
  ExpectError<InvalidInput>([&] { Parse(model({1, 1, INFINITY, 1})); }, {"found inf"});
  ExpectError<Unsupported>(
      [&] {
        Parse(model({1, 1, 1, 1}).F32("llama.rope.scaling.factor", 2.0f));
      },
      {"rope_freqs.weight", "rope.scaling"});
}

TEST(GgufConfig, FindsAllEndsOfAnAnswer) {
  GgufWriter writer = Model();
  writer.Texts("tokenizer.ggml.tokens", {"a", "<|im_end|>", "<|end|>", "<|eot_id|>", "b", "c"});
  writer.Array<int32_t>("tokenizer.ggml.token_type", GgufType::kI32, {1, 3, 1, 3, 1, 1});
  writer.U32("tokenizer.ggml.bos_token_id", 4).U32("tokenizer.ggml.eos_token_id", 5);
  writer.U32("tokenizer.ggml.eot_token_id", 1).U32("tokenizer.ggml.eom_token_id", 0xffffffff);
  const ModelConfig config = Parse(writer);
  EXPECT_EQ(config.bos_token_id, 4);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{1, 3, 5}));
  ExpectError<InvalidInput>([] { Parse(Model().U32("tokenizer.ggml.eos_token_id", kVocab)); },
                            {"eos_token_id: found 10", "0 to 9"});
}

TEST(GgufConfig, ChecksTheVocabulary) {
  EXPECT_EQ(Parse(Model().U32("llama.vocab_size", kVocab)).vocab_size, kVocab);
  ExpectError<InvalidInput>([] { Parse(Model().U32("llama.vocab_size", 9)); },
                            {"llama.vocab_size: found 9", "expected 10"});
  EXPECT_EQ(Parse(Model().Texts("tokenizer.ggml.tokens", {"a"})).vocab_size, kVocab)
      << "rows beyond the tokens are padding";
  ExpectError<InvalidInput>(
      [] { Parse(Model().Texts("tokenizer.ggml.tokens", std::vector<std::string>(11))); },
      {"an array of 11 x string", "at most 10"});
}

TEST(GgufConfig, RefusesWhatIsMissingOrWrong) {
  for (const char* key :
       {"block_count", "embedding_length", "feed_forward_length", "context_length",
        "attention.head_count", "attention.layer_norm_rms_epsilon"}) {
    const std::string name = std::string("llama.") + key;
    ExpectError<InvalidInput>([&] { Parse(Model().Drop(name)); }, {name, "found nothing"});
  }
  const auto replace = [](const char* key, uint32_t value) {
    return Model().Drop(key).U32(key, value);
  };
  ExpectError<InvalidInput>([&] { Parse(replace("llama.attention.head_count", 0)); },
                            {"llama.attention.head_count: found 0"});
  ExpectError<InvalidInput>([&] { Parse(replace("llama.attention.head_count_kv", 3)); },
                            {"a divisor of llama.attention.head_count (4)"});
  ExpectError<InvalidInput>([&] { Parse(replace("llama.embedding_length", 33)); },
                            {"llama.embedding_length: found 33"});
  ExpectError<InvalidInput>([&] { Parse(replace("llama.block_count", 100000)); },
                            {"llama.block_count: found 100000"});
  ExpectError<Unsupported>([] { Parse(Model("gemma3")); },
                           {"general.architecture: found \"gemma3\"", "llama, qwen2, qwen3"});
  ExpectError<Unsupported>([] { Parse(Model("qwen2").U32("qwen2.expert_count", 8)); },
                           {"qwen2.expert_count: found 8", "of the architecture qwen2"});
  EXPECT_EQ(Parse(Model().U32("llama.expert_count", 0)).num_layers, 2);
  ExpectError<Unsupported>([] { Parse(Model().U32("llama.attention.sliding_window", 1024)); },
                           {"sliding_window: found 1024", "at least llama.context_length (4096)"});
  EXPECT_EQ(Parse(Model().U32("llama.attention.sliding_window", 4096)).num_layers, 2);
  ExpectError<Unsupported>([] { Parse(Model().F32("llama.attention.scale", 0.5f)); },
                           {"llama.attention.scale: found 0.5"});
  ExpectError<Unsupported>([] { Parse(Model().Bool("llama.attention.causal", false)); },
                           {"causal: found false"});
  const std::string malformed = PMKVQ_SOURCE_DIR "/tests/golden/gguf/malformed/";
  ExpectError<InvalidInput>([&] { LoadModelConfig(malformed + "heads-0.gguf"); },
                            {"llama.attention.head_count: found 0"});
  ExpectError<InvalidInput>([&] { LoadModelConfig(malformed + "architecture-missing.gguf"); },
                            {"general.architecture: found nothing"});
  ExpectError<InvalidInput>([&] { LoadModelConfig(malformed + "pre-unknown.gguf"); },
                            {"a vocabulary only"});
}

// A model with routers in those blocks.
GgufWriter ExpertModel(const std::string& architecture, const std::vector<int>& blocks) {
  GgufWriter writer = Model(architecture);
  writer.U32(architecture + ".expert_count", 4).U32(architecture + ".expert_used_count", 2);
  for (const int block : blocks) {
    writer.Tensor("blk." + std::to_string(block) + ".ffn_gate_inp.weight", {kHidden, 4},
                  GgufTensorType::kF32, std::string(4 * kHidden * 4, '\0'));
  }
  return writer;
}

TEST(GgufConfig, ReadsExperts) {
  const ModelConfig mixtral = Parse(ExpertModel("llama", {0, 1}));
  EXPECT_EQ(mixtral.architecture, "MixtralForCausalLM");
  EXPECT_EQ(mixtral.model_type, "mixtral");
  ASSERT_TRUE(mixtral.moe.has_value());
  EXPECT_EQ(mixtral.moe->num_experts, 4);
  EXPECT_EQ(mixtral.moe->num_chosen, 2);
  EXPECT_EQ(mixtral.moe->expert_size, 48);
  EXPECT_TRUE(mixtral.moe->normalize);
  EXPECT_EQ(mixtral.moe->blocks, (std::vector<bool>{true, true}));
  GgufWriter writer = ExpertModel("qwen3moe", {1});
  writer.U32("qwen3moe.expert_feed_forward_length", 24);
  const ModelConfig qwen = Parse(writer);
  EXPECT_EQ(qwen.architecture, "Qwen3MoeForCausalLM");
  EXPECT_EQ(qwen.model_type, "qwen3_moe");
  EXPECT_TRUE(qwen.qk_norm);
  ASSERT_TRUE(qwen.moe.has_value());
  EXPECT_EQ(qwen.intermediate_size, 48);
  EXPECT_EQ(qwen.moe->expert_size, 24);
  EXPECT_TRUE(qwen.moe->normalize) << "as llama.cpp does, where the key is absent";
  EXPECT_EQ(qwen.moe->blocks, (std::vector<bool>{false, true}));
  writer.Bool("qwen3moe.expert_weights_norm", false);
  EXPECT_FALSE(Parse(writer).moe->normalize);
}

TEST(GgufConfig, RefusesOtherExperts) {
  const auto parse = [](const char* key, uint32_t value) {
    GgufWriter writer = ExpertModel("llama", {0, 1});
    Parse(writer.Drop(key).U32(key, value));
  };
  for (const auto& [key, value] :
       std::vector<std::pair<const char*, uint32_t>>{{"llama.expert_shared_count", 1},
                                                     {"llama.expert_group_count", 2},
                                                     {"llama.expert_gating_func", 2}}) {
    ExpectError<Unsupported>([&, key = key, value = value] { parse(key, value); },
                             {std::string(key) + ": found " + std::to_string(value)});
  }
  parse("llama.expert_gating_func", 1);
  parse("llama.expert_shared_count", 0);
  ExpectError<Unsupported>(
      [] { Parse(ExpertModel("llama", {0}).F32("llama.expert_weights_scale", 2.5f)); },
      {"llama.expert_weights_scale: found 2.5, expected 1"});
  ExpectError<InvalidInput>([&] { parse("llama.expert_count", 5000); },
                            {"llama.expert_count: found 5000"});
  ExpectError<InvalidInput>([&] { parse("llama.expert_used_count", 5); },
                            {"llama.expert_used_count: found 5", "1 to 4"});
  ExpectError<InvalidInput>(
      [] { Parse(ExpertModel("llama", {0}).Drop("llama.expert_used_count")); },
      {"llama.expert_used_count: found nothing"});
  ExpectError<InvalidInput>([] { Parse(ExpertModel("qwen3moe", {0})); },
                            {"qwen3moe.expert_feed_forward_length: found nothing"});
  ExpectError<InvalidInput>([] { Parse(Model("qwen3moe")); },
                            {"qwen3moe.expert_count: found nothing"});
  ExpectError<InvalidInput>(
      [] { Parse(ExpertModel("llama", {})); },
      {"tensor 'blk.0.ffn_gate_inp.weight': found nothing, expected a router of 4 experts"});
}

// As llama.cpp's converter has written DeepSeek since April 2025; before, without the lengths
// ending in _mla, with those of heads, and with one tensor for keys and values.
GgufWriter DeepSeek(bool is_new = true) {
  GgufWriter writer = Model("deepseek2");
  const std::string a = "deepseek2.";
  writer.Drop(a + "attention.head_count_kv").U32(a + "attention.head_count_kv", is_new ? 1 : 4);
  writer.U32(a + "attention.kv_lora_rank", 16).U32(a + "rope.dimension_count", 8);
  writer.U32(a + "attention.key_length", is_new ? 24 : 20);
  writer.U32(a + "attention.value_length", is_new ? 16 : 10);
  if (is_new) {
    writer.U32(a + "attention.key_length_mla", 20).U32(a + "attention.value_length_mla", 10);
    writer.Tensor("blk.0.attn_k_b.weight", {12, 16, 4}, GgufTensorType::kF32,
                  std::string(4 * 12 * 16 * 4, '\0'));
  }
  return writer;
}

GgufWriter DeepSeekExperts() {
  GgufWriter writer = DeepSeek();
  const std::string a = "deepseek2.";
  writer.U32(a + "expert_count", 8).U32(a + "expert_used_count", 3);
  writer.U32(a + "expert_feed_forward_length", 24).U32(a + "expert_shared_count", 2);
  writer.F32(a + "expert_weights_scale", 2.5f);
  writer.Tensor("blk.1.ffn_gate_inp.weight", {kHidden, 8}, GgufTensorType::kF32,
                std::string(4 * kHidden * 8, '\0'));
  return writer;
}

TEST(GgufConfig, ReadsLatentAttention) {
  for (const bool is_new : {true, false}) {
    const ModelConfig config = Parse(DeepSeek(is_new));
    EXPECT_EQ(config.architecture, "DeepseekV2ForCausalLM");
    EXPECT_EQ(config.head_dim, 20);
    EXPECT_EQ(config.num_kv_heads, 1);
    EXPECT_FALSE(config.moe.has_value());
    const MlaConfig mla = config.mla.value();
    EXPECT_EQ(mla.query_rank, 0);
    EXPECT_EQ(mla.latent, 16);
    EXPECT_EQ(mla.nope_dim, 12);
    EXPECT_EQ(mla.rope_dim, 8);
    EXPECT_EQ(mla.value_dim, 10);
    EXPECT_TRUE(mla.rope_in_pairs);
    EXPECT_EQ(mla.split_up, is_new);
    EXPECT_EQ(mla.score_factor, 1);
    EXPECT_EQ(mla.norm_eps, 1e-6);
  }
  EXPECT_EQ(Parse(DeepSeek().U32("deepseek2.attention.q_lora_rank", 24)).mla->query_rank, 24);
}

TEST(GgufConfig, ReadsYarnOfLatentAttention) {
  const std::string a = "deepseek2.rope.scaling.";
  GgufWriter writer = DeepSeek();
  writer.Text(a + "type", "yarn").F32(a + "factor", 40).U32(a + "original_context_length", 4096);
  const ModelConfig without = Parse(writer);
  EXPECT_EQ(without.rope_scaling.attention_factor, 1) << "cosines have no factor";
  EXPECT_EQ(without.mla->score_factor, 1);
  EXPECT_EQ(without.max_position_embeddings, 163840);
  const ModelConfig config = Parse(writer.F32(a + "yarn_log_multiplier", 0.0707f));
  EXPECT_EQ(config.rope_scaling.attention_factor, 1);
  EXPECT_NEAR(config.mla->score_factor, std::pow(0.0707 * std::log(40.0) + 1, 2), 1e-6);
  ExpectError<Unsupported>([&] { Parse(writer.F32(a + "attn_factor", 0.5f)); }, {"attn_factor"});
}

TEST(GgufConfig, ReadsExpertsOfDeepSeek) {
  const ModelConfig v2 = Parse(DeepSeekExperts());
  EXPECT_EQ(v2.architecture, "DeepseekV2ForCausalLM");
  EXPECT_EQ(v2.moe->blocks, (std::vector<bool>{false, true}));
  EXPECT_EQ(v2.moe->shared_size, 48);
  EXPECT_EQ(v2.moe->weight_factor, 2.5);
  EXPECT_EQ(v2.moe->score, ExpertScore::kSoftmax);
  EXPECT_FALSE(v2.moe->normalize || v2.moe->choice_bias);
  EXPECT_EQ(v2.moe->num_groups, 1);
  const ModelConfig normal = Parse(DeepSeekExperts().Bool("deepseek2.expert_weights_norm", true));
  EXPECT_TRUE(normal.moe->normalize);
  EXPECT_EQ(normal.moe->weight_factor, 1) << "V2 multiplies weights that are not normalised";

  GgufWriter writer = DeepSeekExperts();
  writer.U32("deepseek2.expert_gating_func", 2).Bool("deepseek2.expert_weights_norm", true);
  writer.U32("deepseek2.expert_group_count", 4).U32("deepseek2.expert_group_used_count", 2);
  writer.Tensor("blk.1.exp_probs_b.bias", {8}, GgufTensorType::kF32, std::string(32, '\0'));
  const ModelConfig v3 = Parse(writer);
  EXPECT_EQ(v3.architecture, "DeepseekV3ForCausalLM");
  EXPECT_EQ(v3.moe->score, ExpertScore::kSigmoid);
  EXPECT_TRUE(v3.moe->normalize && v3.moe->choice_bias);
  EXPECT_EQ(v3.moe->weight_factor, 2.5);
  EXPECT_EQ(v3.moe->num_groups, 4);
  EXPECT_EQ(v3.moe->num_chosen_groups, 2);
  EXPECT_EQ(v3.moe->group_top, 2);
}

TEST(GgufConfig, RefusesOtherLatents) {
  const std::string a = "deepseek2.";
  const auto with = [&](const std::string& key, uint32_t value) {
    return [&, key, value] { Parse(DeepSeekExperts().Drop(a + key).U32(a + key, value)); };
  };
  ExpectError<Unsupported>(with("attention.kv_lora_rank", 20), {"kv_lora_rank", "multiple of 8"});
  ExpectError<Unsupported>(with("rope.dimension_count", 12), {"rope.dimension_count"});
  ExpectError<InvalidInput>(with("attention.key_length_mla", 8),
                            {"key_length_mla", "more than deepseek2.rope.dimension_count (8)"});
  ExpectError<Unsupported>(with("expert_gating_func", 3), {"expert_gating_func", "2 (sigmoid)"});
  ExpectError<InvalidInput>(with("expert_group_count", 3),
                            {"expert_group_count", "divisor of deepseek2.expert_count (8)"});
  ExpectError<InvalidInput>([&] { Parse(DeepSeek().Drop(a + "attention.kv_lora_rank")); },
                            {"kv_lora_rank"});
}

TEST(GgufNames, LeadThereAndBack) {
  for (const auto& [stored, name] : std::vector<std::pair<std::string, std::string>>{
           {"token_embd.weight", "embedding"},
           {"output.weight", "output_head"},
           {"output_norm.weight", "final_norm"},
           {"blk.0.attn_norm.weight", "blocks.0.attn.norm"},
           {"blk.12.attn_k.bias", "blocks.12.attn.k.bias"},
           {"blk.3.attn_q_norm.weight", "blocks.3.attn.q_norm"},
           {"blk.107.ffn_down.weight", "blocks.107.mlp.down"},
           {"blk.2.attn_kv_a_mqa.weight", "blocks.2.attn.kv_a"},
           {"blk.2.attn_kv_a_norm.weight", "blocks.2.attn.kv_a_norm"},
           {"blk.2.attn_q_a_norm.weight", "blocks.2.attn.q_a_norm"},
           {"blk.2.attn_k_b.weight", "blocks.2.attn.k_b"},
           {"blk.2.attn_kv_b.weight", "blocks.2.attn.kv_b"},
           {"blk.2.exp_probs_b.bias", "blocks.2.mlp.router.bias"},
           {"blk.2.ffn_down_shexp.weight", "blocks.2.mlp.shared.down"},
           {"blk.1.ffn_gate_inp.weight", "blocks.1.mlp.router"},
           {"blk.1.ffn_down_exps.weight", "blocks.1.mlp.experts.*.down"}}) {
    EXPECT_EQ(CanonicalNameOfGguf(stored), name);
    EXPECT_EQ(GgufName(name), stored);
  }
  for (const char* stored :
       {"", "rope_freqs.weight", "blk.0.attn_rot_embd", "blk.x.attn_q.weight", "model.norm.weight",
        "blk.0.ffn_gate_shexp.bias", "blk.0.ffn_gate_exps.bias", "blk.0.ffn_up..weight"}) {
    EXPECT_EQ(CanonicalNameOfGguf(stored), "") << stored;
  }
  EXPECT_EQ(GgufName("blocks.1.mlp.experts.12.up"), "blk.1.ffn_up_exps.weight");
  EXPECT_EQ(CanonicalNameOfGguf("blk.1.ffn_up.12.weight"), "blocks.1.mlp.experts.12.up");
  EXPECT_TRUE(IsOfBlockOfGguf("blk.0.ffn_gate_exps.weight"));
  EXPECT_FALSE(IsOfBlockOfGguf("blk.0.attn_rot_embd"));
  EXPECT_FALSE(IsOfBlockOfGguf("rope_freqs.weight"));
}

}  // namespace
}  // namespace pmkvq
