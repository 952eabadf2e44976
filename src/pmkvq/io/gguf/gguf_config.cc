#include "pmkvq/io/gguf/gguf_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>
#include <optional>

#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/io/mla_config.h"
#include "pmkvq/io/model_bounds.h"
#include "pmkvq/io/moe_config.h"
#include "pmkvq/io/weights/gguf_names.h"

namespace pmkvq {
namespace {

struct Architecture {
  const char* name;  // general.architecture, and what stands before its keys.
  const char* config_name;
  const char* model_type;
};
constexpr Architecture kArchitectures[] = {{"deepseek2", "DeepseekV2ForCausalLM", "deepseek_v2"},
                                           {"llama", "LlamaForCausalLM", "llama"},
                                           {"qwen2", "Qwen2ForCausalLM", "qwen2"},
                                           {"qwen3", "Qwen3ForCausalLM", "qwen3"},
                                           {"qwen3moe", "Qwen3MoeForCausalLM", "qwen3_moe"}};
// A file of the architecture llama with experts.
constexpr Architecture kMixtral = {"llama", "MixtralForCausalLM", "mixtral"};
// A file of the architecture deepseek2 whose experts have sigmoid scores.
constexpr Architecture kDeepSeekV3 = {"deepseek2", "DeepseekV3ForCausalLM", "deepseek_v3"};

constexpr char kTokens[] = "tokenizer.ggml.tokens";
constexpr char kTokenTypes[] = "tokenizer.ggml.token_type";
constexpr int64_t kControlType = 3;
// Many files name one end of an answer only, so control tokens with these texts are ends, too.
constexpr std::string_view kEndTexts[] = {"<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>",
                                          "<|endoftext|>"};

class ConfigParser {
 public:
  ConfigParser(const GgufSet& file, std::vector<std::string>* warnings)
      : file_(file), prefix_(GgufArchitecture(file)), warnings_(warnings) {}

  ModelConfig Parse() {
    const auto* architecture =
        std::find_if(std::begin(kArchitectures), std::end(kArchitectures),
                     [&](const Architecture& each) { return prefix_ == each.name; });
    config_.architecture = architecture->config_name;
    config_.model_type = architecture->model_type;
    RefuseOtherGraphs();
    ParseSizes();
    if (IsDeepSeek()) {
      ParseLatents();
    } else {
      ParseHeadDim();
    }
    ParseEpsilon();
    if (file_.tensors().empty()) {
      throw InvalidInput(file_.path(),
                         "tensors: found none (a vocabulary only), expected those of a model");
    }
    ParseVocabulary();
    ParseGraph();
    ParseExperts();
    ParseRope();
    ParseEnds();
    return config_;
  }

 private:
  bool IsDeepSeek() const { return prefix_ == "deepseek2"; }
  GgufValue Find(const std::string& key) const { return file_.Find(prefix_ + "." + key); }

  // Sizes may be one number, or one for each block.
  int64_t IntOrArray(const GgufValue& value, int64_t maximum) const {
    if (!value.IsArray()) return value.AsInt(1, maximum);
    value.CheckArray(static_cast<uint64_t>(config_.num_layers),
                     fmt::format("integers, one for each of {}.block_count blocks", prefix_));
    const int64_t first = value.IntAt(0, 1, maximum);
    for (uint64_t i = 1; i < value.size(); ++i) {
      const int64_t other = value.IntAt(i, 0, maximum);
      if (other == first) continue;
      throw Unsupported(file_.path(), fmt::format("{}[{}]: found {}, expected {}, as in block 0: "
                                                  "blocks of different sizes are not supported",
                                                  value.key(), i, other, first));
    }
    return first;
  }

  // Fields that change what the weights compute, and are not computed here.
  void RefuseOtherGraphs() const {
    for (const char* key : {"attention.scale", "attention.clamp_kqv", "attention.max_alibi_bias",
                            "attention.temperature_scale", "attention.temperature_length",
                            "attn_logit_softcapping", "final_logit_softcapping", "embedding_scale",
                            "residual_scale", "logit_scale", "rope.scaling.yarn_log_multiplier"}) {
      if (IsDeepSeek() && std::string_view(key) == "rope.scaling.yarn_log_multiplier") continue;
      const GgufValue value = Find(key);
      if (!value.IsMissing() && value.AsDouble() != 0) value.Refuse("no such field");
    }
    const GgufValue causal = Find("attention.causal");
    if (!causal.IsMissing() && !causal.AsBool()) causal.Refuse("true");
  }

