#include "pmkvq/research/calib/shared_samples.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "pmkvq/base/random.h"
#include "pmkvq/comm/thread_communicator.h"
#include "pmkvq/io/file.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::CancelAfter;
using testing_support::ExpectError;
using testing_support::RandomSamples;
using testing_support::RecordingLog;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModels;

constexpr size_t kSamples = 7;
constexpr size_t kSums = 3;
constexpr size_t kValues = 5;

// Sums whose order shows in their bits, and two maxima.
std::vector<double> ValuesOf(std::span<const int32_t> tokens) {
  Random random(static_cast<uint64_t>(tokens[0]) * 1000 + static_cast<uint64_t>(tokens[1]));
  std::vector<double> values;
  for (size_t i = 0; i < kValues; ++i) {
    values.push_back(static_cast<double>(random.Below(1u << 30)) / 3e6);
  }
  return values;
}

class SharedSamplesTest : public ::testing::Test {
 protected:
  SharedSamplesTest() : folder_(TinyModels().at("qwen2_bf16_tied")), model_(folder_.Load()) {
    samples_ = RandomSamples(64, std::vector<size_t>(kSamples, 4), 3);
  }

  // One step; num_done counts the samples that were measured here.
  std::vector<double> Run(const std::string& path, const Shard& shard, Communicator* ranks,
                          int* num_done = nullptr, const CancelFlag* cancel = nullptr,
                          ProgressSink* progress = nullptr) const {
    CalibrationContext context;
    context.model = model_.get();
    context.samples = &samples_;
    context.checkpoint_path = path;
    context.fingerprint = fingerprint_;
    const SampleSharing sharing{shard, ranks};
    const SampleSharingScope scope(sharing);
    context.cancel = cancel;
    context.progress = progress;
    SampleLoopStep step;
    step.task = "step";
    step.num_values = kValues;
    step.num_sums = kSums;
    step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t>) {
      if (num_done != nullptr) ++*num_done;
      return ValuesOf(tokens);
    };
    return LoopOverSamples(context, step);
  }
  std::vector<double> Expected() const { return Run("", {}, nullptr); }

  TinyFolder folder_;
  std::shared_ptr<const Model> model_;
  Samples samples_;
  std::string fingerprint_;
  TempFolder scratch_;
  std::string path_ = scratch_.File("step.json");
};

TEST_F(SharedSamplesTest, TheValuesDependOnTheOrderOfTheSums) {
  std::vector<double> backwards(kValues, 0.0);
  for (size_t sample = kSamples; sample-- > 0;) {
    const std::vector<double> values = ValuesOf(samples_.tokens[sample]);
    for (size_t i = 0; i < kValues; ++i) {
      backwards[i] = i < kSums ? backwards[i] + values[i] : std::max(backwards[i], values[i]);
    }
  }
  EXPECT_NE(backwards, Expected());
}

TEST_F(SharedSamplesTest, PartsHaveTheBitsOfOneProcess) {
  for (const int64_t count : {2, 3, 7, 9}) {
    int num_done = 0;
    for (int64_t index = count; --index > 0;) {
      ExpectError<PartDone>(
          [&] {
            Run(path_, {index, count}, nullptr, &num_done);
          },
          {"step", std::to_string(index + 1) + "/" + std::to_string(count), "are missing"});
    }
    EXPECT_EQ(Run(path_, {0, count}, nullptr, &num_done), Expected());
    EXPECT_EQ(num_done, static_cast<int>(kSamples));
    EXPECT_EQ(scratch_.NumEntries(), 0u) << "all files are gone";
  }
}

