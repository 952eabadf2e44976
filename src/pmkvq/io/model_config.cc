#include "pmkvq/io/model_config.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/io/file.h"
#include "pmkvq/io/rope_config.h"

namespace pmkvq {
namespace {

// Far above every published model; the product of any two, in bytes, stays far below 2^63.
constexpr int64_t kMaxVocab = int64_t{1} << 24;
constexpr int64_t kMaxHidden = int64_t{1} << 20;
constexpr int64_t kMaxIntermediate = int64_t{1} << 22;
constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxHeads = 4096;
constexpr int64_t kMaxPositions = int64_t{1} << 30;
constexpr int64_t kMaxHeadDim = 256;

// What transformers assumes where a config does not say.
constexpr int64_t kDefaultSlidingWindow = 4096;
constexpr int64_t kDefaultMaxWindowLayers = 28;

struct Architecture {
  const char* name;
  const char* model_type;
};
constexpr Architecture kArchitectures[] = {{"LlamaForCausalLM", "llama"},
                                           {"MistralForCausalLM", "mistral"},
                                           {"Qwen2ForCausalLM", "qwen2"},
                                           {"Qwen3ForCausalLM", "qwen3"}};

bool BoolOr(const JsonValue& json, const char* key, bool fallback) {
  return json.Has(key) ? json.At(key).AsBool() : fallback;
}

int64_t IntOr(const JsonValue& json, const char* key, int64_t fallback) {
  return json.Has(key) ? json.At(key).AsInt() : fallback;
}

void ParseArchitecture(const JsonValue& json, ModelConfig& config) {
  std::string known;
  for (const Architecture& each : kArchitectures) {
    known += fmt::format("{}{}", known.empty() ? "" : ", ", each.name);
  }
  const JsonValue names = json.Find("architectures");
  if (!names.IsArray() || names.size() != 1) names.Fail("an array with one of " + known);
  config.architecture = names.At(0).AsString();
  const auto* found =
      std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                   [&](const Architecture& each) { return config.architecture == each.name; });
  if (found == std::end(kArchitectures)) names.At(0).Refuse("one of " + known);
  config.model_type = found->model_type;
  const JsonValue type = json.Find("model_type");
  if (!type.IsNull() && type.AsString() != config.model_type) {
    type.Fail(fmt::format("\"{}\" for {}", config.model_type, config.architecture));
  }
}

void ParseHeadDim(const JsonValue& json, ModelConfig& config) {
  const JsonValue value = json.Find("head_dim");
  if (value.IsNull()) {
    if (config.hidden_size % config.num_heads != 0) {
      json.At("hidden_size")
          .Fail(fmt::format("a multiple of num_attention_heads ({}), or a head_dim",
                            config.num_heads));
    }
    config.head_dim = config.hidden_size / config.num_heads;
  } else {
    config.head_dim = value.AsInt();
  }
  const int64_t dim = config.head_dim;
  if (dim >= 8 && dim <= kMaxHeadDim && dim % 8 == 0 && dim % config.group_size() == 0) return;
  const std::string expected =
      "a multiple of 8 from 8 to 128, or 256 (it must be whole quantisation groups)";
  if (value.IsNull()) {
    json.At("hidden_size")
        .Refuse(fmt::format("head_dim = hidden_size / num_attention_heads = {} to be {}", dim,
                            expected));
  }
  value.Refuse(expected);
}

void ParseSizes(const JsonValue& json, ModelConfig& config) {
  config.vocab_size = json.At("vocab_size").AsInt(1, kMaxVocab);
  config.hidden_size = json.At("hidden_size").AsInt(1, kMaxHidden);
  config.intermediate_size = json.At("intermediate_size").AsInt(1, kMaxIntermediate);
  config.num_layers = json.At("num_hidden_layers").AsInt(1, kMaxLayers);
  config.num_heads = json.At("num_attention_heads").AsInt(1, kMaxHeads);
  config.num_kv_heads = config.num_heads;
  if (json.Has("num_key_value_heads")) {
    const JsonValue value = json.At("num_key_value_heads");
    config.num_kv_heads = value.AsInt(1, kMaxHeads);
    if (config.num_heads % config.num_kv_heads != 0) {
      value.Fail(fmt::format("a divisor of num_attention_heads ({})", config.num_heads));
    }
  }
  ParseHeadDim(json, config);
  config.max_position_embeddings = json.At("max_position_embeddings").AsInt(1, kMaxPositions);
}

void ParseBiases(const JsonValue& json, ModelConfig& config) {
  const bool attention_bias = BoolOr(json, "attention_bias", false);
  if (config.model_type == "qwen2") {  // Its graph is fixed; it has no such field.
    config.qkv_bias = true;
    return;
  }
  config.qkv_bias = attention_bias;
  config.o_bias = attention_bias;
  config.qk_norm = config.model_type == "qwen3";
}

// Windows that end before max_position_embeddings would drop keys this cache keeps.
void RefuseSlidingWindow(const JsonValue& json, const ModelConfig& config) {
  const JsonValue window = json.Find("sliding_window");
  if (!window.IsNull() && window.AsInt() < 1) window.Fail("null or an integer above 0");
  const std::string expected = fmt::format(
      "null or at least max_position_embeddings ({}): sliding windows are not supported",
      config.max_position_embeddings);
  if (config.model_type == "mistral") {
    if (!window.IsNull() && window.AsInt() < config.max_position_embeddings) {
      window.Refuse(expected);
    }
  } else if (BoolOr(json, "use_sliding_window", false)) {
    const int64_t size = IntOr(json, "sliding_window", kDefaultSlidingWindow);
    const int64_t full_layers = IntOr(json, "max_window_layers", kDefaultMaxWindowLayers);
    if (size < config.max_position_embeddings && full_layers < config.num_layers) {
      json.At("use_sliding_window").Refuse("false: sliding windows are not supported");
    }
  }
  const JsonValue types = json.Find("layer_types");
  if (types.IsNull()) return;
  if (static_cast<int64_t>(types.size()) != config.num_layers) {
    types.Fail(fmt::format("an array of num_hidden_layers ({}) strings", config.num_layers));
  }
  for (size_t i = 0; i < types.size(); ++i) {
    if (types.At(i).AsString() != "full_attention") types.At(i).Refuse("\"full_attention\"");
  }
}

// Fields that would change what is computed.
void RefuseOtherGraphs(const JsonValue& json) {
  const JsonValue activation = json.Find("hidden_act");
  if (!activation.IsNull() && activation.AsString() != "silu") activation.Refuse("\"silu\"");
  for (const char* key : {"quantization_config", "compression_config"}) {
    if (json.Has(key)) json.At(key).Refuse("no such field: quantised weights are not supported");
  }
  if (BoolOr(json, "mlp_bias", false)) json.At("mlp_bias").Refuse("false");
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts",
                          "num_experts_per_tok", "moe_intermediate_size"}) {
    if (json.Has(key) && json.At(key).AsInt() > 0) {
      json.At(key).Refuse("no such field: mixtures of experts are not supported");
    }
  }
}

