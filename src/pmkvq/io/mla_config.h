// Latent attention in config.json.
#pragma once

#include "pmkvq/io/json.h"
#include "pmkvq/io/model_config.h"

namespace pmkvq::internal {

// `json` is the whole config, `config` has its heads; RoPE is not needed. The factor of scores is
// that of FactorOfScores. Throws InvalidInput and Unsupported naming the field: missing sizes,
// biases, blocks without RoPE, sparse attention.
MlaConfig ParseMlaConfig(const JsonValue& json, const ModelConfig& config);

// What YaRN multiplies the scores of latent attention with, besides (dn + dr)^-1/2: m^2,
// m = 0.1 w ln(factor) + 1 with w = mscale_all_dim. 1 without YaRN.
double FactorOfScores(const RopeScaling& scaling);

// Whether a latent of so many values and a rope key of so many can be stored: whole groups of 128,
// or one group of a multiple of 8.
bool IsLatentWidth(int64_t width);
bool IsRopeKeyWidth(int64_t width);

}  // namespace pmkvq::internal
