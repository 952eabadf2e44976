#include "pmkvq/io/model_config.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

// Field -> JSON text. An empty text removes the field.
using Fields = std::map<std::string, std::string>;

std::string ConfigText(const std::string& architecture, const Fields& changes) {
  Fields fields = {{"architectures", fmt::format("[\"{}\"]", architecture)},
                   {"vocab_size", "1000"},
                   {"hidden_size", "512"},
                   {"intermediate_size", "1024"},
                   {"num_hidden_layers", "4"},
                   {"num_attention_heads", "8"},
                   {"num_key_value_heads", "2"},
                   {"max_position_embeddings", "32768"},
                   {"rms_norm_eps", "1e-5"},
                   {"rope_theta", "500000.0"},
                   {"hidden_act", "\"silu\""}};
  for (const auto& [key, value] : changes) {
    if (value.empty()) {
      fields.erase(key);
    } else {
      fields[key] = value;
    }
  }
  std::string text = "{";
  for (const auto& [key, value] : fields) {
    text += fmt::format("{}\"{}\":{}", text.size() > 1 ? "," : "", key, value);
  }
  return text + "}";
}

ModelConfig Parse(const std::string& architecture, const Fields& changes = {}) {
  return ParseModelConfig(JsonValue::Parse(ConfigText(architecture, changes), "config.json"));
}

ModelConfig Llama(const Fields& changes = {}) { return Parse("LlamaForCausalLM", changes); }

template <class ErrorType>
void ExpectBad(const std::string& architecture, const Fields& changes,
               std::initializer_list<std::string> parts) {
  SCOPED_TRACE(ConfigText(architecture, changes));
  ExpectError<ErrorType>([&] { Parse(architecture, changes); }, parts);
}

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

