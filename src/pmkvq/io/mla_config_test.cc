// Latent attention and DeepSeek's experts in config.json.
#include "pmkvq/io/mla_config.h"

#include <gtest/gtest.h>

#include <cmath>

#include "pmkvq/base/error.h"
#include "support/model_config_text.h"

namespace pmkvq {
namespace {

using testing_support::ExpectBad;
using testing_support::Fields;

constexpr char kV2[] = "DeepseekV2ForCausalLM";
constexpr char kV3[] = "DeepseekV3ForCausalLM";

// DeepSeek-V2-Lite's, with the sizes of testing_support::ConfigText.
Fields Lite(Fields changes = {}) {
  const Fields fields = {{"num_key_value_heads", "8"},   {"q_lora_rank", "null"},
                         {"kv_lora_rank", "512"},        {"qk_rope_head_dim", "64"},
                         {"qk_nope_head_dim", "128"},    {"v_head_dim", "96"},
                         {"n_routed_experts", "64"},     {"n_shared_experts", "2"},
                         {"num_experts_per_tok", "6"},   {"moe_intermediate_size", "1408"},
                         {"first_k_dense_replace", "1"}, {"norm_topk_prob", "false"},
                         {"scoring_func", "\"softmax\""}};
  for (const auto& [key, value] : fields) changes.emplace(key, value);
  return changes;
}

Fields V3(Fields changes = {}) {
  changes.emplace("q_lora_rank", "1536");
  changes.emplace("scoring_func", "\"sigmoid\"");
  changes.emplace("topk_method", "\"noaux_tc\"");
  changes.emplace("norm_topk_prob", "true");
  changes.emplace("routed_scaling_factor", "2.5");
  return Lite(changes);
}

ModelConfig Parse(const std::string& architecture, const Fields& changes) {
  return testing_support::Parse(architecture, changes);
}

TEST(MlaConfig, DeepSeekV2) {
  const ModelConfig config = Parse(kV2, Lite());
  EXPECT_EQ(config.model_type, "deepseek_v2");
  const MlaConfig mla = config.mla.value();
  EXPECT_EQ(mla.query_rank, 0);
  EXPECT_EQ(mla.latent, 512);
  EXPECT_EQ(mla.rope_dim, 64);
  EXPECT_EQ(mla.nope_dim, 128);
  EXPECT_EQ(mla.value_dim, 96);
  EXPECT_TRUE(mla.rope_in_pairs);
  EXPECT_EQ(mla.score_factor, 1);
  EXPECT_EQ(mla.norm_eps, 1e-6);
  EXPECT_EQ(config.rms_norm_eps, 1e-5) << "of the other norms";
  EXPECT_EQ(config.head_dim, 192);
  EXPECT_EQ(config.rope_dim(), 64);
  EXPECT_EQ(config.q_dim(), 8 * 192);
  EXPECT_FALSE(config.tie_word_embeddings || config.qkv_bias || config.o_bias || config.qk_norm);
  EXPECT_EQ(config.bos_token_id, 0);
  EXPECT_EQ(config.eos_token_ids, std::vector<int64_t>{1});
  EXPECT_FALSE(Parse(kV2, Lite({{"rope_interleave", "false"}})).mla->rope_in_pairs);
  EXPECT_EQ(Parse(kV2, Lite({{"q_lora_rank", "1536"}})).mla->query_rank, 1536);
}

TEST(MlaConfig, ExpertsOfDeepSeekV2) {
  const MoeConfig moe = Parse(kV2, Lite()).moe.value();
  EXPECT_EQ(moe.num_experts, 64);
  EXPECT_EQ(moe.num_chosen, 6);
  EXPECT_EQ(moe.expert_size, 1408);
  EXPECT_EQ(moe.shared_size, 2 * 1408);
  EXPECT_EQ(moe.blocks, (std::vector<bool>{false, true, true, true}));
  EXPECT_EQ(moe.score, ExpertScore::kSoftmax);
  EXPECT_FALSE(moe.normalize || moe.choice_bias);
  EXPECT_EQ(moe.weight_factor, 1);
  EXPECT_EQ(moe.num_groups, 1);
  const MoeConfig grouped = Parse(kV2, Lite({{"topk_method", "\"group_limited_greedy\""},
                                             {"n_group", "8"},
                                             {"topk_group", "3"},
                                             {"routed_scaling_factor", "16.0"}}))
                                .moe.value();
  EXPECT_EQ(grouped.num_groups, 8);
  EXPECT_EQ(grouped.num_chosen_groups, 3);
  EXPECT_EQ(grouped.group_top, 1);
  EXPECT_EQ(grouped.weight_factor, 16);
  // The original code multiplies weights only where they are not normalised.
  const MoeConfig normal =
      Parse(kV2, Lite({{"norm_topk_prob", "true"}, {"routed_scaling_factor", "16"}})).moe.value();
  EXPECT_TRUE(normal.normalize);
  EXPECT_EQ(normal.weight_factor, 1);
  // "greedy" has no groups, whatever the config says of them.
  EXPECT_EQ(Parse(kV2, Lite({{"n_group", "8"}, {"topk_group", "3"}})).moe->num_groups, 1);
}

TEST(MlaConfig, BlocksAndSharedExperts) {
  const auto blocks = [](const Fields& changes) { return Parse(kV2, Lite(changes)).moe->blocks; };
  EXPECT_EQ(blocks({{"first_k_dense_replace", "0"}}), (std::vector<bool>{true, true, true, true}));
  EXPECT_EQ(blocks({{"moe_layer_freq", "2"}}), (std::vector<bool>{false, false, true, false}));
  EXPECT_EQ(blocks({{"first_k_dense_replace", "3"}}),
            (std::vector<bool>{false, false, false, true}));
  EXPECT_FALSE(Parse(kV2, Lite({{"first_k_dense_replace", "4"}})).moe.has_value());
  EXPECT_FALSE(Parse(kV2, Lite({{"n_routed_experts", "null"}})).moe.has_value());
  EXPECT_EQ(Parse(kV2, Lite({{"n_shared_experts", "null"}})).moe->shared_size, 0);
}

TEST(MlaConfig, DeepSeekV3AndKimi) {
  const ModelConfig config =
      Parse(kV3, V3({{"n_group", "8"}, {"topk_group", "4"}, {"num_nextn_predict_layers", "1"}}));
  EXPECT_EQ(config.model_type, "deepseek_v3");
  EXPECT_EQ(config.num_skipped_layers, 1);
  const MoeConfig moe = config.moe.value();
  EXPECT_EQ(moe.score, ExpertScore::kSigmoid);
  EXPECT_TRUE(moe.normalize);
  EXPECT_TRUE(moe.choice_bias);
  EXPECT_EQ(moe.weight_factor, 2.5);
  EXPECT_EQ(moe.num_groups, 8);
  EXPECT_EQ(moe.num_chosen_groups, 4);
  EXPECT_EQ(moe.group_top, 2);
  const ModelConfig kimi = Parse(kV3, V3({{"model_type", "\"kimi_k2\""},
                                          {"n_group", "1"},
                                          {"topk_group", "1"},
                                          {"routed_scaling_factor", "2.827"}}));
  EXPECT_EQ(kimi.moe->num_groups, 1);
  EXPECT_EQ(kimi.moe->weight_factor, 2.827);
  EXPECT_EQ(kimi.num_skipped_layers, 0);
}

// Absent keys of V3 are those of DeepseekV3Config in transformers.
TEST(MlaConfig, AbsentKeysOfV3) {
  const MoeConfig moe =
      Parse(kV3, Lite({{"scoring_func", ""}, {"norm_topk_prob", ""}, {"n_shared_experts", ""}}))
          .moe.value();
  EXPECT_EQ(moe.num_groups, 8);
  EXPECT_EQ(moe.num_chosen_groups, 4);
  EXPECT_EQ(moe.weight_factor, 2.5);
  EXPECT_EQ(moe.shared_size, 1408);
  EXPECT_TRUE(moe.normalize);
  EXPECT_FALSE(
      Parse(kV3,
            Lite({{"scoring_func", ""}, {"first_k_dense_replace", ""}, {"num_hidden_layers", "3"}}))
          .moe.has_value())
      << "the first three blocks are dense";
}

TEST(MlaConfig, YarnMultipliesScores) {
  const auto rope = [](const std::string& weights) {
    return Parse(kV2, Lite({{"rope_scaling",
                             R"({"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1,
                                 "original_max_position_embeddings": 4096)" +
                                 weights + "}"}}));
  };
  const ModelConfig lite = rope(R"(, "mscale": 0.707, "mscale_all_dim": 0.707)");
  const double m = 0.0707 * std::log(40.0) + 1;
  EXPECT_NEAR(lite.mla->score_factor, m * m, 1e-12);
  EXPECT_NEAR(lite.mla->score_factor, 1.59, 0.005) << "methods: V2-Lite";
  EXPECT_EQ(lite.rope_scaling.attention_factor, 1);
  EXPECT_EQ(lite.max_position_embeddings, 163840);
  const ModelConfig v3 = rope(R"(, "mscale": 1.0, "mscale_all_dim": 1.0)");
  EXPECT_NEAR(v3.mla->score_factor, 1.87, 0.005);
  const ModelConfig uneven = rope(R"(, "mscale": 1.0, "mscale_all_dim": 0.5)");
  EXPECT_NEAR(uneven.rope_scaling.attention_factor,
              (0.1 * std::log(40.0) + 1) / (0.05 * std::log(40.0) + 1), 1e-12);
  EXPECT_EQ(rope("").mla->score_factor, 1) << "no mscale_all_dim";
  EXPECT_EQ(Parse(kV2, Lite()).mla->score_factor, 1);
}

TEST(MlaConfig, SizesMustBeThereAndSensible) {
  for (const char* key : {"kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim"}) {
    ExpectBad<InvalidInput>(kV2, Lite({{key, ""}}), {std::string(key)});
    ExpectBad<InvalidInput>(kV2, Lite({{key, "0"}}), {std::string(key) + ": found 0"});
  }
  ExpectBad<InvalidInput>(kV2, Lite({{"q_lora_rank", ""}}),
                          {"q_lora_rank: found nothing, expected an integer, or null"});
  ExpectBad<Unsupported>(kV2, Lite({{"kv_lora_rank", "500"}}),
                         {"kv_lora_rank: found 500", "multiple of 128"});
  ExpectBad<Unsupported>(kV2, Lite({{"qk_rope_head_dim", "136"}}),
                         {"qk_rope_head_dim: found 136", "up to 128"});
  ExpectBad<InvalidInput>(kV2, Lite({{"num_key_value_heads", "2"}}),
                          {"num_key_value_heads: found 2", "num_attention_heads"});
  ExpectBad<InvalidInput>(kV2, Lite({{"num_experts_per_tok", "65"}}),
                          {"num_experts_per_tok: found 65", "at most 64"});
  ExpectBad<InvalidInput>(
      kV2, Lite({{"n_shared_experts", "1024"}, {"moe_intermediate_size", "4194304"}}),
      {"n_shared_experts: found 1024"});
  ExpectBad<InvalidInput>(kV3, V3({{"n_group", "7"}}), {"n_group: found 7", "divisor"});
  ExpectBad<InvalidInput>(kV3, V3({{"n_group", "4"}, {"topk_group", "5"}}),
                          {"topk_group: found 5", "n_group (4)"});
  ExpectBad<InvalidInput>(kV3, V3({{"n_group", "64"}, {"topk_group", "2"}}),
                          {"num_experts_per_tok: found 6", "at most 2"});
  ExpectBad<InvalidInput>(kV3, V3({{"routed_scaling_factor", "0"}}), {"routed_scaling_factor"});
}

TEST(MlaConfig, OtherGraphsAreRefusedByName) {
  ExpectBad<Unsupported>("DeepseekV32ForCausalLM", Lite(),
                         {"DeepseekV32ForCausalLM", "DeepseekV2ForCausalLM"});
  ExpectBad<Unsupported>(kV3, V3({{"index_topk", "2048"}}), {"index_topk: found 2048"});
  ExpectBad<Unsupported>(kV3, V3({{"attention_bias", "true"}}), {"attention_bias"});
  ExpectBad<Unsupported>(kV3, V3({{"mla_use_nope", "true"}}), {"mla_use_nope"});
  ExpectBad<Unsupported>(kV3, V3({{"topk_method", "\"greedy\""}}),
                         {"topk_method: found \"greedy\""});
  ExpectBad<Unsupported>(kV2, Lite({{"topk_method", "\"noaux_tc\""}}), {"topk_method"});
  ExpectBad<Unsupported>(kV2, Lite({{"scoring_func", "\"sigmoid\""}}), {"scoring_func"});
  ExpectBad<InvalidInput>(kV2, Lite({{"model_type", "\"kimi_k2\""}}), {"model_type"});
}

}  // namespace
}  // namespace pmkvq
