// All steps of calibration in one go: max keys -> key scales -> sensitivity -> allocation -> plan.
#pragma once

#include <string>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/sinks.h"
#include "pmkvq/kv/plan.h"
#include "pmkvq/model/model.h"
#include "pmkvq/research/calib/allocate.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/research/calib/samples.h"

namespace pmkvq {

struct CalibrateOptions {
  SampleOptions samples;
  RepScaleOptions rep_scales;
  bool search_key_scales = true;  // Without: the plan has no key scales.
  AllocationOptions allocation;   // Its cache.geometry is replaced by the model's.
  int num_threads = 1;
  // File of the finished plan. Checkpoints of the steps lie beside it until then (CheckpointPath).
  // Empty: the plan is only returned, and an interrupted call cannot be resumed.
  std::string plan_path;
  ProgressSink* progress = nullptr;  // May be null, like the next two.
  LogSink* log = nullptr;
  const CancelFlag* cancel = nullptr;
};

// `tokenizer` may be null when all rows of the data set have ids. An impossible budget is refused
// before anything is measured. When the flag is set it throws Cancelled; the same call then
// continues after the last finished sample, with the same result bit for bit.
// Throws InvalidInput and IoError as the steps do.
Plan Calibrate(const CalibrateOptions& options, const Model& model, const Tokenizer* tokenizer);

// Puts `allocation`, and the options that it was made with, into a plan: sink, window, float type,
// max_len, budget, and each block's widths and bytes. Identity and geometry are the caller's.
void SetAllocation(const AllocationOptions& options, Allocation allocation, Plan& plan);

// How `samples` were drawn, and in which form the weights of `model` measure them.
CalibrationRecord RecordOf(const SampleOptions& options, const Samples& samples,
                           const Model& model);

// PLAN.json -> PLAN.<step>.partial.json; steps "max-keys", "rep-scales", "sensitivity".
std::string CheckpointPath(const std::string& plan_path, const std::string& step);

// The allocation inputs that a plan was made with. The choices are the widths that occur in it.
AllocationOptions AllocationOptionsOf(const Plan& plan);

// The same calibration with another allocation: budget, max_len, widths, sink, window, float type.
// The geometry in `options` is replaced by the plan's. Throws as Allocate; InvalidInput
// when the plan holds no sensitivities.
Plan Reallocate(const Plan& plan, AllocationOptions options);

}  // namespace pmkvq
