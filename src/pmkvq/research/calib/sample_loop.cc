#include "pmkvq/research/calib/sample_loop.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <optional>
#include <string_view>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/io/json.h"

namespace pmkvq {
namespace {

constexpr std::string_view kFormat = "pmkvq-calibration-checkpoint";
constexpr int64_t kVersion = 1;
constexpr std::chrono::seconds kSaveInterval{5};

struct LoopState {
  size_t samples_done = 0;
  std::vector<double> values;
};

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

// A step's checkpoint file; does nothing when the context names none.
class LoopCheckpoint {
 public:
  LoopCheckpoint(const CalibrationContext& context, const SampleLoopStep& step)
      : path_(context.checkpoint_path) {
    if (!path_.empty()) fingerprint_ = Fingerprint(context, step);
  }

  // What an earlier run of the same step left, if anything.
  std::optional<LoopState> Load(size_t num_samples, size_t num_values, LogSink* log) const {
    if (path_.empty() || !FileExists(path_)) return std::nullopt;
    try {
      const JsonValue json = JsonValue::ParseFile(path_);
      if (json.At("format").AsString() != kFormat) json.At("format").Fail(std::string(kFormat));
      json.At("version").AsInt(kVersion, kVersion);
      if (json.At("fingerprint").AsString() != fingerprint_) {
        if (log != nullptr) {
          log->Warning(
              fmt::format("{}: made by another run (model, data or options differ), "
                          "starting anew",
                          path_));
        }
        return std::nullopt;
      }
      LoopState state;
      state.samples_done =
          static_cast<size_t>(json.At("samples_done").AsInt(0, static_cast<int64_t>(num_samples)));
      state.values = json.At("values").AsDoubleArray();
      if (state.values.size() != num_values) {
        json.At("values").Fail(fmt::format("{} numbers", num_values));
      }
      return state;
    } catch (const InvalidInput& error) {
      if (log != nullptr) log->Warning(fmt::format("{}; starting anew", error.what()));
      return std::nullopt;
    }
  }

  void SaveNow(const LoopState& state) {
    if (path_.empty()) return;
    JsonWriter json;
    json.BeginObject().Key("format").String(kFormat).Key("version").Int(kVersion);
    json.Key("fingerprint").String(fingerprint_);
    json.Key("samples_done").Int(static_cast<int64_t>(state.samples_done));
    json.Key("values").Array(state.values).EndObject();
    WriteFileAtomically(path_, json.text());
    last_save_ = Clock::now();
  }

  void SaveSometimes(const LoopState& state) {
    if (Clock::now() - last_save_ >= kSaveInterval) SaveNow(state);
  }

  void Remove() const {
    // A device or pipe of that name is not ours to remove.
    std::error_code error;
    if (std::filesystem::is_regular_file(path_, error)) std::filesystem::remove(path_, error);
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::string path_;
  std::string fingerprint_;
  Clock::time_point last_save_ = Clock::now();
};

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

}  // namespace

std::vector<double> LoopOverSamples(const CalibrationContext& context, const SampleLoopStep& step) {
  PMKVQ_CHECK(context.model != nullptr && context.samples != nullptr);
  const Samples& samples = *context.samples;
  const size_t num_samples = samples.tokens.size();
  PMKVQ_CHECK_MSG(num_samples > 0, "calibration without samples");

  LoopCheckpoint checkpoint(context, step);
  LoopState state = checkpoint.Load(num_samples, step.num_values, context.log)
                        .value_or(LoopState{0, std::vector<double>(step.num_values, 0.0)});
  const ProgressScope progress(context.progress, step.task, static_cast<int64_t>(num_samples),
                               static_cast<int64_t>(state.samples_done));
  const CancelScope scope(context.cancel, step.task.c_str());
  try {
    while (state.samples_done < num_samples) {
      CancelPoint();
      const std::vector<int64_t> positions =
          samples.Positions(state.samples_done, context.effective_len);
      const std::vector<double> values =
          step.process(samples.tokens[state.samples_done], positions);
      CheckFinite(step, state.samples_done, values);
      Accumulate(step.num_sums, values, state.values);
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
  return std::move(state.values);
}

}  // namespace pmkvq
