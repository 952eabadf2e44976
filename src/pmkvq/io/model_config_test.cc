#include "pmkvq/io/model_config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/model_config_text.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ConfigText;
using testing_support::ExpectBad;
using testing_support::ExpectError;
using testing_support::Fields;
using testing_support::Gemma;
using testing_support::Llama;
using testing_support::Parse;
using testing_support::TempFolder;

TEST(ModelConfig, Llama) {
  const ModelConfig config = Llama();
  EXPECT_EQ(config.architecture, "LlamaForCausalLM");
  EXPECT_EQ(config.model_type, "llama");
  EXPECT_EQ(config.vocab_size, 1000);
  EXPECT_EQ(config.hidden_size, 512);
  EXPECT_EQ(config.intermediate_size, 1024);
  EXPECT_EQ(config.num_layers, 4);
  EXPECT_EQ(config.num_heads, 8);
  EXPECT_EQ(config.num_kv_heads, 2);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.q_dim(), 512);
  EXPECT_EQ(config.kv_dim(), 128);
  EXPECT_EQ(config.group_size(), 64);
  EXPECT_EQ(config.max_position_embeddings, 32768);
  EXPECT_EQ(config.rms_norm_eps, 1e-5);
  EXPECT_EQ(config.rope_theta, 500000.0);
  EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kDefault);
  EXPECT_FALSE(config.tie_word_embeddings || config.qkv_bias || config.o_bias || config.qk_norm);
  EXPECT_EQ(config.bos_token_id, 1);  // LlamaConfig's, where the keys are absent.
  EXPECT_EQ(config.eos_token_ids, std::vector<int64_t>{2});
}