Fields Gemma(Fields changes = {}) {
  changes.emplace("hidden_act", "");
  changes.emplace("rope_theta", "");
  changes.emplace("num_hidden_layers", "8");
  return changes;
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

// The spellings of transformers 4 and 5; a window that holds all positions keeps its RoPE.
TEST(RopeConfig, LocalRopeOfGemma3) {
  const auto parse = [](const Fields& changes) {
    return Parse("Gemma3ForCausalLM", Gemma(changes));
  };
  const ModelConfig absent = parse({});
  EXPECT_EQ(absent.rope_theta, 1e6);
  ASSERT_TRUE(absent.local_rope.has_value());
  EXPECT_EQ(absent.local_rope->theta, 10000);
  EXPECT_EQ(absent.local_rope->blocks,
            (std::vector<bool>{true, true, true, true, true, false, true, true}));
  const Fields old_spelling = {{"rope_theta", "5e5"},
                               {"rope_local_base_freq", "2e4"},
                               {"rope_scaling", R"({"rope_type":"linear","factor":8.0})"}};
  const Fields new_spelling = {
      {"rope_parameters",
       R"({"full_attention":{"rope_type":"linear","factor":8.0,"rope_theta":5e5},)"
       R"("sliding_attention":{"rope_type":"default","rope_theta":2e4}})"}};
  for (const Fields& fields : {old_spelling, new_spelling}) {
    const ModelConfig config = parse(fields);
    EXPECT_EQ(config.rope_theta, 5e5);
    EXPECT_EQ(config.rope_scaling.type, RopeScaling::Type::kLinear);
    EXPECT_EQ(config.rope_scaling.factor, 8);
    EXPECT_EQ(config.local_rope->theta, 2e4);
    EXPECT_EQ(config.local_rope->scaling.type, RopeScaling::Type::kDefault);
  }
  for (const char* window : {"32768", "99999"}) {
    EXPECT_EQ(parse({{"sliding_window", window}}).sliding_windows[0], 32768);
  }
  EXPECT_FALSE(parse({{"sliding_window_pattern", "1"}}).local_rope.has_value());
  EXPECT_FALSE(Llama().local_rope.has_value());
  ExpectBad<Unsupported>(
      "Gemma3ForCausalLM",
      Gemma({{"rope_parameters", R"({"full_attention":{},"sliding_attention":{"type":"x"}})"}}),
      {"rope_parameters.sliding_attention.type: found \"x\""});
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

// The scaling object in each of its spellings: new, old, and old with "type".
std::vector<Fields> Spellings(const std::string& type, const std::string& rest) {
  const std::string tail = rest.empty() ? "" : "," + rest;
  return {{{"rope_parameters",
            fmt::format(R"({{"rope_theta":500000.0,"rope_type":"{}"{}}})", type, tail)},
           {"rope_theta", ""}},
          {{"rope_scaling", fmt::format(R"({{"rope_type":"{}"{}}})", type, tail)}},
          {{"rope_scaling", fmt::format(R"({{"type":"{}"{}}})", type, tail)}}};
}

TEST(RopeConfig, DefaultAndLinear) {
  for (const Fields& fields : Spellings("default", "")) {
    EXPECT_EQ(Llama(fields).rope_scaling.type, RopeScaling::Type::kDefault);
    EXPECT_EQ(Llama(fields).rope_theta, 500000.0);
  }
  for (const Fields& fields : Spellings("linear", R"("factor":4)")) {
    EXPECT_EQ(Llama(fields).rope_scaling.type, RopeScaling::Type::kLinear);
    EXPECT_EQ(Llama(fields).rope_scaling.factor, 4.0);
    EXPECT_EQ(Llama(fields).rope_theta, 500000.0);
  }
  for (const Fields& fields : Spellings("linear", "")) {
    ExpectBad<InvalidInput>("LlamaForCausalLM", fields, {"factor: found nothing"});
  }
  for (const Fields& fields : Spellings("linear", R"("factor":0.5)")) {
    ExpectBad<InvalidInput>("LlamaForCausalLM", fields,
                            {"factor: found 0.5, expected a number of at least 1"});
  }
}

TEST(RopeConfig, Llama3) {
  const std::string rest =
      R"("factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192)";
  for (const Fields& fields : Spellings("llama3", rest)) {
    const RopeScaling scaling = Llama(fields).rope_scaling;
    EXPECT_EQ(scaling.type, RopeScaling::Type::kLlama3);
    EXPECT_EQ(scaling.factor, 8.0);
    EXPECT_EQ(scaling.low_freq_factor, 1.0);
    EXPECT_EQ(scaling.high_freq_factor, 4.0);
    EXPECT_EQ(scaling.original_max_position_embeddings, 8192);
    EXPECT_EQ(scaling.attention_factor, 1.0);
  }
  EXPECT_EQ(Llama(Spellings("llama3", R"("factor":8,"low_freq_factor":1,"high_freq_factor":4)")[1])
                .rope_scaling.original_max_position_embeddings,
            32768);  // max_position_embeddings.
  for (const char* field : {"factor", "low_freq_factor", "high_freq_factor"}) {
    const size_t at = rest.find(fmt::format("\"{}\"", field));
    std::string without = rest;
    without[at + 1] = 'X';  // Renames the field.
    ExpectBad<InvalidInput>("LlamaForCausalLM", Spellings("llama3", without)[1],
                            {fmt::format("rope_scaling.{}: found nothing", field)});
  }
  ExpectBad<InvalidInput>(
      "LlamaForCausalLM",
      Spellings(
          "llama3",
          R"("factor":8,"low_freq_factor":4,"high_freq_factor":4,"original_max_position_embeddings":8192)")
          [0],
      {"rope_parameters.high_freq_factor: found 4, expected a number above low_freq_factor"});
}

RopeScaling Yarn(const std::string& rest) {
  return Llama(Spellings("yarn", R"("factor":4.0)" + rest)[1]).rope_scaling;
}

TEST(RopeConfig, Yarn) {
  for (const Fields& fields :
       Spellings("yarn", R"("factor":4.0,"original_max_position_embeddings":8192)")) {
    const RopeScaling scaling = Llama(fields).rope_scaling;
    EXPECT_EQ(scaling.type, RopeScaling::Type::kYarn);
    EXPECT_EQ(scaling.factor, 4.0);
    EXPECT_EQ(scaling.original_max_position_embeddings, 8192);
    EXPECT_EQ(scaling.beta_fast, 32.0);
    EXPECT_EQ(scaling.beta_slow, 1.0);
    EXPECT_TRUE(scaling.truncate);
    EXPECT_DOUBLE_EQ(scaling.attention_factor, 0.1 * std::log(4.0) + 1);
  }
  EXPECT_EQ(Yarn("").original_max_position_embeddings, 32768);
  const RopeScaling other = Yarn(R"(,"beta_fast":16,"beta_slow":2,"truncate":false)");
  EXPECT_EQ(other.beta_fast, 16.0);
  EXPECT_EQ(other.beta_slow, 2.0);
  EXPECT_FALSE(other.truncate);
}

TEST(RopeConfig, PositionsOfYarn) {
  const auto positions = [](const Fields& fields) { return Llama(fields).max_position_embeddings; };
  for (const Fields& fields : Spellings("yarn", R"("factor":4.0)")) {
    EXPECT_EQ(positions(fields), 131072);  // 4 x max_position_embeddings, the default.
  }
  for (const Fields& fields :
       Spellings("yarn", R"("factor":2.5,"original_max_position_embeddings":8192)")) {
    EXPECT_EQ(positions(fields), 32768);  // 20480 is less.
  }
  EXPECT_EQ(positions(Spellings("linear", R"("factor":4.0)")[0]), 32768);
  ExpectBad<InvalidInput>("LlamaForCausalLM", Spellings("yarn", R"("factor":1e9)")[0],
                          {"at most 1073741824"});
}

TEST(RopeConfig, WhichOfTwoPlacesCounts) {
  const std::string yarn = R"({"rope_type":"yarn","factor":4})";
  const std::string plain = R"({"rope_type":"default","rope_theta":10000.0})";
  const auto type = [](const Fields& fields) { return Llama(fields).rope_scaling.type; };
  EXPECT_EQ(type({{"rope_scaling", yarn}, {"rope_parameters", plain}}), RopeScaling::Type::kYarn);
  EXPECT_EQ(type({{"rope_scaling", "{}"}, {"rope_parameters", yarn}}), RopeScaling::Type::kYarn);
  EXPECT_EQ(type({{"rope_scaling", "null"}, {"rope_parameters", yarn}}), RopeScaling::Type::kYarn);
  EXPECT_EQ(type({{"rope_scaling", plain}, {"rope_parameters", yarn}}),
            RopeScaling::Type::kDefault);
  EXPECT_EQ(type({{"rope_parameters", R"({"rope_type":"default","type":"yarn"})"}}),
            RopeScaling::Type::kDefault);
  EXPECT_EQ(type({{"rope_parameters", "{}"}}), RopeScaling::Type::kDefault);
  // rope_theta: inside, beside, default.
  EXPECT_EQ(Llama({{"rope_scaling", R"({"rope_theta":7})"}}).rope_theta, 7.0);
  EXPECT_EQ(Llama({{"rope_theta", ""}, {"rope_scaling", yarn}}).rope_theta, 10000.0);
  ExpectBad<Unsupported>(
      "LlamaForCausalLM",
      {{"rope_theta", ""}, {"rope_scaling", yarn}, {"rope_parameters", R"({"rope_theta":1e6})"}},
      {"rope_parameters.rope_theta: found 1e6", "rope_scaling"});
  ExpectBad<InvalidInput>("LlamaForCausalLM", {{"rope_theta", "null"}},
                          {"rope_theta: found null, expected a number above 0"});
  // Original positions: beside the set before inside.
  EXPECT_EQ(Llama({{"original_max_position_embeddings", "4096"},
                   {"rope_scaling",
                    R"({"type":"yarn","factor":4,"original_max_position_embeddings":8192})"}})
                .rope_scaling.original_max_position_embeddings,
            4096);
  ExpectBad<InvalidInput>(
      "LlamaForCausalLM",
      {{"rope_scaling", R"({"type":"yarn","factor":4,"original_max_position_embeddings":null})"}},
      {"original_max_position_embeddings: found null"});
  // A factor of null is the ratio of the lengths.
  EXPECT_EQ(Llama({{"rope_scaling",
                    R"({"type":"yarn","factor":null,"original_max_position_embeddings":8192})"}})
                .rope_scaling.factor,
            4.0);
}

TEST(RopeConfig, ValuesByLayerType) {
  const auto nested = [](const std::string& values) {
    return Fields{{"rope_theta", ""}, {"rope_parameters", "{\"full_attention\":" + values + "}"}};
  };
  EXPECT_EQ(Llama(nested(R"({"rope_type":"default","rope_theta":1e6})")).rope_theta, 1e6);
  const ModelConfig yarn = Llama(nested(R"({"rope_type":"yarn","factor":4})"));
  EXPECT_EQ(yarn.rope_scaling.type, RopeScaling::Type::kYarn);
  EXPECT_EQ(yarn.max_position_embeddings, 131072);
  EXPECT_EQ(yarn.rope_theta, 10000.0);
  const auto both = [](const std::string& sliding) {
    return Fields{{"rope_theta", ""},
                  {"rope_parameters",
                   R"({"full_attention":{"rope_theta":1e6},"sliding_attention":)" + sliding + "}"}};
  };
  EXPECT_EQ(Llama(both(R"({"rope_theta":1e6})")).rope_theta, 1e6);
  EXPECT_EQ(Llama(both("null")).rope_theta, 1e6);
  ExpectBad<Unsupported>("LlamaForCausalLM", both(R"({"rope_theta":1e4})"),
                         {"rope_parameters.sliding_attention: found {", "one RoPE"});
  ExpectBad<Unsupported>("LlamaForCausalLM", nested(R"({"partial_rotary_factor":0.5})"),
                         {"rope_parameters.full_attention.partial_rotary_factor: found 0.5"});
  ExpectBad<Unsupported>("LlamaForCausalLM",
                         nested(R"({"type":"yarn","factor":2,"truncate":false})"),
                         {"full_attention.truncate: found false"});
  ExpectBad<Unsupported>(
      "LlamaForCausalLM",
      {{"rope_parameters", R"({"full_attention":{"rope_theta":5},"rope_theta":6})"}},
      {"rope_parameters.rope_theta: found 6"});
  ExpectBad<Unsupported>("LlamaForCausalLM",
                         {{"rope_parameters", R"({"sliding_attention":{"rope_theta":5}})"}},
                         {"rope_parameters.sliding_attention: found {"});
}

TEST(RopeConfig, YarnAttentionFactorAsInTransformers) {
  EXPECT_EQ(Yarn(R"(,"attention_factor":1.5,"mscale":2,"mscale_all_dim":1)").attention_factor, 1.5);
  EXPECT_DOUBLE_EQ(Yarn(R"(,"mscale":0.707,"mscale_all_dim":1.0)").attention_factor,
                   (0.0707 * std::log(4.0) + 1) / (0.1 * std::log(4.0) + 1));
  EXPECT_DOUBLE_EQ(Yarn(R"(,"mscale":2.0)").attention_factor, 0.1 * std::log(4.0) + 1);
  EXPECT_DOUBLE_EQ(Yarn(R"(,"mscale":2.0,"mscale_all_dim":0)").attention_factor,
                   0.1 * std::log(4.0) + 1);
  EXPECT_EQ(Llama(Spellings("yarn", R"("factor":1)")[0]).rope_scaling.attention_factor, 1.0);
}

TEST(RopeConfig, BadYarn) {
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "factor: found nothing"},
      {R"("factor":4,"beta_fast":1,"beta_slow":2)", "beta_fast: found 1, expected"},
      {R"("factor":4,"beta_slow":0)", "beta_slow: found 0"},
      {R"("factor":4,"attention_factor":-1)", "attention_factor: found -1"},
      {R"("factor":4,"mscale":-1,"mscale_all_dim":1)", "mscale: found -1"},
      {R"("factor":4,"mscale":1,"mscale_all_dim":-1)", "mscale_all_dim: found -1"},
      {R"("factor":4,"truncate":"x")", "truncate: found \"x\""},
      {R"("factor":4,"original_max_position_embeddings":0)", "original_max_position_embeddings"},
  };
  for (const auto& [rest, message] : cases) {
    for (const Fields& fields : Spellings("yarn", rest)) {
      ExpectBad<InvalidInput>("Qwen2ForCausalLM", fields, {message});
    }
  }
}

