// The loop over samples that all steps of calibration share: progress, cancelling, resuming.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "pmkvq/research/calib/calibration.h"

namespace pmkvq {

struct SampleLoopStep {
  std::string task;     // Shown as progress, and names the step in its checkpoint.
  std::string options;  // What else its values depend on.
  size_t num_values = 0;
  // The first ones are added over samples; of the others, >= 0 each, the largest are kept.
  size_t num_sums = std::numeric_limits<size_t>::max();
  // The values of one sample. Runs in a CancelScope (base/interrupt.h) of the context's flag, so
  // that each ParallelFor and CancelPoint in it may throw Cancelled: the sample is then done again.
  std::function<std::vector<double>(std::span<const int32_t> tokens,
                                    std::span<const int64_t> positions)>
      process;
};

// Runs `process` over all samples in order and returns the combined values.
//
// One process: the checkpoint (sample_checkpoint.h) is replaced every few seconds and when the loop
// is cancelled. Parts that a job array left beside it are taken over. A checkpoint of another run,
// or a damaged one, is ignored with a warning.
// Inside a SampleSharingScope (shared_samples.h) it runs over this process's samples, and returns
// the values of all, bit for bit those of one process; throws PartDone where samples of other parts
// are missing. Throws InvalidInput naming the sample when one of its values is not finite.
std::vector<double> LoopOverSamples(const CalibrationContext& context, const SampleLoopStep& step);

}  // namespace pmkvq
