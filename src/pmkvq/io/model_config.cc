#include "pmkvq/io/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/io/file.h"
#include "pmkvq/io/gguf/gguf_config.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/io/mla_config.h"
#include "pmkvq/io/model_bounds.h"
#include "pmkvq/io/moe_config.h"
#include "pmkvq/io/rope_config.h"

namespace pmkvq {
namespace {

using internal::kMaxHeadDim;
using internal::kMaxHeads;
using internal::kMaxHidden;
using internal::kMaxIntermediate;
using internal::kMaxLayers;
using internal::kMaxVocab;
using internal::MoeKeys;

// What transformers assumes where a config does not say.
constexpr int64_t kDefaultMaxWindowLayers = 28;  // Qwen.
constexpr int64_t kDefaultWindowPattern = 6;     // Gemma 3.
constexpr double kDefaultQueryScalar = 256;
constexpr int64_t kNone = -1;

// Which blocks have a sliding window.
enum class Windows : uint8_t {
  kNever,
  kAll,      // All where sliding_window is not null.
  kByLayer,  // With use_sliding_window: those of layer_types, or from max_window_layers on.
  kPattern,  // Those of layer_types, or all but each sliding_window_pattern-th one.
};

enum class Graph : uint8_t { kLlama, kGemma3, kDeepSeek };

struct Architecture {
  const char* name;
  const char* model_type;
  Graph graph;
  Windows windows;
  // Values of absent keys.
  int64_t sliding_window;  // kNone: none.
  int64_t num_kv_heads;    // kNone: as many as heads.
  int64_t head_dim;        // kNone: hidden_size / heads.
  int64_t bos_token_id;
  int64_t eos_token_id;
  double rope_theta;
  MoeKeys moe = MoeKeys::kNone;
  const char* other_model_type = nullptr;  // A second name for the same.
};
constexpr Architecture kArchitectures[] = {
    {"DeepseekV2ForCausalLM", "deepseek_v2", Graph::kDeepSeek, Windows::kNever, kNone, kNone, kNone,
     0, 1, 1e4, MoeKeys::kDeepSeekV2},
    {"DeepseekV3ForCausalLM", "deepseek_v3", Graph::kDeepSeek, Windows::kNever, kNone, kNone, kNone,
     0, 1, 1e4, MoeKeys::kDeepSeekV3, "kimi_k2"},
    {"Gemma3ForCausalLM", "gemma3_text", Graph::kGemma3, Windows::kPattern, 4096, 4, 256, 2, 1,
     1e6},
    {"LlamaForCausalLM", "llama", Graph::kLlama, Windows::kNever, kNone, kNone, kNone, 1, 2, 1e4},
    {"MistralForCausalLM", "mistral", Graph::kLlama, Windows::kAll, 4096, 8, kNone, 1, 2, 1e4},
    {"MixtralForCausalLM", "mixtral", Graph::kLlama, Windows::kAll, kNone, 8, kNone, 1, 2, 1e6,
     MoeKeys::kMixtral},
    {"Phi3ForCausalLM", "phi3", Graph::kLlama, Windows::kAll, kNone, kNone, kNone, 1, 32000, 1e4},
    {"Qwen2ForCausalLM", "qwen2", Graph::kLlama, Windows::kByLayer, 4096, 32, kNone, kNone, kNone,
     1e4},
    {"Qwen3ForCausalLM", "qwen3", Graph::kLlama, Windows::kByLayer, 4096, 32, 128, kNone, kNone,
     1e4},
    // With use_sliding_window transformers gives all blocks a window; no published one has any.
    {"Qwen3MoeForCausalLM", "qwen3_moe", Graph::kLlama, Windows::kNever, kNone, 4, kNone, kNone,
     kNone, 1e4, MoeKeys::kQwen3}};

const Architecture& ParseArchitecture(const JsonValue& json, ModelConfig& config) {
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
  if (type.IsNull() || type.AsString() == config.model_type) return *found;
  if (found->other_model_type == nullptr || type.AsString() != found->other_model_type) {
    type.Fail(fmt::format("\"{}\" for {}", config.model_type, config.architecture));
  }
  return *found;
}

void ParseHeadDim(const JsonValue& json, const Architecture& architecture, ModelConfig& config) {
  const JsonValue value = json.Find("head_dim");
  if (architecture.head_dim != kNone && value.IsMissing()) {
    config.head_dim = architecture.head_dim;
    return;
  }
  // An architecture with a fixed default takes no null.
  if (value.IsNull() && architecture.head_dim == kNone) {
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

void ParseSizes(const JsonValue& json, const Architecture& architecture, ModelConfig& config) {
  config.vocab_size = json.At("vocab_size").AsInt(1, kMaxVocab);
  config.hidden_size = json.At("hidden_size").AsInt(1, kMaxHidden);
  config.intermediate_size = json.At("intermediate_size").AsInt(1, kMaxIntermediate);
  config.num_layers = json.At("num_hidden_layers").AsInt(1, kMaxLayers);
  config.num_heads = json.At("num_attention_heads").AsInt(1, kMaxHeads);
  config.max_position_embeddings = json.At("max_position_embeddings").AsInt(1, limits::kPositions);
  if (architecture.graph == Graph::kDeepSeek) {
    config.mla = internal::ParseMlaConfig(json, config);
    config.head_dim = config.mla->nope_dim + config.mla->rope_dim;
    config.num_kv_heads = 1;
    return;
  }
  const JsonValue kv_heads = json.Find("num_key_value_heads");
  config.num_kv_heads = config.num_heads;
  if (!kv_heads.IsNull()) {
    config.num_kv_heads = kv_heads.AsInt(1, kMaxHeads);
  } else if (kv_heads.IsMissing() && architecture.num_kv_heads != kNone) {
    config.num_kv_heads = architecture.num_kv_heads;
  }
  if (config.num_heads % config.num_kv_heads != 0) {
    kv_heads.Fail(fmt::format(
        "a divisor of num_attention_heads ({}){}", config.num_heads,
        kv_heads.IsMissing() ? fmt::format("; absent means {}", config.num_kv_heads) : ""));
  }
  ParseHeadDim(json, architecture, config);
}

void ParseBiases(const JsonValue& json, ModelConfig& config) {
  const bool attention_bias = json.BoolOr("attention_bias", false);
  // The graphs of these are fixed; transformers ignores the field.
  if (config.model_type == "qwen2") config.qkv_bias = true;
  if (config.model_type == "qwen2" || config.model_type == "mistral" ||
      config.model_type == "mixtral" || config.model_type == "phi3" || config.mla) {
    return;
  }
  config.qkv_bias = attention_bias;
  config.o_bias = attention_bias;
  config.qk_norm = config.model_type == "qwen3" || config.model_type == "qwen3_moe" ||
                   config.model_type == "gemma3_text";
}

// The window of blocks that have one; kNone: no block has.
int64_t SlidingWindow(const JsonValue& json, const Architecture& architecture) {
  const JsonValue window = json.Find("sliding_window");
  if (!window.IsNull() && window.AsInt() < 1) window.Fail("null or an integer above 0");
  const bool use = json.BoolOr("use_sliding_window", false);
  if (architecture.windows == Windows::kNever) {
    if (use) {
      json.At("use_sliding_window")
          .Refuse("false: windows of " + std::string(architecture.name) + " are not supported");
    }
    return kNone;
  }
  if (architecture.windows == Windows::kByLayer && !use) return kNone;
  if (architecture.windows == Windows::kPattern && window.IsNull() && !window.IsMissing()) {
    window.Fail("an integer above 0");
  }
  if (window.IsMissing()) return architecture.sliding_window;
  return window.IsNull() ? kNone : window.AsInt();
}

// Which blocks attend to a window.
std::vector<bool> WindowedBlocks(const JsonValue& json, const Architecture& architecture,
                                 int64_t window, const ModelConfig& config) {
  const auto num_layers = static_cast<size_t>(config.num_layers);
  std::vector<bool> blocks(num_layers, window != kNone);
  if (architecture.windows == Windows::kByLayer) {
    const JsonValue full = json.Find("max_window_layers");
    const int64_t num_full = full.IsNull() ? kDefaultMaxWindowLayers : full.AsInt();
    for (int64_t i = 0; i < std::clamp<int64_t>(num_full, 0, config.num_layers); ++i) {
      blocks[static_cast<size_t>(i)] = false;
    }
  }
  if (architecture.windows == Windows::kPattern) {
    const JsonValue old_name = json.Find("sliding_window_pattern");
    const JsonValue pattern = old_name.IsNull() ? json.Find("_sliding_window_pattern") : old_name;
    const int64_t every = pattern.IsNull() ? kDefaultWindowPattern : pattern.AsInt();
    if (every < 1) pattern.Fail("an integer above 0");
    for (int64_t i = every - 1; i < config.num_layers; i += every) {
      blocks[static_cast<size_t>(i)] = false;
    }
  }
  const JsonValue types = json.Find("layer_types");
  if (types.IsNull()) return blocks;
  if (types.size() != num_layers) {
    types.Fail(fmt::format("an array of num_hidden_layers ({}) strings", config.num_layers));
  }
  for (size_t i = 0; i < num_layers; ++i) {
    const std::string type = types.At(i).AsString();
    if (type != "full_attention" && type != "sliding_attention") {
      types.At(i).Refuse("\"full_attention\" or \"sliding_attention\"");
    }
    const bool is_windowed = type == "sliding_attention";
    if (architecture.windows == Windows::kPattern) {
      blocks[i] = is_windowed;
    } else if (architecture.windows == Windows::kByLayer) {
      if (is_windowed && window == kNone) {
        types.At(i).Fail(
            "\"full_attention\" where use_sliding_window is false or sliding_window null");
      }
      blocks[i] = is_windowed;
    } else if (is_windowed != blocks[i]) {
      // transformers does not look at the field of these.
      types.At(i).Refuse(fmt::format("\"{}_attention\", which {} has in all blocks{}",
                                     blocks[i] ? "sliding" : "full", architecture.name,
                                     blocks[i] ? "" : " (sliding_window is null)"));
    }
  }
  return blocks;
}

void ParseSlidingWindows(const JsonValue& json, const Architecture& architecture,
                         ModelConfig& config) {
  const int64_t window = SlidingWindow(json, architecture);
  const std::vector<bool> blocks = WindowedBlocks(json, architecture, window, config);
  if (std::find(blocks.begin(), blocks.end(), true) == blocks.end()) return;
  if (architecture.graph == Graph::kGemma3) {
    const internal::RopeConfig rope =
        internal::ParseLocalRopeConfig(json, config.max_position_embeddings);
    config.local_rope = LocalRope{rope.theta, rope.scaling, blocks};
  }
  const bool holds_all = window == kNone || window >= config.max_position_embeddings;
  if (holds_all && !config.local_rope) return;
  const int64_t size = std::min(window, config.max_position_embeddings);
  for (const bool is_windowed : blocks) config.sliding_windows.push_back(is_windowed ? size : 0);
}

// Refuses fields that change the graph: ignoring one would give wrong text without an error.
void RefuseOtherGraphs(const JsonValue& json, const Architecture& architecture) {
  const bool is_gemma = architecture.graph == Graph::kGemma3;
  const JsonValue activation = json.Find(is_gemma ? "hidden_activation" : "hidden_act");
  const std::string known = is_gemma ? "gelu_pytorch_tanh" : "silu";
  if (!activation.IsNull() && activation.AsString() != known) {
    activation.Refuse("\"" + known + "\"");
  }
  for (const char* key : {"attn_logit_softcapping", "final_logit_softcapping"}) {
    if (is_gemma && !json.Find(key).IsNull()) json.At(key).Refuse("null");
  }
  if (is_gemma && json.BoolOr("use_bidirectional_attention", false)) {
    json.At("use_bidirectional_attention").Refuse("false");
  }
  if (json.BoolOr("mlp_bias", false)) json.At("mlp_bias").Refuse("false");
}

int64_t ParseTokenId(const JsonValue& value, const ModelConfig& config) {
  return value.AsInt(0, config.vocab_size - 1);
}

// Ids of absent keys; a smaller vocabulary has no such tokens.
void AssumeSpecialTokens(const JsonValue& json, const Architecture& architecture,
                         ModelConfig& config) {
  if (json.Find("bos_token_id").IsMissing() && architecture.bos_token_id < config.vocab_size) {
    config.bos_token_id = architecture.bos_token_id;
  }
  if (json.Find("eos_token_id").IsMissing() && architecture.eos_token_id != kNone &&
      architecture.eos_token_id < config.vocab_size) {
    config.eos_token_ids = {architecture.eos_token_id};
  }
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

// transformers 5 writes `dtype`, its versions before `torch_dtype`; the former wins.
std::optional<DType> ParseWeightType(const JsonValue& json) {
  const JsonValue new_name = json.Find("dtype");
  const JsonValue value = new_name.IsNull() ? json.Find("torch_dtype") : new_name;
  if (value.IsNull()) return std::nullopt;
  std::string name = value.AsString();
  if (name.starts_with("torch.")) name = name.substr(6);
  if (name == "bfloat16") return DType::kBF16;
  if (name == "float16" || name == "half") return DType::kF16;
  if (name == "float32" || name == "float") return DType::kF32;
  return std::nullopt;
}

void ParseRope(const JsonValue& json, const Architecture& architecture, ModelConfig& config) {
  internal::RopeRules rules;
  rules.by_layer_type = architecture.graph == Graph::kGemma3;
  rules.theta = architecture.rope_theta;
  const internal::RopeConfig rope =
      internal::ParseRopeConfig(json, config.max_position_embeddings, rules);
  config.rope_theta = rope.theta;
  config.rope_scaling = rope.scaling;
  if (config.mla) config.mla->score_factor = internal::FactorOfScores(rope.scaling);
  if (rope.scaling.type != RopeScaling::Type::kYarn) return;
  // Model cards add YaRN to a config and leave max_position_embeddings at the original length.
  const double stretched = std::floor(
      static_cast<double>(rope.scaling.original_max_position_embeddings) * rope.scaling.factor);
  if (stretched > static_cast<double>(limits::kPositions)) {
    json.Fail(fmt::format("original_max_position_embeddings x factor of RoPE to be at most {}",
                          limits::kPositions));
  }
  config.max_position_embeddings =
      std::max(config.max_position_embeddings, static_cast<int64_t>(stretched));
}

// What the graph of Gemma 3 has besides that of llama.
void ParseGemma3(const JsonValue& json, ModelConfig& config) {
  config.post_norms = true;
  config.norm_offset = 1;
  config.embedding_factor = std::sqrt(static_cast<double>(config.hidden_size));
  config.activation = GateActivation::kGelu;
  double scalar = kDefaultQueryScalar;
  const JsonValue value = json.Find("query_pre_attn_scalar");
  if (!value.IsMissing()) scalar = value.AsDouble();
  if (!(scalar > 0) || scalar > 1e6) value.Fail("a number above 0 and at most 1000000");
  // Scores are multiplied with 1 / sqrt(scalar), and everywhere here with 1 / sqrt(head_dim).
  config.query_factor = std::sqrt(static_cast<double>(config.head_dim) / scalar);
}

}  // namespace

ModelConfig ParseModelConfig(const JsonValue& json) {
  if (!json.IsObject()) json.Fail("an object");
  ModelConfig config;
  const Architecture& architecture = ParseArchitecture(json, config);
  RefuseOtherGraphs(json, architecture);
  ParseSizes(json, architecture, config);
  config.moe = internal::ParseMoeConfig(json, architecture.moe, config);
  ParseBiases(json, config);
  ParseRope(json, architecture, config);
  ParseSlidingWindows(json, architecture, config);
  if (json.Has("rms_norm_eps")) {
    const JsonValue eps = json.At("rms_norm_eps");
    config.rms_norm_eps = eps.AsDouble();
    // It is used as a float and must not vanish there.
    if (!(static_cast<float>(config.rms_norm_eps) > 0) || config.rms_norm_eps > 1) {
      eps.Fail("a number above 0 and at most 1");
    }
  }
  const bool is_gemma = architecture.graph == Graph::kGemma3;
  config.tie_word_embeddings = json.BoolOr("tie_word_embeddings", is_gemma);
  if (is_gemma) ParseGemma3(json, config);
  if (architecture.graph == Graph::kDeepSeek) {
    const JsonValue skipped = json.Find("num_nextn_predict_layers");
    if (!skipped.IsNull()) config.num_skipped_layers = skipped.AsInt(0, kMaxLayers);
  }
  config.weight_type = ParseWeightType(json);
  config.fp8 = ParseQuantizationConfig(json);
  config.block_format = ParseBlockFormat(json);
  AssumeSpecialTokens(json, architecture, config);
  ParseSpecialTokens(json, config);
  return config;
}

ModelConfig LoadModelConfig(const std::string& folder) {
  const std::string gguf = FindGgufFile(folder);
  if (!gguf.empty()) return ParseGgufConfig(GgufSet::Open(gguf));
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
