// The only place that turns a SPEC string into a cache.
//
//   SPEC = name[:key=value[+key=value...]]
//
//   fp16        nothing quantised
//   static-8, static-4, static-2   every closed page at once at that width
//   pm-kvq      progressive: 16 -> 8 -> 4 -> 2 when the budget is reached
// Keys: bits=16|8|4|2 (pm-kvq without plan or --kv-budget: the budget of that width at max_len),
//       scales=on|off (use the plan's key scales; on by default).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/kv/plan.h"

namespace pmkvq {

// The option group that every command that runs a model shares.
struct KvOptions {
  std::string spec = "fp16";         // --kv
  std::shared_ptr<const Plan> plan;  // --plan; null: none
  int64_t budget_bytes = 0;          // --kv-budget, one sequence, all blocks; 0: by plan or max_len
  PolicyKind policy = PolicyKind::kLayerBudget;  // --policy
  int64_t sink_tokens = -1;          // --n-sink-token; -1: the plan's, or 1
  int64_t window_tokens = -1;        // --n-window-token; -1: the plan's, or 128
  int init_kv_bits = 16;             // --n-init-kv-bits (pm-kvq): width at which pages close at first
  DType kv_dtype = DType::kF16;      // --kv-dtype
  bool reference_accounting = false;
};

// What the engine knows about its needs.
struct KvRequirements {
  KvGeometry geometry;
  int64_t max_sequences = 1;
  int64_t max_len = 0;  // Longest sequence, in tokens; sizes caches that have no budget.
  int num_threads = 1;
};

// The packed cache's configuration for these options. Budgets, in this order: --kv-budget (split
// over blocks in proportion to the plan's, or evenly), the plan's, the bits key or the method's
// own width at max_len. Throws InvalidInput naming the option: unknown method or key (lists the
// known ones), a budget for fp16 or static-b that cannot hold max_len tokens is no error (the
// sequence ends with kv_budget).
CacheConfig ResolveCacheConfig(const KvOptions& options, const KvRequirements& requirements);

// Makes the store. Throws InvalidInput, IoError.
std::unique_ptr<KvStore> MakeKvStore(const KvOptions& options, const KvRequirements& requirements);

// Key scales that the options ask for: the plan's, or empty.
const std::vector<Tensor>& KeyScalesOf(const KvOptions& options);

// Names and one-line descriptions, for --help.
struct MethodInfo {
  std::string name;
  std::string description;
};
std::vector<MethodInfo> ListMethods();

}  // namespace pmkvq
