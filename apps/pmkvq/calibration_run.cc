#include "calibration_run.h"

#include "common_options.h"
#include "weight_options.h"

namespace pmkvq::cli {

CalibrationRun::CalibrationRun(const CalibrationRunOptions& options)
    : sample_options_(options.samples),
      model_(LoadModel(options.model, options.weights, options.threads, options.device)),
      sharing_(options.sharing),
      sharing_scope_(sharing_) {
  const auto tokenizer = options.tokenizer.LoadIfReadable(options.model, kNoText);
  samples_ = DrawSamples(sample_options_, model_->config(), tokenizer.get(), &log_);
  context_.model = model_.get();
  context_.samples = &samples_;
  context_.effective_len = sample_options_.effective_len;
  context_.num_threads = ResolveThreads(options.threads);
  context_.progress = &progress_;
  context_.log = &log_;
  context_.cancel = InterruptFlag();
  context_.checkpoint_path = options.checkpoint;
  context_.fingerprint = options.fingerprint;
}

}  // namespace pmkvq::cli