TEST_F(SharedSamplesTest, AJobGoesOnWithAnotherNumberOfParts) {
  int num_done = 0;
  EXPECT_THROW(Run(path_, {0, 2}, nullptr, &num_done), PartDone);
  EXPECT_EQ(num_done, 4);
  EXPECT_THROW(Run(path_, {1, 3}, nullptr, &num_done), PartDone);
  EXPECT_EQ(num_done, 5);  // Of 1 and 4, sample 4 is there.
  // A line that a kill cut short is measured again.
  const std::string part = path_ + ".2of3";
  const std::string content = ReadFile(part);
  scratch_.Write("step.json.2of3", content.substr(0, content.size() - 2));
  num_done = 0;
  EXPECT_EQ(Run(path_, {}, nullptr, &num_done), Expected());
  EXPECT_EQ(num_done, 3);
  EXPECT_EQ(scratch_.NumEntries(), 0u);
}

TEST_F(SharedSamplesTest, PartsGoOnBehindTheFirstSamplesOfOneProcess) {
  CancelFlag cancel = false;
  CancelAfter progress(2, &cancel);
  EXPECT_THROW(Run(path_, {}, nullptr, nullptr, &cancel, &progress), Cancelled);
  int num_done = 0;
  EXPECT_THROW(Run(path_, {1, 2}, nullptr, &num_done), PartDone);
  EXPECT_EQ(num_done, 2);  // 3 and 5.
  EXPECT_EQ(Run(path_, {0, 2}, nullptr, &num_done), Expected());
  EXPECT_EQ(num_done, 5);
}

TEST_F(SharedSamplesTest, RanksHaveTheBitsOfOneProcess) {
  const std::vector<double> expected = Expected();
  for (const std::string& path : {std::string(), path_}) {
    for (const int num_ranks : {2, 3, 8}) {
      RunRanks(num_ranks, [&](Communicator& ranks) {
        int num_done = 0;
        EXPECT_EQ(Run(path, {}, &ranks, &num_done), expected);
        EXPECT_LE(num_done, static_cast<int>(kSamples) / num_ranks + 1);
      });
      EXPECT_EQ(scratch_.NumEntries(), 0u);
    }
  }
  // Even parts of what an earlier job left.
  EXPECT_THROW(Run(path_, {0, 2}, nullptr), PartDone);
  RunRanks(3, [&](Communicator& ranks) {
    int num_done = 0;
    EXPECT_EQ(Run(path_, {}, &ranks, &num_done), expected);
    EXPECT_EQ(num_done, 1);
  });
}

TEST_F(SharedSamplesTest, WhatIsWrongWithPartsIsSaid) {
  EXPECT_THROW(Run(path_, {0, 2}, nullptr), PartDone);
  // The file of another run is made anew.
  fingerprint_ = "other";
  int num_done = 0;
  EXPECT_THROW(Run(path_, {0, 2}, nullptr, &num_done), PartDone);
  EXPECT_EQ(num_done, 4);
  const std::string content = ReadFile(path_ + ".1of2");
  const size_t second_line = content.find('\n') + 1;
  std::string other = content;
  other.replace(other.find("\"sums\":[") + 8, 1, "9.5e99,1");
  scratch_.Write("step.json.1of2", other);
  ExpectError<InvalidInput>([&] { Run(path_, {1, 2}, nullptr); }, {"1of2:2", "sums", "3 numbers"});
  // The same sample with another value.
  other = content;
  other.replace(other.find("\"sums\":[") + 8, 0, "1");
  scratch_.Write("step.json.1of2", content);
  scratch_.Write("step.json.1of3", content.substr(0, second_line) + other.substr(second_line));
  ExpectError<InvalidInput>(
      [&] {
        Run(path_, {1, 2}, nullptr);
      },
      {"1of3:2", "compute differently"});
}

TEST_F(SharedSamplesTest, EachPartIsDoneByOneProcess) {
  SharedSamplesOptions options;
  options.task = "step";
  options.counts = {kSamples, kValues, kSums};
  options.path = path_;
  options.sharing.shard = {0, 2};
  const SharedSamples first(options);
  ExpectError<IoError>([&] { SharedSamples second(options); }, {"1of2", "another process"});
  // Nor beside a run of one process.
  ExpectError<IoError>([&] { Run(path_, {}, nullptr); }, {"--shard", "at work"});
}

}  // namespace
}  // namespace pmkvq
