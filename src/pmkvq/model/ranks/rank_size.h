// What one of P ranks needs of a model, known from its config alone.
#pragma once

#include <cstdint>

#include "pmkvq/io/model_config.h"
#include "pmkvq/io/weights/weight_source.h"
#include "pmkvq/model/model.h"
#include "pmkvq/tensor/weight_format.h"

namespace pmkvq {

struct RankSize {
  ModelConfig config;        // Of the rank: its heads, its part of inner values.
  int64_t weight_bytes = 0;  // Its matrices in their formats, and what lies on every rank.
  int64_t kv_parts = 1;      // Different parts of the cache: budgets of the whole are so many times
  int64_t kv_copies = 1;     // the rank's. On how many ranks each of them lies.
  // Of one token: sums over ranks (two a block), and bytes that the rank receives in ordered sums
  // of floats. Logits, which rank 0 gets, come on top.
  int64_t sums = 0;
  int64_t sum_bytes = 0;
  int64_t logit_bytes = 0;
};

// Of the rank with the most weights. `weights` may be null: all matrices are `stored` then. Throws
// as CheckRanks (model/ranks/shard.h).
RankSize LargestRankOf(const ModelConfig& config, const WeightSource* weights, WeightFormat stored,
                       WeightMode mode, int num_ranks, bool on_device);

}  // namespace pmkvq