  void ParseSizes() {
    config_.num_layers = Find("block_count").AsInt(1, internal::kMaxLayers);
    config_.hidden_size = Find("embedding_length").AsInt(1, internal::kMaxHidden);
    config_.intermediate_size = IntOrArray(Find("feed_forward_length"), internal::kMaxIntermediate);
    config_.max_position_embeddings = Find("context_length").AsInt(1, limits::kPositions);
    config_.num_heads = IntOrArray(Find("attention.head_count"), internal::kMaxHeads);
    const GgufValue kv_heads = Find("attention.head_count_kv");
    config_.num_kv_heads =
        kv_heads.IsMissing() ? config_.num_heads : IntOrArray(kv_heads, internal::kMaxHeads);
    if (IsDeepSeek()) config_.num_kv_heads = 1;  // Files have 1, or the number of heads.
    if (config_.num_heads % config_.num_kv_heads != 0) {
      kv_heads.Fail(
          fmt::format("a divisor of {}.attention.head_count ({})", prefix_, config_.num_heads));
    }
    const GgufValue window = Find("attention.sliding_window");
    if (window.IsMissing()) return;
    const int64_t size = window.AsInt(0, limits::kPositions);
    if (size != 0 && size < config_.max_position_embeddings) {
      window.Refuse(
          fmt::format("none, or at least {}.context_length ({}): sliding windows are not "
                      "supported",
                      prefix_, config_.max_position_embeddings));
    }
  }

  void ParseHeadDim() {
    const GgufValue key_length = Find("attention.key_length");
    const GgufValue value_length = Find("attention.value_length");
    if (!key_length.IsMissing()) {
      config_.head_dim = key_length.AsInt(1, internal::kMaxHidden);
    } else if (config_.hidden_size % config_.num_heads == 0) {
      config_.head_dim = config_.hidden_size / config_.num_heads;
    } else {
      Find("embedding_length")
          .Fail(fmt::format("a multiple of {}.attention.head_count ({}), or "
                            "{}.attention.key_length",
                            prefix_, config_.num_heads, prefix_));
    }
    const int64_t dim = config_.head_dim;
    if (dim < 8 || dim > internal::kMaxHeadDim || dim % 8 != 0 || dim % config_.group_size() != 0) {
      throw Unsupported(file_.path(),
                        fmt::format("{}: found heads of {} values, expected a multiple of 8 from 8 "
                                    "to 128, or 256 (it must be whole quantisation groups)",
                                    key_length.key(), dim));
    }
    for (const GgufValue& value : {value_length, Find("rope.dimension_count")}) {
      if (!value.IsMissing() && value.AsInt(0, internal::kMaxHidden) != dim) {
        value.Refuse(fmt::format("{}, the length of a key", dim));
      }
    }
  }

  // Files of before April 2025 say the lengths of heads where others say those of what is cached.
  void ParseLatents() {
    MlaConfig mla;
    const GgufValue query_rank = Find("attention.q_lora_rank");
    if (!query_rank.IsMissing()) mla.query_rank = query_rank.AsInt(0, internal::kMaxHidden);
    const GgufValue latent = Find("attention.kv_lora_rank");
    mla.latent = latent.AsInt(1, internal::kMaxHidden);
    if (!internal::IsLatentWidth(mla.latent)) {
      latent.Refuse("a multiple of 8 up to 128, or a multiple of 128 (whole quantisation groups)");
    }
    const GgufValue rope = Find("rope.dimension_count");
    mla.rope_dim = rope.AsInt(1, internal::kMaxHidden);
    if (!internal::IsRopeKeyWidth(mla.rope_dim)) {
      rope.Refuse("a multiple of 8 up to 128 (one quantisation group)");
    }
    const bool is_new = !Find("attention.key_length_mla").IsMissing();
    const GgufValue key = Find(is_new ? "attention.key_length_mla" : "attention.key_length");
    config_.head_dim = key.AsInt(1, internal::kMaxHidden);
    mla.nope_dim = config_.head_dim - mla.rope_dim;
    if (mla.nope_dim < 1) {
      key.Fail(fmt::format("more than {}.rope.dimension_count ({})", prefix_, mla.rope_dim));
    }
    mla.value_dim = Find(is_new ? "attention.value_length_mla" : "attention.value_length")
                        .AsInt(1, internal::kMaxHidden);
    mla.split_up = Has("blocks.0.attn.k_b");
    config_.mla = mla;
  }

