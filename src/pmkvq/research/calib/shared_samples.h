// Samples that several processes measure: parts of a job array, or ranks.
//
//   SharedSamples samples(options);
//   for (const size_t sample : samples.mine()) samples.Add(sample, Measure(sample));
//   const std::vector<double> values = samples.Finish();
//
// Each process keeps the values of its samples one by one; whoever has those of all adds them in
// the order of the samples. So the result has the bits of one process, for any number of parts,
// also when a job goes on with another number.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/base/shard.h"
#include "pmkvq/base/sinks.h"
#include "pmkvq/comm/communicator.h"
#include "pmkvq/io/file_lock.h"
#include "pmkvq/io/line_file.h"
#include "pmkvq/research/calib/sample_checkpoint.h"

namespace pmkvq {

// A part of a job array has done what is its own, and samples of other parts are missing. What it
// measured is kept; the same command goes on when they are there.
class PartDone : public Error {
 public:
  using Error::Error;
};

// Who measures the samples of a step: this part of them, and the ranks that share them (may be
// null). With several ranks the part is whole.
struct SampleSharing {
  Shard shard;
  Communicator* ranks = nullptr;

  bool is_shared() const { return !shard.is_whole() || (ranks != nullptr && ranks->size() > 1); }
  // This process writes what was made of all samples.
  bool is_first() const { return ranks == nullptr || ranks->rank() == 0; }
};

// While it lives, LoopOverSamples on this thread measures its share only. So steps of calibration
// need no parameter for it. `sharing` must outlive it. Parts of a job array need a checkpoint_path,
// beside which they meet. Scopes do not nest.
class SampleSharingScope {
 public:
  explicit SampleSharingScope(const SampleSharing& sharing);
  ~SampleSharingScope();
  SampleSharingScope(const SampleSharingScope&) = delete;
  SampleSharingScope& operator=(const SampleSharingScope&) = delete;
};
// Of this thread's scope; without one all samples are this process's.
const SampleSharing& CurrentSampleSharing();

struct SharedSamplesOptions {
  std::string task;  // Names the step in messages.
  SampleCounts counts;
  // Checkpoint (SampleCheckpoint), beside which the parts lie: PATH.IofN, and PATH.lock while some
  // are at work. "": ranks keep nothing on disk; parts of a job array need one.
  std::string path;
  std::string fingerprint;  // What all depends on.
  bool keep = false;        // Keep the checkpoint when all samples are done.
  SampleSharing sharing;
  LogSink* log = nullptr;  // May be null.
};

// Not for several threads. Of ranks: all make one with the same options and call the same
// functions.
class SharedSamples {
 public:
  // Throws IoError, InvalidInput (a damaged part, a part of that number that another process has).
  explicit SharedSamples(SharedSamplesOptions options);

  // What this process has to do: of a job array sample s where the shard owns s, so that parts may
  // start at any time; of ranks an even part of what is missing.
  const std::vector<size_t>& mine() const { return mine_; }
  // Kept on disk when it returns. Throws IoError.
  void Add(size_t sample, const std::vector<double>& values);

  // The values of all samples, on all ranks. Throws PartDone where other parts' samples are
  // missing.
  std::vector<double> Finish();

 private:
  bool is_ranks() const { return ranks_ != nullptr && ranks_->size() > 1; }
  void Open();
  void Read(LogSink* log);
  std::vector<double> Combine() const;
  size_t NumMissing() const;

  SharedSamplesOptions options_;
  Communicator* ranks_;
  Shard shard_;
  SampleCheckpoint checkpoint_;
  SamplePrefix prefix_;
  SampleTable table_;
  std::vector<size_t> mine_;
  std::vector<double> raised_;  // Largest of the lines that this process wrote, behind the sums.
  std::string lines_;           // Those of ranks, for rank 0.
  FileLock lock_;
  FileLock part_lock_;
  LineFile file_;
};

}  // namespace pmkvq
