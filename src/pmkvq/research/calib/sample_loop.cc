#include "pmkvq/research/calib/sample_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/comm/all_or_none.h"
#include "pmkvq/io/file_lock.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/research/calib/sample_checkpoint.h"
#include "pmkvq/research/calib/shared_samples.h"

namespace pmkvq {
namespace {

std::string HashTokens(const Samples& samples) {
  Hash128 hash;
  for (const std::vector<int32_t>& tokens : samples.tokens) {
    hash.Update(fmt::format("{} ", tokens.size()));
    hash.Update(tokens.data(), tokens.size() * sizeof(int32_t));
  }
  hash.Update(fmt::format("{}", samples.seq_len));
  return hash.HexDigest();
}

std::string Fingerprint(const CalibrationContext& context, const SampleLoopStep& step) {
  return fmt::format("{} {} model {} weights {} tokens {} effective_len {} {}", step.task,
                     step.options, context.model->checkpoint().Identity(),
                     NameOf(context.model->weights()), HashTokens(*context.samples),
                     context.effective_len, context.fingerprint);
}

// Sums over weights or inputs that are not finite say nothing.
void CheckFinite(const SampleLoopStep& step, size_t sample, const std::vector<double>& values) {
  for (const double value : values) {
    if (std::isfinite(value)) continue;
    throw InvalidInput(step.task,
                       fmt::format("sample {}: found {} among what it measured, expected "
                                   "finite numbers: a weight of the model is not finite, "
                                   "or values overflowed",
                                   sample, value));
  }
}

void Accumulate(size_t num_sums, const std::vector<double>& sample, std::vector<double>& values) {
  PMKVQ_CHECK(sample.size() == values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = i < num_sums ? values[i] + sample[i] : std::max(values[i], sample[i]);
  }
}

// Measures one sample.
std::vector<double> Process(const CalibrationContext& context, const SampleLoopStep& step,
                            size_t sample) {
  CancelPoint();
  const std::vector<int64_t> positions = context.samples->Positions(sample, context.effective_len);
  std::vector<double> values = step.process(context.samples->tokens[sample], positions);
  CheckFinite(step, sample, values);
  return values;
}

// Parts that a job array left, for the one process that goes on with them.
class LeftParts {
 public:
  LeftParts(const std::string& path, const std::string& fingerprint, const SampleCounts& counts,
            LogSink* log)
      : path_(path), table_(counts) {
    if (path.empty() || SamplePartFiles(path).List().empty()) return;
    auto lock = FileLock::Try(path + ".lock", FileLock::Kind::kExclusive);
    if (!lock) {
      throw IoError(path,
                    "parts of a job array (--shard) are at work; expected none beside a run "
                    "without --shard (wait for them)");
    }
    lock_ = std::move(*lock);
    for (const std::string& part : SamplePartFiles(path).List()) {
      table_.AddFile(part, fingerprint, log);
    }
  }

  const SampleTable& table() const { return table_; }
  void Remove() {
    if (!lock_.is_held()) return;
    SamplePartFiles(path_).Remove();
    lock_.RemoveFile();
  }

 private:
  std::string path_;
  SampleTable table_;
  FileLock lock_;
};

std::vector<double> LoopOverShared(const CalibrationContext& context, const SampleLoopStep& step,
                                   SharedSamplesOptions options) {
  const SampleSharing sharing = options.sharing;
  const bool is_part = !sharing.shard.is_whole();
  SharedSamples samples(std::move(options));
  {
    const ProgressScope progress(context.progress,
                                 is_part ? step.task + " " + TextOf(sharing.shard) : step.task,
                                 static_cast<int64_t>(samples.mine().size()), 0);
    const CancelScope scope(context.cancel, step.task.c_str());
    AllOrNone(sharing.ranks, [&] {
      for (const size_t sample : samples.mine()) {
        samples.Add(sample, Process(context, step, sample));
        progress.Advance();
      }
    });
  }
  return samples.Finish();
}

}  // namespace

std::vector<double> LoopOverSamples(const CalibrationContext& context, const SampleLoopStep& step) {
  PMKVQ_CHECK(context.model != nullptr && context.samples != nullptr);
  const size_t num_samples = context.samples->tokens.size();
  PMKVQ_CHECK_MSG(num_samples > 0, "calibration without samples");
  const SampleCounts counts{num_samples, step.num_values, std::min(step.num_sums, step.num_values)};
  const std::string fingerprint = context.checkpoint_path.empty() ? "" : Fingerprint(context, step);
  if (const SampleSharing& sharing = CurrentSampleSharing(); sharing.is_shared()) {
    return LoopOverShared(context, step,
                          {.task = step.task,
                           .counts = counts,
                           .path = context.checkpoint_path,
                           .fingerprint = fingerprint,
                           .keep = context.keep_checkpoint,
                           .sharing = sharing,
                           .log = context.log});
  }

  SampleCheckpoint checkpoint(context.checkpoint_path, fingerprint);
  SamplePrefix state = checkpoint.Load(counts, context.log)
                           .value_or(SamplePrefix{0, std::vector<double>(step.num_values, 0.0)});
  LeftParts parts(context.checkpoint_path, fingerprint, counts, context.log);
  parts.table().RaiseMaxima(state.values);
  const ProgressScope progress(context.progress, step.task, static_cast<int64_t>(num_samples),
                               static_cast<int64_t>(state.samples_done));
  const CancelScope scope(context.cancel, step.task.c_str());
  try {
    while (state.samples_done < num_samples) {
      if (parts.table().Has(state.samples_done)) {
        parts.table().AddTo(state.samples_done, state.values);
      } else {
        Accumulate(step.num_sums, Process(context, step, state.samples_done), state.values);
      }
      ++state.samples_done;
      progress.Advance();
      checkpoint.SaveSometimes(state);
    }
  } catch (const Cancelled&) {
    checkpoint.SaveNow(state);
    throw;
  }
  if (context.keep_checkpoint) {
    checkpoint.SaveNow(state);
  } else {
    checkpoint.Remove();
  }
  parts.Remove();
  return std::move(state.values);
}

}  // namespace pmkvq
