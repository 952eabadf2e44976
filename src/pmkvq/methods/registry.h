// The only place that turns a SPEC string into a cache.
//
//   SPEC = name[:key=value[+key=value...]]
//
//   fp16        nothing quantised
//   static-8, static-4, static-2   every closed page at once at that width
//   pm-kvq      progressive: 16 -> 8 -> 4 -> 2 when the budget is reached
// Keys: bits=16|8|4|2 (pm-kvq: the budget of that width at max_len in every block, in place of the
//       plan's budgets; not together with --kv-budget),
//       scales=on|off (use the plan's key scales; on by default).
//
// Published methods run in the simulated cache (kv/simulated_cache.h), each in a file of its own
// that says its keys; docs/methods.md lists them all. They take --kv-budget and --kv-dtype; a plan,
// its key scales included, and the options of pages (sink, window, policy) are not theirs.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/kv/plan.h"
#include "pmkvq/methods/kv_budget.h"

namespace pmkvq {

// The option group that every command that runs a model shares.
struct KvOptions {
  std::string spec = "fp16";         // --kv
  std::shared_ptr<const Plan> plan;  // --plan; null: none
  int64_t budget_bytes = 0;          // --kv-budget, one sequence, all blocks; 0: by plan or max_len
  PolicyKind policy = PolicyKind::kLayerBudget;  // --policy
  int64_t sink_tokens = -1;                      // --n-sink-token; -1: the plan's, or 1
  int64_t window_tokens = -1;                    // --n-window-token; -1: the plan's, or 128
  int init_kv_bits = 16;         // --n-init-kv-bits (pm-kvq): width at which pages close at first
  DType kv_dtype = DType::kF16;  // --kv-dtype
  bool reference_accounting = false;
};

// What the engine knows about its needs.
struct KvRequirements {
  KvGeometry geometry;
  int64_t max_sequences = 1;
  int64_t max_len = 0;  // Longest sequence, in tokens; sizes caches that have no budget.
  int num_threads = 1;
  const RopeTable* rope = nullptr;  // The model's, for methods that work on keys before RoPE.
};

// The packed cache's configuration for these options. Not for the SPEC of a simulated method.
//
// Budgets: --kv-budget (split over blocks in proportion to the plan's budgets for pm-kvq, evenly
// otherwise); else for pm-kvq the bits key, else the plan's budgets; else, for fp16 and static-b,
// what max_len tokens take at the method's own width. A plan gives fp16 and static-b its key
// scales, sink and window only.
// A budget that cannot hold max_len tokens is no error: the sequence ends with kv_budget.
// Throws InvalidInput naming the option: unknown method or key (the known ones are listed), pm-kvq
// without any budget, a plan for other shapes, and what ValidateCacheConfig refuses.
CacheConfig ResolveCacheConfig(const KvOptions& options, const KvRequirements& requirements);

// What a sequence may take with these options. A simulated method has --kv-budget, split evenly
// over blocks, or the most that it takes at any length up to max_len.
// Throws InvalidInput (as ResolveCacheConfig; reference accounting with a simulated method).
KvBudget ResolveKvBudget(const KvOptions& options, const KvRequirements& requirements);

// Makes the store. Throws InvalidInput (as ResolveCacheConfig), IoError (memory).
std::unique_ptr<KvStore> MakeKvStore(const KvOptions& options, const KvRequirements& requirements);

// Key scales that the options ask for: the plan's, or empty. The reference is valid as long as
// `options.plan` lives. Throws InvalidInput for a wrong SPEC.
const std::vector<Tensor>& KeyScalesOf(const KvOptions& options);

// Names and one-line descriptions, for --help.
struct MethodInfo {
  std::string name;
  std::string description;
  bool is_simulated = false;  // Counts the method's bytes; takes nothing from a plan.
};
std::vector<MethodInfo> ListMethods();

}  // namespace pmkvq