  void ParseEpsilon() {
    const GgufValue epsilon = Find("attention.layer_norm_rms_epsilon");
    config_.rms_norm_eps = epsilon.AsDouble();
    // It is used as a float and must not vanish there.
    if (!(static_cast<float>(config_.rms_norm_eps) > 0) || config_.rms_norm_eps > 1) {
      epsilon.Fail("a number above 0 and at most 1");
    }
  }

  void ParseVocabulary() {
    const GgufTensor* embedding = file_.FindTensor(GgufName("embedding"));
    if (embedding == nullptr || embedding->num_dims != 2) {
      throw InvalidInput(file_.path(),
                         fmt::format("tensor '{}': found {}, expected it with two "
                                     "dimensions",
                                     GgufName("embedding"),
                                     embedding == nullptr ? "nothing" : "other dimensions"));
    }
    config_.vocab_size = embedding->rows;
    if (config_.vocab_size > internal::kMaxVocab) {
      throw InvalidInput(file_.path(),
                         fmt::format("tensor '{}': found {} rows, expected at most {}",
                                     embedding->name, config_.vocab_size, internal::kMaxVocab));
    }
    const GgufValue size = Find("vocab_size");
    if (!size.IsMissing() && size.AsInt(1, internal::kMaxVocab) != config_.vocab_size) {
      size.Fail(fmt::format("{}, the rows of {}", config_.vocab_size, embedding->name));
    }
    // Rows beyond the tokens are padding.
    const GgufValue tokens = file_.Find(kTokens);
    if (tokens.IsArray() && tokens.size() > static_cast<uint64_t>(config_.vocab_size)) {
      tokens.Fail(
          fmt::format("at most {} tokens, the rows of {}", config_.vocab_size, embedding->name));
    }
  }

  bool Has(const std::string& canonical_name) const {
    return file_.FindTensor(GgufName(canonical_name)) != nullptr;
  }

  void ParseGraph() {
    config_.tie_word_embeddings = !Has("output_head");
    // The graph of Qwen2 is fixed, others have the biases that the file holds.
    const bool is_qwen2 = config_.model_type == "qwen2";
    config_.qkv_bias = is_qwen2 || Has("blocks.0.attn.q.bias");
    config_.o_bias = !is_qwen2 && Has("blocks.0.attn.o.bias");
    config_.qk_norm = config_.model_type == "qwen3" || config_.model_type == "qwen3_moe";
  }

  // Files say nothing of blocks without experts; they have no router.
  void ParseExperts() {
    const GgufValue count = Find("expert_count");
    const bool is_qwen3 = config_.model_type == "qwen3_moe";
    const bool is_deepseek = IsDeepSeek();
    const int64_t num_experts =
        count.IsMissing() && !is_qwen3 ? 0 : count.AsInt(0, internal::kMaxExperts);
    if (num_experts == 0) {
      if (is_qwen3) count.Fail("an integer above 0");
      return;
    }
    if (config_.model_type == "llama") {
      config_.architecture = kMixtral.config_name;
      config_.model_type = kMixtral.model_type;
    } else if (!is_qwen3 && !is_deepseek) {
      count.Refuse(fmt::format("0: experts of the architecture {} are not supported", prefix_));
    }
    MoeConfig moe;
    moe.num_experts = num_experts;
    moe.num_chosen = Find("expert_used_count").AsInt(1, num_experts);
    const GgufValue size = Find("expert_feed_forward_length");
    moe.expert_size = size.IsMissing() && !is_qwen3 ? config_.intermediate_size
                                                    : size.AsInt(1, internal::kMaxIntermediate);
    const GgufValue normalize = Find("expert_weights_norm");
    moe.normalize = normalize.IsMissing() ? !is_deepseek : normalize.AsBool();
    for (int64_t layer = 0; layer < config_.num_layers; ++layer) {
      moe.blocks.push_back(Has(fmt::format("blocks.{}.mlp.router", layer)));
    }
    if (std::find(moe.blocks.begin(), moe.blocks.end(), true) == moe.blocks.end()) {
      throw InvalidInput(file_.path(), fmt::format("tensor '{}': found nothing, expected a router "
                                                   "of {} experts in some block",
                                                   GgufName("blocks.0.mlp.router"), num_experts));
    }
    if (is_deepseek) {
      ParseDeepSeekExperts(moe);
    } else {
      RefuseOtherExperts();
    }
    if (internal::AreTooManyExperts(moe)) {
      count.Fail(fmt::format("at most {} experts in all blocks", internal::kMaxExpertsInAll));
    }
    config_.moe = moe;
  }

