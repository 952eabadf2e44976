// Mixtures of experts in config.json.
#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/io/model_config.h"
#include "support/model_config_text.h"

namespace pmkvq {
namespace {

using testing_support::ExpectBad;
using testing_support::Fields;
using testing_support::Llama;
using testing_support::Parse;

constexpr char kQwen[] = "Qwen3MoeForCausalLM";
constexpr char kMixtral[] = "MixtralForCausalLM";

MoeConfig Moe(const std::string& architecture, const Fields& changes = {}) {
  return Parse(architecture, changes).moe.value();
}

TEST(MoeConfig, Qwen3) {
  const Fields fields = {{"num_experts", "16"},
                         {"num_experts_per_tok", "4"},
                         {"moe_intermediate_size", "96"},
                         {"norm_topk_prob", "true"}};
  const ModelConfig config = Parse(kQwen, fields);
  EXPECT_EQ(config.model_type, "qwen3_moe");
  EXPECT_TRUE(config.qk_norm);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.intermediate_size, 1024) << "of dense blocks";
  const MoeConfig moe = config.moe.value();
  EXPECT_EQ(moe.num_experts, 16);
  EXPECT_EQ(moe.num_chosen, 4);
  EXPECT_EQ(moe.expert_size, 96);
  EXPECT_TRUE(moe.normalize);
  EXPECT_EQ(moe.blocks, (std::vector<bool>{true, true, true, true}));
  EXPECT_TRUE(Parse(kQwen, {{"attention_bias", "true"}}).o_bias);
}

TEST(MoeConfig, BlocksOfQwen3) {
  const auto blocks = [](const Fields& changes) { return Moe(kQwen, changes).blocks; };
  EXPECT_EQ(blocks({{"mlp_only_layers", "[0, 2, 9]"}}),
            (std::vector<bool>{false, true, false, true}));
  EXPECT_EQ(blocks({{"mlp_only_layers", "null"}}), (std::vector<bool>{true, true, true, true}));
  EXPECT_EQ(blocks({{"decoder_sparse_step", "2"}}), (std::vector<bool>{false, true, false, true}));
  EXPECT_EQ(blocks({{"decoder_sparse_step", "3"}}), (std::vector<bool>{false, false, true, false}));
  EXPECT_FALSE(Parse(kQwen, {{"decoder_sparse_step", "5"}}).moe.has_value());
  EXPECT_FALSE(Parse(kQwen, {{"mlp_only_layers", "[0, 1, 2, 3]"}}).moe.has_value());
  EXPECT_FALSE(Parse(kQwen, {{"num_experts", "0"}}).moe.has_value());
}

TEST(MoeConfig, Mixtral) {
  const ModelConfig config =
      Parse(kMixtral,
            {{"num_local_experts", "4"}, {"num_experts_per_tok", "3"}, {"attention_bias", "true"}});
  EXPECT_EQ(config.model_type, "mixtral");
  EXPECT_FALSE(config.qkv_bias || config.o_bias || config.qk_norm);
  EXPECT_TRUE(config.sliding_windows.empty());
  const MoeConfig moe = config.moe.value();
  EXPECT_EQ(moe.num_experts, 4);
  EXPECT_EQ(moe.num_chosen, 3);
  EXPECT_EQ(moe.expert_size, 1024);
  EXPECT_TRUE(moe.normalize) << "softmax over the chosen ones";
  EXPECT_EQ(moe.blocks, (std::vector<bool>{true, true, true, true}));
  EXPECT_EQ(Parse(kMixtral, {{"sliding_window", "4096"}}).sliding_window(2), 4096);
}

TEST(MoeConfig, AbsentKeysAreWhatTransformersAssumes) {
  const MoeConfig qwen = Moe(kQwen);
  EXPECT_EQ(qwen.num_experts, 128);
  EXPECT_EQ(qwen.num_chosen, 8);
  EXPECT_EQ(qwen.expert_size, 768);
  EXPECT_FALSE(qwen.normalize);
  const MoeConfig mixtral = Moe(kMixtral);
  EXPECT_EQ(mixtral.num_experts, 8);
  EXPECT_EQ(mixtral.num_chosen, 2);
  EXPECT_EQ(Parse(kMixtral, {{"rope_theta", ""}}).rope_theta, 1e6);
  EXPECT_EQ(Parse(kQwen, {{"rope_theta", ""}}).rope_theta, 1e4);
}

TEST(MoeConfig, NumbersMustBeSensible) {
  ExpectBad<InvalidInput>(kQwen, {{"num_experts", "1025"}},
                          {"num_experts: found 1025, expected an integer from 0 to 1024"});
  ExpectBad<InvalidInput>(kMixtral, {{"num_local_experts", "0"}}, {"num_local_experts: found 0"});
  ExpectBad<InvalidInput>(kQwen, {{"num_experts", "4"}},
                          {"num_experts_per_tok: found nothing, expected at most 4"});
  ExpectBad<InvalidInput>(
      kMixtral, {{"num_experts_per_tok", "9"}},
      {"num_experts_per_tok: found 9, expected at most 8, which num_local_experts says"});
  for (const char* key : {"num_experts_per_tok", "moe_intermediate_size", "decoder_sparse_step"}) {
    ExpectBad<InvalidInput>(kQwen, {{key, "0"}}, {std::string(key) + ": found 0"});
    ExpectBad<InvalidInput>(kQwen, {{key, "\"8\""}}, {std::string(key) + ": found \"8\""});
  }
  ExpectBad<InvalidInput>(kQwen, {{"mlp_only_layers", "3"}}, {"mlp_only_layers"});
  ExpectBad<Unsupported>(kQwen, {{"use_sliding_window", "true"}}, {"use_sliding_window"});
  // A short text must not ask for a list of four million matrices.
  ExpectBad<InvalidInput>(kQwen, {{"num_experts", "1024"}, {"num_hidden_layers", "4096"}},
                          {"num_experts: found 1024, expected at most 65536 experts in all"});
}

TEST(MoeConfig, OthersHaveNone) {
  EXPECT_FALSE(Llama().moe.has_value());
  ExpectBad<Unsupported>("Qwen3ForCausalLM", {{"num_experts", "8"}},
                         {"num_experts: found 8", "experts of this architecture"});
}

}  // namespace
}  // namespace pmkvq
