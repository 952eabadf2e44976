// The effect of positional interpolation on calibration. Positions of the calibration texts are
// stretched by each factor; the resulting key scales and placement are measured on long texts at
// their real positions (docs/analysis.md).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/research/analysis/lock_step.h"
#include "pmkvq/research/calib/allocate.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/research/report/html_page.h"

namespace pmkvq {

struct InterpolationOptions {
  AllocationOptions allocation;  // One budget for all. Geometry is the model's.
  std::vector<int64_t> factors;  // Position distance between neighbouring tokens; ascending.
  std::vector<Samples> samples;  // One set per context length (samples.seq_len).
  std::vector<std::vector<int32_t>> texts;  // To evaluate on, of at most allocation.max_len tokens.
  RepScaleOptions rep_scales;
  int64_t chunk = 16;  // Tokens of a measured Forward.
  int num_threads = 1;
  ProgressSink* progress = nullptr;
  LogSink* log = nullptr;
  const CancelFlag* cancel = nullptr;
};

// Calibration with one factor and one context length.
struct InterpolationPoint {
  int64_t seq_len = 0;
  int64_t factor = 1;
  double calibration_loss = 0;  // Mean over samples, at the stretched positions, nats.
  std::vector<double> alpha;    // Per block.
  Sensitivity sensitivity;
  double rank_correlation = 0;  // Of the blocks' sensitivities with those of the first factor.
  std::vector<int> k_bits;
  std::vector<int> v_bits;
  CacheMeans cache;           // pm-kvq with this calibration's key scales and placement.
  CacheMeans placement_only;  // The same placement without key scales.

  // Positions that the samples reached.
  int64_t effective_len() const { return seq_len * factor; }
};

struct Interpolation {
  AllocationOptions allocation;
  int64_t max_positions = 0;               // The model's.
  std::vector<int64_t> num_samples;        // Per context length.
  std::vector<int64_t> text_tokens;        // Lengths of the evaluation texts.
  std::vector<InterpolationPoint> points;  // By context length, then factor.
};

// Cost: per context length and factor one calibration, scale search included; per distinct plan one
// pass over the texts, with and without its scales, and one of fp16.
// Throws as Calibrate and RunLockStep, and InvalidInput without factors, samples or texts.
Interpolation MeasureInterpolation(const std::shared_ptr<const Model>& model,
                                   const InterpolationOptions& options);

std::string InterpolationJson(const Interpolation& interpolation, const std::string& command);
// The result in a sentence per context length: the factor with the least KL, and where the model no
// longer understands the stretched text.
std::string InterpolationVerdict(const Interpolation& interpolation);
HtmlPage InterpolationPage(const Interpolation& interpolation, const PageOrigin& origin);

}  // namespace pmkvq