  // Files do not say that V3 sums two scores of a group, and that V2 multiplies weights only where
  // they are not normalised.
  void ParseDeepSeekExperts(MoeConfig& moe) {
    constexpr int64_t kSoftmax = 1;
    constexpr int64_t kSigmoid = 2;
    const GgufValue gating = Find("expert_gating_func");
    const int64_t function = gating.IsMissing() ? kSoftmax : gating.AsInt(0, 1 << 20);
    if (function > kSigmoid) gating.Refuse("1 (softmax) or 2 (sigmoid)");
    const bool is_v3 = function == kSigmoid;
    if (is_v3) {
      config_.architecture = kDeepSeekV3.config_name;
      config_.model_type = kDeepSeekV3.model_type;
      moe.score = ExpertScore::kSigmoid;
    }
    const GgufValue shared = Find("expert_shared_count");
    if (!shared.IsMissing()) {
      moe.shared_size = shared.AsInt(0, internal::kMaxExperts) * moe.expert_size;
    }
    const GgufValue scale = Find("expert_weights_scale");
    // 0 means none.
    if (!scale.IsMissing() && scale.AsDouble() != 0) moe.weight_factor = scale.AsDouble();
    if (!(moe.weight_factor > 0)) scale.Fail("a number above 0, or 0 for none");
    if (!is_v3 && moe.normalize) moe.weight_factor = 1;
    const size_t first = static_cast<size_t>(std::find(moe.blocks.begin(), moe.blocks.end(), true) -
                                             moe.blocks.begin());
    moe.choice_bias = Has(fmt::format("blocks.{}.mlp.router.bias", first));
    ParseExpertGroups(moe);
    if (is_v3) moe.group_top = std::min<int64_t>(2, moe.num_experts / moe.num_groups);
  }

  void ParseExpertGroups(MoeConfig& moe) const {
    const GgufValue count = Find("expert_group_count");
    if (count.IsMissing() || count.AsInt(0, internal::kMaxExperts) <= 1) return;
    moe.num_groups = count.AsInt(0, internal::kMaxExperts);
    if (moe.num_experts % moe.num_groups != 0) {
      count.Fail(fmt::format("a divisor of {}.expert_count ({})", prefix_, moe.num_experts));
    }
    const GgufValue used = Find("expert_group_used_count");
    moe.num_chosen_groups = used.AsInt(1, moe.num_groups);
    if (moe.num_chosen > moe.num_experts / moe.num_groups * moe.num_chosen_groups) {
      used.Fail(fmt::format("groups with {}.expert_used_count ({}) experts at least", prefix_,
                            moe.num_chosen));
    }
  }

  // Rules of routing that these architectures do not have in llama.cpp either.
  void RefuseOtherExperts() const {
    for (const char* key : {"expert_shared_count", "expert_group_count"}) {
      const GgufValue value = Find(key);
      if (!value.IsMissing() && value.AsInt(0, internal::kMaxExperts) > 0) value.Refuse("0");
    }
    const GgufValue scale = Find("expert_weights_scale");
    if (!scale.IsMissing() && scale.AsDouble() != 0 && scale.AsDouble() != 1) scale.Refuse("1");
    constexpr int64_t kSoftmax = 1;
    const GgufValue gating = Find("expert_gating_func");
    if (gating.IsMissing()) return;
    const int64_t function = gating.AsInt(0, 1 << 20);
    if (function > kSoftmax) gating.Refuse("1 (softmax)");
  }

  double PositiveOr(const char* key, double fallback) const {
    const GgufValue value = Find(key);
    if (value.IsMissing()) return fallback;
    if (!(value.AsDouble() > 0)) value.Fail("a number above 0");
    return value.AsDouble();
  }

