// What the unit tests of calibration share: tiny models on disk, random samples, sinks.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/random.h"
#include "pmkvq/base/sinks.h"
#include "pmkvq/model/model.h"
#include "pmkvq/research/calib/samples.h"
#include "support/temp_folder.h"
#include "support/tiny_model.h"

namespace pmkvq::testing_support {

class TinyFolder {
 public:
  explicit TinyFolder(const TinyModel& model) : TinyFolder(model, MakeTinyWeights(model)) {}
  TinyFolder(const TinyModel& model, const TinyWeights& weights) {
    WriteTinyModel(model, weights, folder_);
  }
  std::shared_ptr<const Model> Load(WeightMode weights = WeightMode::kAsStored) const {
    return Model::Load(folder_.path(), {weights, 1});
  }

 private:
  TempFolder folder_;
};

// seq_len is the first length.
inline Samples RandomSamples(int64_t vocab, const std::vector<size_t>& lengths, uint64_t seed) {
  Random random(seed);
  Samples samples;
  for (const size_t length : lengths) {
    std::vector<int32_t> tokens;
    while (tokens.size() < length) {
      tokens.push_back(static_cast<int32_t>(random.Below(static_cast<uint64_t>(vocab))));
    }
    samples.tokens.push_back(std::move(tokens));
  }
  samples.seq_len = static_cast<int64_t>(lengths.front());
  return samples;
}

// Sets a cancel flag once `units` were done, counted over all tasks (0: at the first Begin).
class CancelAfter : public ProgressSink {
 public:
  CancelAfter(int64_t units, CancelFlag* flag) : units_(units), flag_(flag) {}
  void Begin(const std::string&, int64_t task_total, int64_t done) override {
    ++num_begun;
    total = task_total;
    resumed_at = done;
    if (advanced >= units_) *flag_ = true;
  }
  void Advance(int64_t units) override {
    advanced += units;
    if (advanced >= units_) *flag_ = true;
  }
  void End() override { ++num_ended; }

  int64_t num_begun = 0;
  int64_t num_ended = 0;
  int64_t total = 0;
  int64_t resumed_at = 0;
  int64_t advanced = 0;

 private:
  int64_t units_;
  CancelFlag* flag_;
};

class RecordingLog : public LogSink {
 public:
  void Info(const std::string&) override {}
  void Warning(const std::string& message) override { warnings.push_back(message); }
  std::vector<std::string> warnings;
};

}  // namespace pmkvq::testing_support
