// The inputs of a cache: the options of a command, and the requirements of the engine.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "pmkvq/io/checkpoint.h"
#include "pmkvq/kernels/rope/rope.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/kv/plan.h"
#include "pmkvq/kv/spec/cache_settings.h"

namespace pmkvq {

// One pool for all sequences, in place of a budget for each (CacheConfig::pool).
struct KvPoolOptions {
  int64_t bytes = 0;                      // --kv-pool; 0: no pool.
  int floor_bits = 4;                     // --kv-floor: no page of pm-kvq goes below it.
  int64_t step_bytes = int64_t{8} << 20;  // --kv-step-bytes
  int64_t read_limit_bytes = 0;           // --kv-read-limit; 0: none.
  int64_t prefix_bytes = 0;               // --prefix-cache; 0: off. More than `bytes` is as much.
  bool prefix_may_be_off = false;         // It is where the cache cannot have it.
  int prefix_min_bits = 8;                // --prefix-min-bits; at least the floor in effect.
  double prefix_idle_seconds = 10;        // PoolConfig::prefix_idle_seconds
};

// The option group that every command that runs a model shares. Fields that a SPEC alone gives are
// read from it anew where a cache is made.
struct KvOptions : CacheSettings {
  std::string spec = "fp16";         // --kv
  std::shared_ptr<const Plan> plan;  // --plan; null: none
  std::string plan_path = "--plan";  // Where the plan was read from, for messages.
  int64_t budget_bytes = 0;          // --kv-budget, one sequence, all blocks; 0: by plan or max_len
  KvPoolOptions pool;
};

// What the engine knows about its needs.
struct KvRequirements {
  KvGeometry geometry;
  int64_t max_sequences = 1;
  int64_t max_len = 0;  // Longest sequence, in tokens; sizes caches that have no budget.
  int num_threads = 1;
  const RopeTable* rope = nullptr;  // The model's, for methods that work on keys before RoPE.
  const Checkpoint* checkpoint = nullptr;  // The model's: files of from= made for another one are
                                           // refused. Null: taken without asking.
  int64_t chunk_tokens = 512;  // Most tokens of a sequence in one Forward; sizes caches of sliding
                               // windows.
  DeviceId device = {};        // That the model runs on, and packed caches lie on.
  // Makes packed caches for a model in shards or slices (model/ranks/shard.h), which has no others.
  // Null: MakePackedKvCache.
  std::function<std::unique_ptr<KvStore>(const CacheConfig&)> make_packed = nullptr;
};

}  // namespace pmkvq