int64_t ParseTokenId(const JsonValue& value, const ModelConfig& config) {
  return value.AsInt(0, config.vocab_size - 1);
}

void ParseSpecialTokens(const JsonValue& json, ModelConfig& config) {
  const JsonValue bos = json.Find("bos_token_id");
  if (!bos.IsNull()) config.bos_token_id = ParseTokenId(bos, config);
  const JsonValue eos = json.Find("eos_token_id");
  if (eos.IsNull()) return;
  config.eos_token_ids.clear();
  if (!eos.IsArray()) {
    config.eos_token_ids.push_back(ParseTokenId(eos, config));
    return;
  }
  for (size_t i = 0; i < eos.size(); ++i) {
    config.eos_token_ids.push_back(ParseTokenId(eos.At(i), config));
  }
}

}  // namespace

ModelConfig ParseModelConfig(const JsonValue& json) {
  if (!json.IsObject()) json.Fail("an object");
  ModelConfig config;
  ParseArchitecture(json, config);
  RefuseOtherGraphs(json);
  ParseSizes(json, config);
  ParseBiases(json, config);
  RefuseSlidingWindow(json, config);
  if (json.Has("rms_norm_eps")) {
    const JsonValue eps = json.At("rms_norm_eps");
    config.rms_norm_eps = eps.AsDouble();
    // It is used as a float and must not vanish there.
    if (!(static_cast<float>(config.rms_norm_eps) > 0) || config.rms_norm_eps > 1) {
      eps.Fail("a number above 0 and at most 1");
    }
  }
  const internal::RopeConfig rope = internal::ParseRopeConfig(json, config.max_position_embeddings);
  config.rope_theta = rope.theta;
  config.rope_scaling = rope.scaling;
  config.tie_word_embeddings = BoolOr(json, "tie_word_embeddings", false);
  ParseSpecialTokens(json, config);
  return config;
}

ModelConfig LoadModelConfig(const std::string& folder) {
  ModelConfig config = ParseModelConfig(JsonValue::ParseFile(JoinPath(folder, "config.json")));
  const std::string generation = JoinPath(folder, "generation_config.json");
  if (FileExists(generation)) {
    const JsonValue json = JsonValue::ParseFile(generation);
    if (!json.IsObject()) json.Fail("an object");
    ParseSpecialTokens(json, config);
  }
  return config;
}

}  // namespace pmkvq
