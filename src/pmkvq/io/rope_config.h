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

// What an architecture makes of the rotary part.
struct RopeRules {
  bool by_layer_type = false;  // Blocks of different types may have different values.
  double theta = 10000.0;      // Where the config has none.
};

// `json` is the whole config. As in transformers 5:
//  * `rope_scaling`, unless it is empty, replaces `rope_parameters`;
//  * either may hold one set of values for each layer type ("full_attention": {...}), which must be
//    the same but for `rules.by_layer_type`; the result is that of full attention;
//  * `rope_type` wins over `type`; neither means "default";
//  * `rope_theta` beside the set is its default, `rules.theta` the default of both;
//  * `original_max_position_embeddings` beside the set wins over the one inside; where there is
//    none, llama3 and yarn take max_position_embeddings.
// Throws Unsupported for scaling types and options that this program does not compute,
// InvalidInput for missing or senseless values.
RopeConfig ParseRopeConfig(const JsonValue& json, int64_t max_position_embeddings,
                           const RopeRules& rules = {});

// That of blocks with a sliding window, with `rules.by_layer_type`: the values of
// "sliding_attention" in rope_parameters; theta is inside, or rope_local_base_freq, or 10000.
RopeConfig ParseLocalRopeConfig(const JsonValue& json, int64_t max_position_embeddings);

}  // namespace pmkvq::internal
