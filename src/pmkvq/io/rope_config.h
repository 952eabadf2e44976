// The rotary-embedding part of config.json, in its old and its new spelling.
#pragma once

#include <cstdint>

#include "pmkvq/io/json.h"
#include "pmkvq/io/model_config.h"

namespace pmkvq::internal {

struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling;
};

// Reads `rope_parameters` {rope_theta, rope_type, ...}, or `rope_theta` and `rope_scaling`
// {rope_type or type, ...}. `json` is the whole config. Throws Unsupported for scaling types and
// options this program does not compute, InvalidInput for missing or senseless values.
RopeConfig ParseRopeConfig(const JsonValue& json, int64_t max_position_embeddings);

}  // namespace pmkvq::internal
