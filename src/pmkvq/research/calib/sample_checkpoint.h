// Files of a step of calibration that has not ended: sums over the first samples, in one file, and
// the values of single samples, in files that parts of a job write side by side.
#pragma once

#include <chrono>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/base/sinks.h"
#include "pmkvq/io/part_files.h"

namespace pmkvq {

// What a step adds up. The first num_sums of num_values are added over samples, in their order; of
// the others, >= 0 each, the largest are kept.
struct SampleCounts {
  size_t num_samples = 0;
  size_t num_values = 0;
  size_t num_sums = 0;
};

struct SamplePrefix {
  size_t samples_done = 0;  // The first ones.
  std::vector<double> values;
};

// PATH, a JSON file {"format", "version", "fingerprint", "samples_done", "values"}, replaced
// atomically; doubles read back exactly. Does nothing for the path "".
class SampleCheckpoint {
 public:
  SampleCheckpoint(std::string path, std::string fingerprint)
      : path_(std::move(path)), fingerprint_(std::move(fingerprint)) {}

  // What an earlier run of the same step left, if anything. A file of another run, or a damaged
  // one, is ignored with a warning.
  std::optional<SamplePrefix> Load(const SampleCounts& counts, LogSink* log) const;
  void SaveNow(const SamplePrefix& prefix);
  // At most every few seconds.
  void SaveSometimes(const SamplePrefix& prefix);
  void Remove() const;

 private:
  using Clock = std::chrono::steady_clock;
  std::string path_;
  std::string fingerprint_;
  Clock::time_point last_save_ = Clock::now();
};

// The values of one sample as a part's file has them: all sums, and those maxima that exceed the
// ones in the lines before, which are few behind the first lines.
struct SampleValues {
  std::vector<double> sums;
  std::vector<std::pair<size_t, double>> maxima;  // Index behind the sums, value.
};
// {"sample","sums","at","maxima"} and a line break.
std::string SampleLine(size_t sample, const SampleValues& values);

// Samples of several parts.
class SampleTable {
 public:
  explicit SampleTable(const SampleCounts& counts) : counts_(counts) {}

  bool Has(size_t sample) const { return samples_.contains(sample); }
  // Lines of SampleLine. A sample that is there twice counts once. Throws InvalidInput naming
  // `source` and the field, also where two lines of a sample differ in a sum.
  void AddLines(std::string_view lines, const std::string& source);
  // The whole lines of a part's file, where its first line {"format","version","fingerprint"} has
  // this fingerprint; other files are ignored with a warning. Throws as AddLines.
  void AddFile(const std::string& path, const std::string& fingerprint, LogSink* log);
  // Adds the sums of this sample, which is there, to `values`.
  void AddTo(size_t sample, std::vector<double>& values) const;
  // Maxima of all samples. They may hold values of samples that were not added yet: the largest of
  // all samples is the same in any order.
  void RaiseMaxima(std::vector<double>& values) const;

 private:
  SampleCounts counts_;
  std::map<size_t, SampleValues> samples_;
};

// Removes the checkpoint PATH and its parts, when what they are for is written. Leaves all of them
// where a part is still at work: it will find them complete, and remove them. Throws IoError.
void RemoveSampleFiles(const std::string& path);

// PATH.IofN. The first line of a part.
PartFiles SamplePartFiles(const std::string& path);
std::string SamplePartHeader(const std::string& fingerprint);

}  // namespace pmkvq
