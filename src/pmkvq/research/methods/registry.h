// The only place that turns a SPEC string into a cache.
//
//   SPEC = name[:key=value[+key=value...]]
//
//   fp16        nothing quantised
//   static-8, static-4, static-2   every closed page at once at that width
//   pm-kvq      progressive: 16 -> 8 -> 4 -> 2 when the budget is reached
// Their keys: kv/spec/packed_spec.h.
//
// Published methods run in the simulated cache (kv/simulated/simulated_cache.h), one file per
// method with its keys; docs/methods.md lists them all. They take --kv-budget and --kv-dtype. A
// plan with its key scales, and the options of pages (sink, window, policy), do not apply to them.
// Calibrated methods read the data of CalibrateMethod by the key from=FILE (method_data.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/kv_budget.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/kv/spec/kv_options.h"
#include "pmkvq/kv/spec/spec.h"
#include "pmkvq/model/model.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/research/methods/method_data.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {

// The packed cache's configuration for these options. Not for the SPEC of a simulated method.
//
// Budgets: --kv-budget (split over blocks in proportion to the plan's budgets for pm-kvq, evenly
// otherwise); else for pm-kvq the bits key, else the plan's budgets; for fp16 and static-b the
// bytes of max_len tokens at the method's width. A plan gives fp16 and static-b its key scales,
// sink and window only. A budget that cannot hold max_len tokens is no error: the sequence ends
// with kv_budget. Throws InvalidInput naming the option: unknown method or key (the known ones are
// listed), pm-kvq without any budget, a plan for other shapes, and as ValidateCacheConfig.
CacheConfig ResolveCacheConfig(const KvOptions& options, const KvRequirements& requirements);

// The budget of one sequence with these options. For a simulated method: the largest bytes at any
// length up to max_len; --kv-budget, where given, is split over blocks in proportion to these.
// Throws InvalidInput (as ResolveCacheConfig; reference accounting with a simulated method). For
// the key from=: as LoadMethodData, and InvalidInput for a file of another method, shape or model.
KvBudget ResolveKvBudget(const KvOptions& options, const KvRequirements& requirements);

// Makes the store. Throws as ResolveKvBudget, and IoError (memory).
std::unique_ptr<KvStore> MakeKvStore(const KvOptions& options, const KvRequirements& requirements);

// The model with the weights that the SPEC's method has in place of the model's; null: with its
// own. The cache is still made for `model`, which the files of from= name. Throws as
// ResolveKvBudget, and as Model::WithWeights.
std::shared_ptr<const Model> ModelWithWeightsOf(const KvOptions& options, const Model& model,
                                                int num_threads);

// Key scales that the options ask for: the plan's, or empty. The reference is valid as long as
// `options.plan` lives. Throws InvalidInput for a wrong SPEC.
const std::vector<Tensor>& KeyScalesOf(const KvOptions& options);

// Adds a method to those that a SPEC may name, for the rest of the process; in place of one that
// was added under its name before. Caches that exist keep theirs. Throws InvalidInput naming the
// method: a name of ours, or one that is not of lower-case letters, digits and '-', beginning with
// a letter. Threads: like all functions here, it may be called at any time from any thread.
void AddMethod(SimulatedMethod method);
// False where no such method was added.
bool RemoveMethod(const std::string& name);
// SimulatedMethod::code_hash of the SPEC's method. Throws InvalidInput for a wrong SPEC.
std::string CodeHashOfSpec(const std::string& spec);

// Names, one-line descriptions and keys, for help.
struct MethodInfo {
  std::string name;
  std::string description;
  SpecKeys keys;
  bool is_simulated = false;   // Counts the method's bytes; takes nothing from a plan.
  bool is_calibrated = false;  // CalibrateMethod makes the file of its key from=.
};
std::vector<MethodInfo> ListMethods();

// Key and path of every file that the SPEC names, whether it is there or not. Throws InvalidInput
// for a wrong SPEC.
std::vector<std::pair<std::string, std::string>> FilesOfSpec(const std::string& spec);

// Throws InvalidInput naming --kv for a SPEC that CalibrateMethod refuses: an unknown method or
// key, a method with nothing to calibrate, the key from=.
void CheckIsCalibrated(const std::string& spec);
// Runs the calibration of a published method. `record` says how the samples were drawn.
// Throws as CheckIsCalibrated, as the steps of calibration, and Cancelled.
MethodData CalibrateMethod(const std::string& spec, DType kv_dtype,
                           const CalibrationContext& calibration, const CalibrationRecord& record);

}  // namespace pmkvq
