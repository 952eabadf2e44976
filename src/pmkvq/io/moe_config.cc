#include "pmkvq/io/moe_config.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/io/model_bounds.h"

namespace pmkvq::internal {
namespace {

// Qwen3MoeConfig and MixtralConfig of transformers.
constexpr int64_t kQwen3Experts = 128;
constexpr int64_t kQwen3Chosen = 8;
constexpr int64_t kQwen3ExpertSize = 768;
constexpr int64_t kMixtralExperts = 8;
constexpr int64_t kMixtralChosen = 2;

int64_t IntOr(const JsonValue& json, const char* key, int64_t minimum, int64_t maximum,
              int64_t absent) {
  const JsonValue value = json.Find(key);
  return value.IsMissing() ? absent : value.AsInt(minimum, maximum);
}

void Refuse(const JsonValue& json) {
  for (const char* key : {"num_experts", "num_local_experts", "n_routed_experts",
                          "num_experts_per_tok", "moe_intermediate_size"}) {
    if (json.Has(key) && json.At(key).AsInt() > 0) {
      json.At(key).Refuse("no such field: experts of this architecture are not supported");
    }
  }
}

std::vector<bool> BlocksOfQwen3(const JsonValue& json, int64_t num_layers) {
  const int64_t step = IntOr(json, "decoder_sparse_step", 1, kMaxLayers, 1);
  std::vector<bool> blocks(static_cast<size_t>(num_layers));
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    blocks[static_cast<size_t>(layer)] = (layer + 1) % step == 0;
  }
  const JsonValue dense = json.Find("mlp_only_layers");
  if (dense.IsNull()) return blocks;
  for (const int64_t layer : dense.AsIntArray()) {
    if (layer >= 0 && layer < num_layers) blocks[static_cast<size_t>(layer)] = false;
  }
  return blocks;
}

// Those of DeepSeek: from first_k_dense_replace on, each moe_layer_freq-th.
std::vector<bool> BlocksOfDeepSeek(const JsonValue& json, int64_t num_layers,
                                   int64_t default_first) {
  const int64_t first = IntOr(json, "first_k_dense_replace", 0, kMaxLayers, default_first);
  const int64_t step = IntOr(json, "moe_layer_freq", 1, kMaxLayers, 1);
  std::vector<bool> blocks(static_cast<size_t>(num_layers));
  for (int64_t layer = first; layer < num_layers; ++layer) {
    blocks[static_cast<size_t>(layer)] = layer % step == 0;
  }
  return blocks;
}

// An integer above 0, or null for 1.
int64_t CountOrNull(const JsonValue& json, const char* key, int64_t maximum, int64_t absent) {
  const JsonValue value = json.Find(key);
  if (value.IsMissing()) return absent;
  return value.IsNull() ? 1 : value.AsInt(1, maximum);
}

void ParseGroups(const JsonValue& json, int64_t num_groups, int64_t num_chosen, MoeConfig& moe) {
  moe.num_groups = CountOrNull(json, "n_group", kMaxExperts, num_groups);
  moe.num_chosen_groups = CountOrNull(json, "topk_group", kMaxExperts, num_chosen);
  if (moe.num_experts % moe.num_groups != 0) {
    json.Find("n_group").Fail(fmt::format("a divisor of n_routed_experts ({})", moe.num_experts));
  }
  if (moe.num_chosen_groups > moe.num_groups) {
    json.Find("topk_group").Fail(fmt::format("at most n_group ({})", moe.num_groups));
  }
  const int64_t can_be_chosen = moe.num_experts / moe.num_groups * moe.num_chosen_groups;
  if (moe.num_chosen > can_be_chosen) {
    json.Find("num_experts_per_tok")
        .Fail(fmt::format("at most {}, the experts of topk_group groups", can_be_chosen));
  }
}

// How experts are chosen and weighted. Defaults are those of DeepseekV2Config and DeepseekV3Config
// of transformers.
void ParseDeepSeekRule(const JsonValue& json, bool is_v3, MoeConfig& moe) {
  const JsonValue method = json.Find("topk_method");
  const std::string name = method.IsNull() ? (is_v3 ? "noaux_tc" : "greedy") : method.AsString();
  const std::string known = is_v3 ? "\"noaux_tc\"" : "\"greedy\" or \"group_limited_greedy\"";
  if (is_v3 ? name != "noaux_tc" : name != "greedy" && name != "group_limited_greedy") {
    method.Refuse(known);
  }
  const JsonValue score = json.Find("scoring_func");
  const std::string expected = is_v3 ? "sigmoid" : "softmax";
  if (!score.IsNull() && score.AsString() != expected) score.Refuse("\"" + expected + "\"");
  moe.score = is_v3 ? ExpertScore::kSigmoid : ExpertScore::kSoftmax;
  moe.choice_bias = is_v3;
  moe.normalize = json.BoolOr("norm_topk_prob", is_v3);
  const JsonValue factor = json.Find("routed_scaling_factor");
  moe.weight_factor = is_v3 ? 2.5 : 1.0;
  if (!factor.IsMissing()) moe.weight_factor = factor.AsDouble();
  if (!(moe.weight_factor > 0) || moe.weight_factor > 1e6) {
    factor.Fail("a number above 0 and at most 1000000");
  }
  // V2 multiplies weights that are not normalised, V3 all.
  if (!is_v3 && moe.normalize) moe.weight_factor = 1;
  if (is_v3) {
    ParseGroups(json, 8, 4, moe);
    moe.group_top = std::min<int64_t>(2, moe.num_experts / moe.num_groups);
  } else if (name == "group_limited_greedy") {
    ParseGroups(json, 1, 1, moe);
  }
}

std::optional<MoeConfig> ParseDeepSeek(const JsonValue& json, bool is_v3,
                                       const ModelConfig& config) {
  const JsonValue count = json.Find("n_routed_experts");
  if (count.IsNull() && !count.IsMissing()) return std::nullopt;  // A dense model.
  MoeConfig moe;
  moe.num_experts = count.AsInt(1, kMaxExperts);
  const JsonValue chosen = json.Find("num_experts_per_tok");
  moe.num_chosen = chosen.AsInt(1, kMaxExperts);
  if (moe.num_chosen > moe.num_experts) {
    chosen.Fail(fmt::format("at most {}, which n_routed_experts says", moe.num_experts));
  }
  moe.expert_size = json.Find("moe_intermediate_size").AsInt(1, kMaxIntermediate);
  const JsonValue shared = json.Find("n_shared_experts");
  int64_t num_shared = is_v3 ? 1 : 2;
  if (!shared.IsMissing()) num_shared = shared.IsNull() ? 0 : shared.AsInt(0, kMaxExperts);
  moe.shared_size = num_shared * moe.expert_size;
  if (moe.shared_size > kMaxIntermediate) {
    shared.Fail(
        fmt::format("at most {} / moe_intermediate_size ({})", kMaxIntermediate, moe.expert_size));
  }
  moe.blocks = BlocksOfDeepSeek(json, config.num_layers, is_v3 ? 3 : 0);
  ParseDeepSeekRule(json, is_v3, moe);
  return moe;
}

std::optional<MoeConfig> ParseQwen3OrMixtral(const JsonValue& json, bool is_qwen3,
                                             const ModelConfig& config) {
  const char* const count_key = is_qwen3 ? "num_experts" : "num_local_experts";
  MoeConfig moe;
  moe.num_experts = IntOr(json, count_key, is_qwen3 ? 0 : 1, kMaxExperts,
                          is_qwen3 ? kQwen3Experts : kMixtralExperts);
  if (moe.num_experts == 0) return std::nullopt;
  moe.num_chosen =
      IntOr(json, "num_experts_per_tok", 1, kMaxExperts, is_qwen3 ? kQwen3Chosen : kMixtralChosen);
  if (moe.num_chosen > moe.num_experts) {
    json.Find("num_experts_per_tok")
        .Fail(fmt::format("at most {}, which {} says", moe.num_experts, count_key));
  }
  if (is_qwen3) {
    moe.expert_size = IntOr(json, "moe_intermediate_size", 1, kMaxIntermediate, kQwen3ExpertSize);
    moe.normalize = json.BoolOr("norm_topk_prob", false);
    moe.blocks = BlocksOfQwen3(json, config.num_layers);
  } else {
    moe.expert_size = config.intermediate_size;
    moe.normalize = true;
    moe.blocks.assign(static_cast<size_t>(config.num_layers), true);
  }
  return moe;
}

// The key that says how many experts there are.
const char* CountKey(MoeKeys keys) {
  switch (keys) {
    case MoeKeys::kQwen3:
      return "num_experts";
    case MoeKeys::kMixtral:
      return "num_local_experts";
    default:
      return "n_routed_experts";
  }
}

}  // namespace

bool AreTooManyExperts(const MoeConfig& moe) {
  const int64_t num_blocks = std::count(moe.blocks.begin(), moe.blocks.end(), true);
  return moe.num_experts * num_blocks > kMaxExpertsInAll;
}

std::optional<MoeConfig> ParseMoeConfig(const JsonValue& json, MoeKeys keys,
                                        const ModelConfig& config) {
  if (keys == MoeKeys::kNone) {
    Refuse(json);
    return std::nullopt;
  }
  std::optional<MoeConfig> moe;
  if (keys == MoeKeys::kDeepSeekV2 || keys == MoeKeys::kDeepSeekV3) {
    moe = ParseDeepSeek(json, keys == MoeKeys::kDeepSeekV3, config);
  } else {
    moe = ParseQwen3OrMixtral(json, keys == MoeKeys::kQwen3, config);
  }
  if (!moe || std::find(moe->blocks.begin(), moe->blocks.end(), true) == moe->blocks.end()) {
    return std::nullopt;
  }
  if (AreTooManyExperts(*moe)) {
    json.Find(CountKey(keys))
        .Fail(fmt::format("at most {} experts in all blocks", kMaxExpertsInAll));
  }
  return moe;
}

}  // namespace pmkvq::internal
