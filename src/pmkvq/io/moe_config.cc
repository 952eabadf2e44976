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
  const bool is_qwen3 = keys == MoeKeys::kQwen3;
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
  if (std::find(moe.blocks.begin(), moe.blocks.end(), true) == moe.blocks.end()) {
    return std::nullopt;
  }
  if (AreTooManyExperts(moe)) {
    json.Find(count_key).Fail(fmt::format("at most {} experts in all blocks", kMaxExpertsInAll));
  }
  return moe;
}

}  // namespace pmkvq::internal
