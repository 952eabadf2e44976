// What every command that measures for calibration sets up: model, samples, sinks, context.
#pragma once

#include <memory>
#include <string>

#include "pmkvq/research/calib/calibrate.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/research/calib/shared_samples.h"
#include "terminal.h"
#include "tokenizer_options.h"

namespace pmkvq::cli {

// The model folder, the data and how a step runs over them.
struct CalibrationRunOptions {
  std::string model;
  WeightMode weights = WeightMode::kAsStored;
  SampleOptions samples;
  TokenizerCommandOptions tokenizer;
  int threads = 0;  // 0: all processors.
  std::string device = "cpu";
  std::string checkpoint;   // File for partial results; "": none.
  std::string fingerprint;  // What else than model and samples a checkpoint depends on.
  SampleSharing sharing;    // Who measures the samples.
};

// Reads the model, draws the samples, shows progress on stderr, and is cancelled by Ctrl-C. Must
// outlive the users of context().
class CalibrationRun {
 public:
  // Throws as Model::Load and DrawSamples.
  explicit CalibrationRun(const CalibrationRunOptions& options);
  CalibrationRun(const CalibrationRun&) = delete;
  CalibrationRun& operator=(const CalibrationRun&) = delete;

  const CalibrationContext& context() const { return context_; }
  const Model& model() const { return *model_; }
  CalibrationRecord Record() const { return RecordOf(sample_options_, samples_, *model_); }

 private:
  SampleOptions sample_options_;
  std::shared_ptr<const Model> model_;
  StderrLog log_;
  ProgressBar progress_;
  Samples samples_;
  CalibrationContext context_;
  SampleSharing sharing_;
  SampleSharingScope sharing_scope_;
};

}  // namespace pmkvq::cli
