// The four steps of calibration. Each processes one sequence at a time and reports progress; all
// results depend on model, data and seed only.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/sinks.h"
#include "pmkvq/kv/plan.h"
#include "pmkvq/model/model.h"
#include "pmkvq/research/calib/samples.h"

namespace pmkvq {

// Inputs of every step. `model` and `samples` (at least one) must be set, the other pointers may be
// null. A cancelled step writes its checkpoint file, then throws Cancelled; the same call resumes
// from the file (samples done, running sums in full precision, so that the result is
// bit-identical). The checkpoint is removed on success, and ignored with a warning when model, data
// or options differ.
struct CalibrationContext {
  const Model* model = nullptr;
  const Samples* samples = nullptr;
  int64_t effective_len = 0;
  int num_threads = 1;
  ProgressSink* progress = nullptr;
  LogSink* log = nullptr;
  const CancelFlag* cancel = nullptr;
  std::string checkpoint_path;  // Empty: no resuming.
  // Additional text that a checkpoint must agree with. The model's identity and form of
  // weights, the tokens, effective_len and the options of the step must agree in any case.
  std::string fingerprint;
  bool keep_checkpoint = false;  // Keep it on success: the same call then answers at once.
};

// Mean over samples of mean |(Q_b(x) - x) * dL/dx|, for x = post-RoPE keys and values (eq. 4, 5),
// b = 16, 8, 4, 2.
Sensitivity MeasureSensitivity(const CalibrationContext& context);

// Per block, KV head and channel pair (i, i + D/2): max |k| over all samples, post-RoPE.
// Per block a tensor [Hkv, D/2] f32; of a latent block [r + dr], for each channel of c and of k_r,
// where both channels that RoPE turns together have the larger one of their values.
std::vector<Tensor> MeasureMaxKeys(const CalibrationContext& context);

// Both of these, the same bits, from one pass over the samples.
struct SensitivityAndKeys {
  Sensitivity sensitivity;
  std::vector<Tensor> max_keys;
};
SensitivityAndKeys MeasureSensitivityAndKeys(const CalibrationContext& context);

struct RepScaleOptions {
  int k_bits = 4;  // Of latent blocks: of c.
  int v_bits = 4;  // Of k_r.
  int grid = 20;   // alpha = 1 - n / grid, n = 0 .. grid - 1; of latent blocks 0 .. grid
};
struct RepScales {
  std::vector<Tensor> scales;      // Per block, as max_keys: max_keys^alpha in [1e-4, 1e4].
  std::vector<double> alpha;       // Per block; of latent blocks that of c.
  std::vector<double> rope_alpha;  // Per latent block that of k_r; else empty.
  // Per block, per grid point: sum over samples of the mean squared error (as the reference).
  std::vector<std::vector<double>> loss;
  std::vector<std::vector<double>> rope_loss;  // As rope_alpha.
};
// Per block, the alpha whose attention output (after o_proj), with keys K / scale quantised at
// k_bits and values at v_bits, has the least squared error to the unquantised one, summed over
// samples; ties to the larger alpha. The next block gets unquantised input, so one forward per
// sample serves all blocks (eq. 10).
//
// Latent blocks: c and k_r each have an alpha of their own, which is searched with the other part
// unquantised, since their errors add up while their widths are apart. alpha 0, no scales, is a
// point of the grid: a wrong exponent damages keys and values of all heads at once.
RepScales SearchRepScales(const CalibrationContext& context, const std::vector<Tensor>& max_keys,
                          const RepScaleOptions& options);

}  // namespace pmkvq