  // The stretching factor; nothing when the file has none. 0 means none, too.
  std::optional<double> RopeFactor() const {
    for (const char* key : {"rope.scaling.factor", "rope.scale_linear"}) {
      const GgufValue value = Find(key);
      if (value.IsMissing() || value.AsDouble() == 0) continue;
      if (!(value.AsDouble() >= 1)) value.Fail("a number of at least 1, or 0 for none");
      return value.AsDouble();
    }
    return std::nullopt;
  }

  void ParseRope() {
    config_.rope_theta = PositiveOr("rope.freq_base", 10000.0);
    RopeScaling& scaling = config_.rope_scaling;
    const std::optional<double> factor = RopeFactor();
    const GgufValue type = Find("rope.scaling.type");
    const std::string_view name = !type.IsMissing()    ? type.AsString()
                                  : factor.has_value() ? "linear"
                                                       : "none";
    if (name == "linear") {
      scaling.type = RopeScaling::Type::kLinear;
      scaling.factor = factor.value_or(1.0);
    } else if (name == "yarn") {
      ParseYarn(factor, scaling);
    } else if (name != "none") {
      type.Refuse("none, linear or yarn");
    }
    for (const char* tensor : {"rope_factors_long.weight", "rope_factors_short.weight"}) {
      if (file_.FindTensor(tensor) == nullptr) continue;
      throw Unsupported(file_.path(),
                        fmt::format("tensor '{}': found it, expected no such tensor: longrope "
                                    "scaling is not supported",
                                    tensor));
    }
    ParseRopeFactors(scaling);
  }

  void ParseYarn(std::optional<double> factor, RopeScaling& scaling) {
    scaling.type = RopeScaling::Type::kYarn;
    if (!factor.has_value()) Find("rope.scaling.factor").Fail("a number of at least 1");
    scaling.factor = *factor;
    const GgufValue original = Find("rope.scaling.original_context_length");
    scaling.original_max_position_embeddings = original.IsMissing()
                                                   ? config_.max_position_embeddings
                                                   : original.AsInt(1, limits::kPositions);
    scaling.beta_fast = PositiveOr("rope.scaling.yarn_beta_fast", scaling.beta_fast);
    scaling.beta_slow = PositiveOr("rope.scaling.yarn_beta_slow", scaling.beta_slow);
    if (scaling.beta_fast < scaling.beta_slow) {
      Find("rope.scaling.yarn_beta_fast").Fail("a number of at least yarn_beta_slow");
    }
    const GgufValue mix = Find("rope.scaling.yarn_ext_factor");
    if (!mix.IsMissing() && mix.AsDouble() != 1) mix.Refuse("1");
    const double attention = PositiveOr("rope.scaling.attn_factor", 1.0);
    scaling.attention_factor = attention * (0.1 * std::log(scaling.factor) + 1.0);
    if (config_.mla) {
      // Cosines have no factor in these; 0.1 x mscale_all_dim makes that of the scores.
      if (attention != 1) Find("rope.scaling.attn_factor").Refuse("1");
      scaling.attention_factor = 1;
      const GgufValue multiplier = Find("rope.scaling.yarn_log_multiplier");
      if (!multiplier.IsMissing()) scaling.mscale_all_dim = 10 * multiplier.AsDouble();
      if (scaling.mscale_all_dim < 0) multiplier.Fail("a number of at least 0");
      config_.mla->score_factor = internal::FactorOfScores(scaling);
    }
    const double stretched =
        std::floor(static_cast<double>(scaling.original_max_position_embeddings) * scaling.factor);
    if (stretched > static_cast<double>(limits::kPositions)) {
      Find("rope.scaling.factor")
          .Fail(fmt::format("at most {} positions, original_context_length x factor",
                            limits::kPositions));
    }
    config_.max_position_embeddings =
        std::max(config_.max_position_embeddings, static_cast<int64_t>(stretched));
  }

