// The rotary-embedding part of config.json, in every spelling that transformers 5 reads.
#pragma once

#include <cstdint>

#include "pmkvq/io/json.h"
#include "pmkvq/io/model_config.h"

namespace pmkvq::internal {

struct RopeConfig {
  double theta = 10000.0;
  RopeScaling scaling;
};

// `json` is the whole config. As in transformers 5:
//  * `rope_scaling`, unless it is empty, replaces `rope_parameters`;
//  * either may hold one set of values for each layer type ("full_attention": {...}), which must be
//    the same here;
//  * `rope_type` wins over `type`; neither means "default";
//  * `rope_theta` beside the set is its default, 10000 the default of both;
//  * `original_max_position_embeddings` beside the set wins over the one inside; where there is
//    none, llama3 and yarn take max_position_embeddings.
// Throws Unsupported for scaling types and options that this program does not compute,
// InvalidInput for missing or senseless values.
RopeConfig ParseRopeConfig(const JsonValue& json, int64_t max_position_embeddings);

}  // namespace pmkvq::internal
