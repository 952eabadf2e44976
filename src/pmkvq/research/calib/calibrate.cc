#include "pmkvq/research/calib/calibrate.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdio>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/research/calib/sample_checkpoint.h"
#include "pmkvq/research/calib/shared_samples.h"

namespace pmkvq {
namespace {

constexpr const char* kRepScalesStep = "rep-scales";
constexpr const char* kSensitivityStep = "sensitivity";

// A finished step keeps its checkpoint until the plan is written, so that a run that is cancelled
// in a later step does not repeat it.
CalibrationContext StepContext(const CalibrateOptions& options, const Model& model,
                               const Samples& samples, const char* step) {
  CalibrationContext context;
  context.model = &model;
  context.samples = &samples;
  context.effective_len = options.samples.effective_len;
  context.num_threads = options.num_threads;
  context.progress = options.progress;
  context.log = options.log;
  context.cancel = options.cancel;
  if (!options.plan_path.empty()) context.checkpoint_path = CheckpointPath(options.plan_path, step);
  context.keep_checkpoint = true;
  return context;
}

}  // namespace

void SetAllocation(const AllocationOptions& options, Allocation allocation, Plan& plan) {
  plan.settings.sink_tokens = options.cache.sink_tokens;
  plan.settings.window_tokens = options.cache.window_tokens;
  plan.settings.kv_dtype = options.cache.float_type;
  plan.rope_floor_bits = options.cache.rope_floor_bits;
  plan.max_len = options.max_len;
  plan.memory_budget_bytes = options.memory_budget_bytes;
  plan.settings.reference_accounting = options.reference_accounting;
  plan.mirrored = options.mirrored;
  plan.k_bits = std::move(allocation.k_bits);
  plan.v_bits = std::move(allocation.v_bits);
  plan.budget_bytes = std::move(allocation.budget_bytes);
}

CalibrationRecord RecordOf(const SampleOptions& options, const Samples& samples,
                           const Model& model) {
  CalibrationRecord record;
  record.dataset = options.dataset;
  record.pack = NameOf(options.packing);
  record.num_samples = static_cast<int64_t>(samples.tokens.size());
  record.seq_len = options.seq_len;
  record.effective_len = options.effective_len == 0 ? options.seq_len : options.effective_len;
  record.seed = options.seed;
  record.weights = NameOf(model.weights());
  return record;
}

std::string CheckpointPath(const std::string& plan_path, const std::string& step) {
  constexpr std::string_view kExtension = ".json";
  std::string stem = plan_path;
  if (stem.ends_with(kExtension)) stem.resize(stem.size() - kExtension.size());
  return stem + "." + step + ".partial.json";
}

Plan Calibrate(const CalibrateOptions& options, const Model& model, const Tokenizer* tokenizer) {
  AllocationOptions allocation = options.allocation;
  allocation.cache.geometry = model.kv_geometry();
  CheckAllocationOptions(allocation);
  const Samples samples = DrawSamples(options.samples, model.config(), tokenizer, options.log);

  Plan plan;
  plan.model_identity = model.checkpoint().Identity();
  plan.geometry = model.kv_geometry();
  plan.record = RecordOf(options.samples, samples, model);
  if (options.search_key_scales) {
    SensitivityAndKeys measured =
        MeasureSensitivityAndKeys(StepContext(options, model, samples, kSensitivityStep));
    plan.sensitivity = std::move(measured.sensitivity);
    RepScales scales = SearchRepScales(StepContext(options, model, samples, kRepScalesStep),
                                       measured.max_keys, options.rep_scales);
    plan.key_scales = std::move(scales.scales);
    plan.alpha = std::move(scales.alpha);
    plan.rep_k_bits = options.rep_scales.k_bits;
    plan.rep_v_bits = options.rep_scales.v_bits;
  } else {
    plan.sensitivity = MeasureSensitivity(StepContext(options, model, samples, kSensitivityStep));
  }
  SetAllocation(allocation, Allocate(plan.sensitivity, allocation), plan);

  if (!options.plan_path.empty() && CurrentSampleSharing().is_first()) {
    SavePlan(plan, options.plan_path);
    for (const char* step : {kRepScalesStep, kSensitivityStep}) {
      RemoveSampleFiles(CheckpointPath(options.plan_path, step));
    }
  }
  return plan;
}

AllocationOptions AllocationOptionsOf(const Plan& plan) {
  AllocationOptions options;
  options.cache.geometry = plan.geometry;
  options.cache.sink_tokens = plan.settings.sink_tokens;
  options.cache.window_tokens = plan.settings.window_tokens;
  options.cache.float_type = plan.settings.kv_dtype;
  options.cache.rope_floor_bits = plan.rope_floor_bits;
  options.max_len = plan.max_len;
  options.memory_budget_bytes = plan.memory_budget_bytes;
  options.reference_accounting = plan.settings.reference_accounting;
  options.mirrored = plan.mirrored;
  options.separate_kv = plan.k_bits != plan.v_bits;
  options.fbit_choices.clear();
  for (const int bits : kWidths) {
    bool is_chosen = false;
    for (size_t block = 0; block < plan.k_bits.size(); ++block) {
      is_chosen |= plan.k_bits[block] == bits;
      // That of k_r may be its floor, which is no choice of c.
      is_chosen |= plan.v_bits[block] == bits && !plan.geometry.blocks[block].is_latent();
    }
    if (is_chosen) options.fbit_choices.push_back(bits);
  }
  return options;
}

Plan Reallocate(const Plan& plan, AllocationOptions options) {
  if (plan.sensitivity.k.empty() || plan.sensitivity.v.empty()) {
    throw InvalidInput("plan", "found no sensitivities, expected those of a calibration");
  }
  options.cache.geometry = plan.geometry;
  Plan result = plan;
  SetAllocation(options, Allocate(result.sensitivity, options), result);
  return result;
}

}  // namespace pmkvq