  void ParseRopeFactors(RopeScaling& scaling) {
    const GgufTensor* tensor = file_.FindTensor(kGgufRopeFactors);
    if (tensor == nullptr) {
      constexpr int64_t kLlama3Positions = 8192;
      constexpr double kLlama3Theta = 500000.0;
      if (config_.model_type == "llama" && config_.rope_theta == kLlama3Theta &&
          config_.max_position_embeddings > kLlama3Positions &&
          scaling.type == RopeScaling::Type::kDefault) {
        Warn(
            fmt::format("{}: found no tensor '{}': a Llama 3.1 that was converted before July "
                        "2024 gives worse text beyond {} tokens; convert it anew",
                        file_.path(), kGgufRopeFactors, kLlama3Positions));
      }
      return;
    }
    const auto fail = [&](const std::string& found, const std::string& expected) {
      throw InvalidInput(file_.path(), fmt::format("tensor '{}': found {}, expected {}",
                                                   kGgufRopeFactors, found, expected));
    };
    if (scaling.type != RopeScaling::Type::kDefault) {
      throw Unsupported(file_.path(),
                        fmt::format("tensor '{}': found it beside {}.rope.scaling, expected one of "
                                    "them",
                                    kGgufRopeFactors, prefix_));
    }
    const int64_t pairs = config_.rope_dim() / 2;
    if (tensor->type != GgufTensorType::kF32 || tensor->num_dims != 1 || tensor->cols != pairs) {
      fail(fmt::format("{} x {}", tensor->cols, LayoutOf(tensor->type).name),
           fmt::format("{} x F32, one for each pair of a head's values", pairs));
    }
    scaling.type = RopeScaling::Type::kFactors;
    scaling.factors.resize(static_cast<size_t>(pairs));
    std::memcpy(scaling.factors.data(), tensor->data, static_cast<size_t>(tensor->num_bytes));
    for (const float factor : scaling.factors) {
      if (!(factor > 0) || !std::isfinite(factor)) {
        fail(fmt::format("{}", factor), "finite numbers above 0");
      }
    }
  }

  // A token with a role. Nothing: none is named; some writers store -1 for that.
  std::optional<int64_t> SpecialToken(const char* name) const {
    const GgufValue value = file_.Find(fmt::format("tokenizer.ggml.{}_token_id", name));
    constexpr int64_t kNone = 0xffffffff;
    if (value.IsMissing()) return std::nullopt;
    const int64_t id = value.AsInt(-1, kNone);
    if (id == -1 || id == kNone) return std::nullopt;
    if (id >= config_.vocab_size) value.Fail(fmt::format("0 to {}", config_.vocab_size - 1));
    return id;
  }

  void ParseEnds() {
    config_.bos_token_id = SpecialToken("bos").value_or(-1);
    std::vector<int64_t>& ends = config_.eos_token_ids;
    for (const char* name : {"eos", "eot", "eom"}) {
      const std::optional<int64_t> id = SpecialToken(name);
      if (id.has_value()) ends.push_back(*id);
    }
    const GgufValue tokens = file_.Find(kTokens);
    const GgufValue types = file_.Find(kTokenTypes);
    if (tokens.IsArray() && types.IsArray() && types.size() == tokens.size()) {
      tokens.ForEachString([&](uint64_t id, std::string_view text) {
        if (std::find(std::begin(kEndTexts), std::end(kEndTexts), text) == std::end(kEndTexts)) {
          return;
        }
        constexpr int64_t kMostType = 1 << 20;
        if (types.IntAt(id, -kMostType, kMostType) == kControlType) {
          ends.push_back(static_cast<int64_t>(id));
        }
      });
    }
    std::sort(ends.begin(), ends.end());
    ends.erase(std::unique(ends.begin(), ends.end()), ends.end());
  }

  void Warn(std::string text) const {
    if (warnings_ != nullptr) warnings_->push_back(std::move(text));
  }

  const GgufSet& file_;
  const std::string prefix_;
  std::vector<std::string>* warnings_;
  ModelConfig config_;
};

}  // namespace

std::string GgufArchitecture(const GgufSet& file) {
  const GgufValue value = file.Find("general.architecture");
  const std::string name(value.AsString());
  std::string known;
  for (const Architecture& each : kArchitectures) {
    if (name == each.name) return name;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", each.name);
  }
  value.Refuse("one of " + known);
}

ModelConfig ParseGgufConfig(const GgufSet& file, std::vector<std::string>* warnings) {
  return ConfigParser(file, warnings).Parse();
}

}  // namespace pmkvq
