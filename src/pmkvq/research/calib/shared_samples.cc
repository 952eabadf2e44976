#include "pmkvq/research/calib/shared_samples.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <thread>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/comm/all_or_none.h"

namespace pmkvq {
namespace {

thread_local const SampleSharing* current_sharing = nullptr;

// For a moment at the end of a step one part has the lock alone.
FileLock LockShared(const std::string& path) {
  constexpr std::chrono::seconds kPatience(10);
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (true) {
    if (auto lock = FileLock::Try(path, FileLock::Kind::kShared)) return std::move(*lock);
    if (std::chrono::steady_clock::now() > deadline) {
      throw IoError(path, "another process has this lock for more than 10 s; expected a moment");
    }
    CancelPoint();
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
}

}  // namespace

SampleSharingScope::SampleSharingScope(const SampleSharing& sharing) {
  PMKVQ_CHECK(current_sharing == nullptr);
  current_sharing = &sharing;
}

SampleSharingScope::~SampleSharingScope() { current_sharing = nullptr; }

const SampleSharing& CurrentSampleSharing() {
  static const SampleSharing kAll;
  return current_sharing != nullptr ? *current_sharing : kAll;
}

SharedSamples::SharedSamples(SharedSamplesOptions options)
    : options_(std::move(options)),
      ranks_(options_.sharing.ranks),
      shard_(options_.sharing.shard),
      checkpoint_(options_.path, options_.fingerprint),
      prefix_{0, std::vector<double>(options_.counts.num_values, 0.0)},
      table_(options_.counts),
      raised_(options_.counts.num_values - options_.counts.num_sums, 0.0) {
  if (is_ranks()) {
    PMKVQ_CHECK(shard_.is_whole());
    shard_ = {ranks_->rank(), ranks_->size()};
  } else {
    PMKVQ_CHECK(!options_.path.empty());
  }
  AllOrNone(ranks_, [&] {
    Open();
    Read(options_.log);
  });
  // '1' for what rank 0 has.
  std::string is_there(options_.counts.num_samples, '0');
  for (size_t sample = 0; sample < is_there.size(); ++sample) {
    if (sample < prefix_.samples_done || table_.Has(sample)) is_there[sample] = '1';
  }
  if (is_ranks()) ranks_->BroadcastString(&is_there);
  int64_t num_dealt = 0;
  for (size_t sample = 0; sample < is_there.size(); ++sample) {
    const bool is_missing = is_there[sample] == '0';
    const int64_t unit = is_ranks() ? num_dealt : static_cast<int64_t>(sample);
    if (is_missing && shard_.Owns(unit)) mine_.push_back(sample);
    num_dealt += is_missing ? 1 : 0;
  }
}

void SharedSamples::Open() {
  if (options_.path.empty()) return;
  lock_ = LockShared(options_.path + ".lock");
  const std::string part = SamplePartFiles(options_.path).PathOf(shard_);
  auto alone = FileLock::Try(part, FileLock::Kind::kExclusive);
  if (!alone) {
    throw IoError(
        part, fmt::format("another process does part {}; expected each part once", TextOf(shard_)));
  }
  part_lock_ = std::move(*alone);
  file_ = LineFile(part);
  const std::string header = SamplePartHeader(options_.fingerprint);
  const std::string content = file_.Read();
  if (content.starts_with(header)) return;
  // Of another run, or empty.
  file_ = LineFile();
  std::filesystem::resize_file(part, 0);
  file_ = LineFile(part);
  file_.Append(header);
}

void SharedSamples::Read(LogSink* log) {
  if (options_.path.empty()) return;
  if (auto prefix = checkpoint_.Load(options_.counts, log)) prefix_ = std::move(*prefix);
  for (const std::string& path : SamplePartFiles(options_.path).List()) {
    table_.AddFile(path, options_.fingerprint, log);
  }
}

void SharedSamples::Add(size_t sample, const std::vector<double>& values) {
  const SampleCounts& counts = options_.counts;
  PMKVQ_CHECK(values.size() == counts.num_values);
  SampleValues kept;
  kept.sums.assign(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(counts.num_sums));
  for (size_t i = 0; i < raised_.size(); ++i) {
    const double value = values[counts.num_sums + i];
    if (value <= raised_[i]) continue;
    raised_[i] = value;
    kept.maxima.emplace_back(i, value);
  }
  const std::string line = SampleLine(sample, kept);
  if (file_.is_open()) file_.Append(line);
  lines_ += line;
}

size_t SharedSamples::NumMissing() const {
  size_t missing = 0;
  for (size_t sample = prefix_.samples_done; sample < options_.counts.num_samples; ++sample) {
    missing += table_.Has(sample) ? 0 : 1;
  }
  return missing;
}

std::vector<double> SharedSamples::Combine() const {
  std::vector<double> values = prefix_.values;
  for (size_t sample = prefix_.samples_done; sample < options_.counts.num_samples; ++sample) {
    table_.AddTo(sample, values);
  }
  table_.RaiseMaxima(values);
  return values;
}

std::vector<double> SharedSamples::Finish() {
  const UncancelledScope whole;
  const bool has_files = !options_.path.empty();
  AllOrNone(ranks_, [&] {
    if (file_.is_open()) file_.Flush();
    file_ = LineFile();
    part_lock_.Release();
    lock_.Release();
  });
  if (is_ranks()) {
    const std::vector<std::string> parts = ranks_->GatherStrings(lines_);
    AllOrNone(ranks_, [&] {
      for (size_t rank = 0; rank < parts.size(); ++rank) {
        table_.AddLines(parts[rank], fmt::format("rank {}", rank));
      }
    });
  }
  std::vector<double> values;
  AllOrNone(ranks_, [&] {
    if (!options_.sharing.is_first()) return;
    FileLock alone;
    if (has_files) {
      if (auto lock = FileLock::Try(options_.path + ".lock", FileLock::Kind::kExclusive)) {
        alone = std::move(*lock);
      }
      // What others did meanwhile; the last one may have put all into the checkpoint already.
      Read(nullptr);
    }
    if (const size_t missing = NumMissing(); missing > 0) {
      alone.RemoveFile();
      throw PartDone(
          options_.task,
          fmt::format("part {} is done, {} of {} samples of other parts are missing; the "
                      "same command goes on when they are there",
                      TextOf(shard_), missing, options_.counts.num_samples));
    }
    values = Combine();
    if (!alone.is_held()) return;  // The last one cleans up.
    if (options_.keep) {
      checkpoint_.SaveNow({options_.counts.num_samples, values});
    } else {
      checkpoint_.Remove();
    }
    SamplePartFiles(options_.path).Remove();
    alone.RemoveFile();
  });
  if (is_ranks()) {
    values.resize(options_.counts.num_values);
    ranks_->Broadcast(values.data(), values.size() * sizeof(double));
  }
  return values;
}

}  // namespace pmkvq
