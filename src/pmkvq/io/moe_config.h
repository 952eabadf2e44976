// Mixtures of experts in config.json.
#pragma once

#include <cstdint>
#include <optional>

#include "pmkvq/io/json.h"
#include "pmkvq/io/model_config.h"

namespace pmkvq::internal {

// Which keys say it. Absent ones have the values that transformers assumes.
enum class MoeKeys : uint8_t {
  kNone,   // The architecture has no experts: a config with some is refused.
  kQwen3,  // num_experts, moe_intermediate_size, norm_topk_prob; blocks by decoder_sparse_step and
           // mlp_only_layers.
  kMixtral,  // num_local_experts in all blocks, of the size intermediate_size; weights normalised.
  kDeepSeekV2,  // n_routed_experts, n_shared_experts, topk_method, n_group, topk_group; blocks by
  kDeepSeekV3,  // first_k_dense_replace and moe_layer_freq. V3 has sigmoid scores and a bias.
};

// `json` is the whole config, `config` has its sizes. Nothing where no block has experts. Throws
// InvalidInput and Unsupported naming the field.
std::optional<MoeConfig> ParseMoeConfig(const JsonValue& json, MoeKeys keys,
                                        const ModelConfig& config);

// Whether so many experts in so many blocks are within the bounds of what a model may have
// (kMaxExpertsInAll): each has three matrices with a name.
bool AreTooManyExperts(const MoeConfig& moe);

}  // namespace pmkvq::internal