TEST(RopeConfig, RefusedOrSenseless) {
  for (const char* type : {"dynamic", "longrope", "su", "mrope", ""}) {
    for (const Fields& fields : Spellings(type, R"("factor":2)")) {
      ExpectBad<Unsupported>("LlamaForCausalLM", fields,
                             {fmt::format("type: found \"{}\", expected default, linear", type)});
    }
  }
  const auto expect = [](const Fields& changes, const std::string& message) {
    ExpectBad<InvalidInput>("LlamaForCausalLM", changes, {message});
  };
  expect({{"rope_scaling", "4"}}, "rope_scaling: found 4, expected an object or null");
  expect({{"rope_parameters", "[]"}}, "rope_parameters: found []");
  expect({{"rope_scaling", R"({"factor":2})"}}, "rope_scaling.rope_type: found nothing");
  expect({{"rope_scaling", R"({"rope_type":2})"}}, "rope_scaling.rope_type: found 2");
  expect({{"rope_parameters", R"({"rope_theta":0})"}}, "rope_parameters.rope_theta: found 0");
  ExpectBad<Unsupported>("LlamaForCausalLM",
                         {{"rope_parameters", R"({"partial_rotary_factor":0.25})"}},
                         {"rope_parameters.partial_rotary_factor: found 0.25"});
  EXPECT_EQ(Llama({{"rope_parameters", R"({"rope_theta":7})"}}).rope_theta, 7.0);
  EXPECT_EQ(Llama({{"rope_parameters", R"({"rope_type":"default"})"}}).rope_theta, 500000.0);
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