TEST(ModelConfig, AbsentKeysAreWhatTransformersAssumes) {
  const Fields none = {{"num_key_value_heads", ""},
                       {"num_attention_heads", "32"},
                       {"sliding_window", "null"},
                       {"hidden_size", "1024"}};
  EXPECT_EQ(Parse("LlamaForCausalLM", none).num_kv_heads, 32);
  EXPECT_EQ(Parse("MistralForCausalLM", none).num_kv_heads, 8);
  EXPECT_EQ(Parse("Qwen2ForCausalLM", none).num_kv_heads, 32);
  ExpectBad<InvalidInput>("Qwen2ForCausalLM", {{"num_key_value_heads", ""}},
                          {"num_key_value_heads: found nothing, expected a divisor of "
                           "num_attention_heads (8); absent means 32"});
  Fields null_heads = none;
  null_heads["num_key_value_heads"] = "null";
  EXPECT_EQ(Parse("MistralForCausalLM", null_heads).num_kv_heads, 32);
  EXPECT_EQ(Parse("Qwen3ForCausalLM").head_dim, 128);
  EXPECT_EQ(Parse("Qwen2ForCausalLM").head_dim, 64);
  ExpectBad<InvalidInput>("Qwen3ForCausalLM", {{"head_dim", "null"}}, {"head_dim: found null"});
  for (const char* architecture : {"Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    EXPECT_EQ(Parse(architecture).bos_token_id, -1);
    EXPECT_TRUE(Parse(architecture).eos_token_ids.empty());
  }
  const ModelConfig null_ids = Llama({{"bos_token_id", "null"}, {"eos_token_id", "null"}});
  EXPECT_EQ(null_ids.bos_token_id, -1);
  EXPECT_TRUE(null_ids.eos_token_ids.empty());
  EXPECT_TRUE(Llama({{"vocab_size", "2"}}).eos_token_ids.empty());
  EXPECT_FALSE(Parse("MistralForCausalLM", {{"attention_bias", "true"}, {"sliding_window", "null"}})
                   .qkv_bias);
}

TEST(ModelConfig, DefaultsOfMissingFields) {
  const ModelConfig config = Llama({{"num_key_value_heads", ""},
                                    {"rms_norm_eps", ""},
                                    {"rope_theta", ""},
                                    {"hidden_act", ""},
                                    {"head_dim", "null"}});
  EXPECT_EQ(config.num_kv_heads, 8);
  EXPECT_EQ(config.rms_norm_eps, 1e-6);
  EXPECT_EQ(config.rope_theta, 10000.0);
  EXPECT_EQ(config.head_dim, 64);
}

TEST(ModelConfig, BiasesAndNormsOfTheArchitectures) {
  const auto flags = [](const std::string& architecture, const Fields& changes) {
    const ModelConfig config = Parse(architecture, changes);
    return std::vector<bool>{config.qkv_bias, config.o_bias, config.qk_norm};
  };
  const Fields bias = {{"attention_bias", "true"}};
  EXPECT_EQ(flags("LlamaForCausalLM", bias), (std::vector<bool>{true, true, false}));
  EXPECT_EQ(flags("MistralForCausalLM", {{"sliding_window", "null"}}),
            (std::vector<bool>{false, false, false}));
  EXPECT_EQ(flags("Qwen2ForCausalLM", {}), (std::vector<bool>{true, false, false}));
  EXPECT_EQ(flags("Qwen3ForCausalLM", {}), (std::vector<bool>{false, false, true}));
  EXPECT_EQ(flags("Qwen3ForCausalLM", bias), (std::vector<bool>{true, true, true}));
}

TEST(ModelConfig, Architectures) {
  EXPECT_EQ(Parse("Qwen3ForCausalLM", {{"model_type", "\"qwen3\""}}).model_type, "qwen3");
  ExpectBad<Unsupported>("GPT2LMHeadModel", {},
                         {"[config.json] architectures[0]: found \"GPT2LMHeadModel\"",
                          "Gemma3ForCausalLM, LlamaForCausalLM, MistralForCausalLM"});
  ExpectBad<Unsupported>("Qwen2MoeForCausalLM", {}, {"architectures[0]"});
  ExpectBad<InvalidInput>("", {{"architectures", ""}}, {"architectures: found nothing"});
  ExpectBad<InvalidInput>("", {{"architectures", "[]"}}, {"architectures: found []"});
  ExpectBad<InvalidInput>("", {{"architectures", "[3]"}}, {"architectures[0]: found 3"});
  ExpectBad<InvalidInput>("LlamaForCausalLM", {{"model_type", "\"qwen2\""}},
                          {"model_type: found \"qwen2\", expected \"llama\" for LlamaForCausalLM"});
  ExpectError<InvalidInput>([] { ParseModelConfig(JsonValue::Parse("[]", "c")); },
                            {"top level: found [], expected an object"});
}

TEST(ModelConfig, SizesMustBeThereAndSensible) {
  for (const char* field : {"vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "max_position_embeddings"}) {
    ExpectBad<InvalidInput>("LlamaForCausalLM", {{field, ""}},
                            {fmt::format("[config.json] {}: found nothing", field)});
    for (const char* value : {"0", "-1", "1.5", "\"8\"", "null", "4611686018427387904", "[8]"}) {
      ExpectBad<InvalidInput>(
          "LlamaForCausalLM", {{field, value}},
          {fmt::format("{}: found {}, expected an integer from 1 to ", field, value)});
    }
  }
  ExpectBad<InvalidInput>("LlamaForCausalLM", {{"num_key_value_heads", "0"}},
                          {"num_key_value_heads: found 0"});
  ExpectBad<InvalidInput>(
      "LlamaForCausalLM", {{"num_key_value_heads", "3"}},
      {"num_key_value_heads: found 3, expected a divisor of num_attention_heads (8)"});
  ExpectBad<InvalidInput>("LlamaForCausalLM", {{"num_key_value_heads", "16"}},
                          {"num_key_value_heads: found 16, expected a divisor"});
}

TEST(ModelConfig, HeadDim) {
  for (const int64_t dim : {8, 16, 72, 128, 256}) {
    const ModelConfig config = Llama({{"head_dim", std::to_string(dim)}});
    EXPECT_EQ(config.head_dim, dim);
    EXPECT_EQ(config.group_size(), std::min<int64_t>(dim, 128));
  }
  for (const char* dim : {"7", "12", "0", "-8", "136", "192", "264", "512"}) {
    ExpectBad<Unsupported>("LlamaForCausalLM", {{"head_dim", dim}},
                           {fmt::format("head_dim: found {}, expected a multiple of 8", dim)});
  }
  ExpectBad<InvalidInput>("LlamaForCausalLM", {{"head_dim", "64.0"}}, {"head_dim: found 64.0"});
  ExpectBad<InvalidInput>(
      "LlamaForCausalLM", {{"hidden_size", "500"}},
      {"hidden_size: found 500, expected a multiple of num_attention_heads (8)"});
  ExpectBad<Unsupported>("LlamaForCausalLM", {{"hidden_size", "96"}},
                         {"hidden_size: found 96", "head_dim", "= 12"});
}

TEST(ModelConfig, NormEpsilonAndTheta) {
  for (const char* eps : {"0", "-1e-6", "1e-60", "2", "\"x\""}) {
    ExpectBad<InvalidInput>("LlamaForCausalLM", {{"rms_norm_eps", eps}}, {"rms_norm_eps: found"});
  }
  for (const char* theta : {"0", "-1", "0.0", "\"x\"", "[1]"}) {
    ExpectBad<InvalidInput>("LlamaForCausalLM", {{"rope_theta", theta}},
                            {"rope_theta: found ", "expected a number above 0"});
  }
}

TEST(ModelConfig, OtherGraphsAreRefused) {
  const std::vector<std::pair<Fields, std::string>> cases = {
      {{{"hidden_act", "\"gelu\""}}, "hidden_act: found \"gelu\", expected \"silu\""},
      {{{"quantization_config", R"({"quant_method":"awq"})"}},
       "quantization_config.quant_method: found \"awq\""},
      {{{"compression_config", "{}"}}, "compression_config: found {}"},
      {{{"mlp_bias", "true"}}, "mlp_bias: found true, expected false"},
      {{{"num_experts", "8"}}, "num_experts: found 8"},
      {{{"num_local_experts", "8"}}, "num_local_experts: found 8"},
      {{{"n_routed_experts", "8"}}, "n_routed_experts: found 8"},
      {{{"partial_rotary_factor", "0.5"}}, "partial_rotary_factor: found 0.5, expected 1"},
  };
  for (const auto& [changes, message] : cases) {
    ExpectBad<Unsupported>("LlamaForCausalLM", changes, {message});
  }
  EXPECT_EQ(Llama({{"num_experts", "0"},
                   {"quantization_config", "null"},
                   {"mlp_bias", "false"},
                   {"partial_rotary_factor", "1.0"}})
                .num_layers,
            4);
  ExpectBad<InvalidInput>("LlamaForCausalLM", {{"mlp_bias", "1"}}, {"mlp_bias: found 1"});
}

using Blocks = std::vector<int64_t>;

TEST(ModelConfig, SlidingWindowsOfMistral) {
  const auto windows = [](const Fields& changes) {
    return Parse("MistralForCausalLM", changes).sliding_windows;
  };
  const Blocks all(4, 4096);
  EXPECT_EQ(windows({{"sliding_window", "4096"}}), all);
  EXPECT_EQ(windows({}), all);  // As the first Mistral 7B, whose config says so, too.
  EXPECT_EQ(windows({{"sliding_window", "1"}}), Blocks(4, 1));
  for (const char* window : {"null", "32768", "40000"}) {
    EXPECT_EQ(windows({{"sliding_window", window}}), Blocks{}) << window;
  }
  EXPECT_EQ(windows({{"max_position_embeddings", "4096"}}), Blocks{});
  // Positions that YaRN adds lie outside of the window.
  EXPECT_EQ(windows({{"sliding_window", "32768"},
                     {"rope_scaling", R"({"rope_type":"yarn","factor":4.0})"}}),
            Blocks(4, 32768));
  ExpectBad<InvalidInput>("MistralForCausalLM", {{"sliding_window", "0"}},
                          {"sliding_window: found 0"});
  ExpectBad<InvalidInput>("MistralForCausalLM", {{"sliding_window", "\"all\""}},
                          {"sliding_window: found \"all\""});
}

TEST(ModelConfig, SlidingWindowsOfQwen) {
  const auto qwen = [](const char* use, const char* window, const char* layers) {
    return Fields{
        {"use_sliding_window", use}, {"sliding_window", window}, {"max_window_layers", layers}};
  };
  for (const char* architecture : {"Qwen2ForCausalLM", "Qwen3ForCausalLM"}) {
    const auto windows = [&](const Fields& changes) {
      return Parse(architecture, changes).sliding_windows;
    };
    EXPECT_EQ(windows(qwen("false", "4096", "2")), Blocks{});
    EXPECT_EQ(windows(qwen("true", "4096", "4")), Blocks{});
    EXPECT_EQ(windows(qwen("true", "32768", "2")), Blocks{});
    EXPECT_EQ(windows(qwen("true", "4096", "")), Blocks{});  // 28 by default.
    EXPECT_EQ(windows(qwen("true", "null", "2")), Blocks{});
    EXPECT_EQ(windows(qwen("true", "4096", "3")), (Blocks{0, 0, 0, 4096}));
    EXPECT_EQ(windows(qwen("true", "", "1")), (Blocks{0, 4096, 4096, 4096}));
    EXPECT_EQ(windows(qwen("true", "4096", "0")), Blocks(4, 4096));
  }
  ExpectBad<Unsupported>("LlamaForCausalLM", {{"use_sliding_window", "true"}},
                         {"use_sliding_window: found true, expected false"});
  EXPECT_EQ(Llama({{"sliding_window", "4096"}}).sliding_windows, Blocks{});
}

// As microsoft/Phi-3-mini-4k-instruct and phi-4 publish it.
TEST(ModelConfig, Phi3) {
  const ModelConfig mini =
      Parse("Phi3ForCausalLM", {{"num_key_value_heads", ""},
                                {"sliding_window", "2047"},
                                {"attention_bias", "false"},
                                {"rope_scaling", "null"},
                                {"original_max_position_embeddings", "32768"}});
  EXPECT_EQ(mini.model_type, "phi3");
  EXPECT_EQ(mini.num_kv_heads, 8);
  EXPECT_EQ(mini.sliding_windows, Blocks(4, 2047));
  EXPECT_FALSE(mini.qkv_bias || mini.o_bias || mini.qk_norm);
  EXPECT_EQ(Parse("Phi3ForCausalLM").sliding_windows, Blocks{});
  EXPECT_EQ(Parse("Phi3ForCausalLM", {{"sliding_window", "null"}}).sliding_windows, Blocks{});
  EXPECT_EQ(Parse("Phi3ForCausalLM", {{"vocab_size", "32064"}}).eos_token_ids,
            std::vector<int64_t>{32000});
  ExpectBad<Unsupported>(
      "Phi3ForCausalLM",
      {{"rope_scaling", R"({"type":"longrope","long_factor":[1],"short_factor":[1]})"}},
      {"rope_scaling.type: found \"longrope\""});
  ExpectBad<Unsupported>("Phi3ForCausalLM", {{"partial_rotary_factor", "0.75"}},
                         {"partial_rotary_factor: found 0.75"});
}

TEST(ModelConfig, Gemma3) {
  const auto parse = [](const Fields& changes) {
    return Parse("Gemma3ForCausalLM", Gemma(changes));
  };
  const ModelConfig config = parse({{"model_type", "\"gemma3_text\""}});
  EXPECT_EQ(config.head_dim, 256);
  EXPECT_EQ(parse({{"num_key_value_heads", ""}}).num_kv_heads, 4);
  EXPECT_TRUE(config.qk_norm && config.post_norms && config.tie_word_embeddings);
  EXPECT_EQ(config.activation, GateActivation::kGelu);
  EXPECT_EQ(config.norm_offset, 1);
  EXPECT_EQ(config.embedding_factor, std::sqrt(512.0));
  EXPECT_EQ(config.query_factor, 1);
  EXPECT_EQ(parse({{"query_pre_attn_scalar", "64"}}).query_factor, 2);
  EXPECT_EQ(config.bos_token_id, 2);
  EXPECT_EQ(config.eos_token_ids, std::vector<int64_t>{1});
  const auto w = int64_t{4096};
  EXPECT_EQ(config.sliding_windows, (std::vector<int64_t>{w, w, w, w, w, 0, w, w}));
  for (const char* key : {"sliding_window_pattern", "_sliding_window_pattern"}) {
    EXPECT_EQ(parse({{key, "4"}, {"sliding_window", "9"}}).sliding_windows,
              (std::vector<int64_t>{9, 9, 9, 0, 9, 9, 9, 0}));
  }
  EXPECT_EQ(parse({{"num_hidden_layers", "2"},
                   {"layer_types", R"(["full_attention","sliding_attention"])"}})
                .sliding_windows,
            (std::vector<int64_t>{0, w}));
  ExpectBad<Unsupported>("Gemma3ForCausalLM", Gemma({{"hidden_activation", "\"gelu\""}}),
                         {"hidden_activation: found \"gelu\", expected \"gelu_pytorch_tanh\""});
  ExpectBad<Unsupported>("Gemma3ForCausalLM", Gemma({{"final_logit_softcapping", "30.0"}}),
                         {"final_logit_softcapping: found 30"});
  ExpectBad<Unsupported>("Gemma3ForCausalLM", Gemma({{"use_bidirectional_attention", "true"}}),
                         {"use_bidirectional_attention: found true"});
  ExpectBad<InvalidInput>("Gemma3ForCausalLM", Gemma({{"sliding_window", "null"}}),
                          {"sliding_window: found null"});
  ExpectBad<InvalidInput>("Gemma3ForCausalLM", Gemma({{"sliding_window_pattern", "0"}}),
                          {"sliding_window_pattern: found 0"});
  ExpectBad<InvalidInput>("Gemma3ForCausalLM", Gemma({{"query_pre_attn_scalar", "0"}}),
                          {"query_pre_attn_scalar: found 0"});
}

TEST(ModelConfig, TypeOfWeights) {
  EXPECT_EQ(Llama().weight_type, std::nullopt);
  EXPECT_EQ(Llama({{"torch_dtype", "\"float16\""}}).weight_type, DType::kF16);
  EXPECT_EQ(Llama({{"torch_dtype", "\"torch.float32\""}}).weight_type, DType::kF32);
  EXPECT_EQ(Llama({{"torch_dtype", "\"float16\""}, {"dtype", "\"bfloat16\""}}).weight_type,
            DType::kBF16);
  EXPECT_EQ(Llama({{"dtype", "\"float64\""}}).weight_type, std::nullopt);
  ExpectBad<InvalidInput>("LlamaForCausalLM", {{"dtype", "5"}}, {"dtype: found 5"});
}

TEST(ModelConfig, LayerTypes) {
  const auto types = [](const std::string& letters) {
    std::string text;
    for (const char letter : letters) {
      text += text.empty() ? "[" : ",";
      text += letter == 's' ? "\"sliding_attention\"" : "\"full_attention\"";
    }
    return text + "]";
  };
  EXPECT_EQ(Llama({{"layer_types", types("ffff")}}).sliding_windows, Blocks{});
  // They win over max_window_layers.
  Fields qwen = {{"use_sliding_window", "true"},
                 {"sliding_window", "512"},
                 {"max_window_layers", "1"},
                 {"layer_types", types("sfsf")}};
  EXPECT_EQ(Parse("Qwen2ForCausalLM", qwen).sliding_windows, (Blocks{512, 0, 512, 0}));
  qwen["layer_types"] = types("ffff");
  EXPECT_EQ(Parse("Qwen3ForCausalLM", qwen).sliding_windows, Blocks{});
  EXPECT_EQ(Parse("MistralForCausalLM", {{"layer_types", types("ssss")}}).sliding_windows,
            Blocks(4, 4096));
  EXPECT_EQ(
      Parse("MistralForCausalLM", {{"layer_types", types("ffff")}, {"sliding_window", "null"}})
          .sliding_windows,
      Blocks{});

  ExpectBad<InvalidInput>("Qwen3ForCausalLM", {{"layer_types", types("fffs")}},
                          {"layer_types[3]: found \"sliding_attention\"", "use_sliding_window"});
  ExpectBad<Unsupported>("LlamaForCausalLM", {{"layer_types", types("fffs")}},
                         {"layer_types[3]: found \"sliding_attention\"", "full_attention"});
  ExpectBad<Unsupported>("MistralForCausalLM", {{"layer_types", types("sfss")}},
                         {"layer_types[1]: found \"full_attention\"", "sliding_attention"});
  ExpectBad<Unsupported>("Qwen3ForCausalLM",
                         {{"layer_types", R"(["full_attention","x","full_attention","x"])"}},
                         {"layer_types[1]: found \"x\"", "sliding_attention"});
  ExpectBad<InvalidInput>("Qwen3ForCausalLM", {{"layer_types", "[\"full_attention\"]"}},
                          {"layer_types: found", "num_hidden_layers (4)"});
  ExpectBad<InvalidInput>("Qwen3ForCausalLM", {{"layer_types", "\"full_attention\""}},
                          {"layer_types: found"});
}

// As transformers 5 writes them: RoPE in rope_parameters, `dtype`, `layer_types`.
TEST(ModelConfig, ConfigsOfToday) {
  const ModelConfig qwen =
      Parse("Qwen2ForCausalLM",
            {{"rope_theta", ""},
             {"rope_parameters", R"({"rope_type":"default","rope_theta":1000000.0})"},
             {"dtype", "\"bfloat16\""},
             {"use_sliding_window", "false"},
             {"sliding_window", "null"},
             {"max_window_layers", "28"},
             {"layer_types",
              R"(["full_attention","full_attention","full_attention","full_attention"])"}});
  EXPECT_EQ(qwen.rope_theta, 1e6);
  EXPECT_EQ(qwen.weight_type, DType::kBF16);
  EXPECT_TRUE(qwen.sliding_windows.empty());
}

TEST(ModelConfig, SpecialTokens) {
  const ModelConfig one = Llama({{"bos_token_id", "1"}, {"eos_token_id", "2"}});
  EXPECT_EQ(one.bos_token_id, 1);
  EXPECT_EQ(one.eos_token_ids, (std::vector<int64_t>{2}));
  EXPECT_EQ(Llama({{"eos_token_id", "[3,4]"}}).eos_token_ids, (std::vector<int64_t>{3, 4}));
  ExpectBad<InvalidInput>("LlamaForCausalLM", {{"bos_token_id", "1000"}},
                          {"bos_token_id: found 1000, expected an integer from 0 to 999"});
  ExpectBad<InvalidInput>("LlamaForCausalLM", {{"eos_token_id", "[1,-1]"}},
                          {"eos_token_id[1]: found -1"});
}

TEST(LoadModelConfig, GenerationConfigOverrides) {
  const TempFolder folder;
  folder.Write("config.json",
               ConfigText("LlamaForCausalLM", {{"bos_token_id", "1"}, {"eos_token_id", "2"}}));
  EXPECT_EQ(LoadModelConfig(folder.path()).eos_token_ids, (std::vector<int64_t>{2}));
  folder.Write("generation_config.json", R"({"eos_token_id":[7,8],"temperature":0.6})");
  const ModelConfig config = LoadModelConfig(folder.path());
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.eos_token_ids, (std::vector<int64_t>{7, 8}));
  folder.Write("generation_config.json", R"({"bos_token_id":"x"})");
  ExpectError<InvalidInput>([&] { LoadModelConfig(folder.path()); },
                            {"generation_config.json] bos_token_id: found \"x\""});
  folder.Write("generation_config.json", "[]");
  ExpectError<InvalidInput>([&] { LoadModelConfig(folder.path()); },
                            {"generation_config.json] top level"});
}

TEST(LoadModelConfig, MissingFolder) {
  ExpectError<IoError>([] { LoadModelConfig("/no/such/model"); },
                       {"/no/such/model/config.json", "No such file"});
}

}  // namespace
}  // namespace pmkvq
