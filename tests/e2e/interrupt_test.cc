// Every command that takes long ends soon after Ctrl-C or SIGTERM.
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <csignal>
#include <string>
#include <vector>

#include "support/run_program.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::Interrupt;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;

const std::string kModel = std::string(PMKVQ_SOURCE_DIR) + "/models/longcot-10m";
const std::string kDataset = kModel + "/calibration.jsonl";

// Of processor time, which other work on the machine does not count in; about a second is used.
constexpr int64_t kMostCpuMs = 8000;

void ExpectSoonInterrupted(const std::vector<std::string>& args, const Interrupt& interrupt) {
  const ProgramResult result = RunProgram(args, "", interrupt);
  EXPECT_EQ(result.exit_code, 130) << args[0] << ": " << result.err;
  EXPECT_NE(result.err.find("interrupted"), std::string::npos) << result.err;
  EXPECT_LT(result.cpu_ms_after_signal, kMostCpuMs) << args[0];
}

// `after_cpu_ms`: long enough for the work to have begun, far too short for its end.
void ExpectSoonInterrupted(const std::vector<std::string>& args, int after_cpu_ms,
                           int signal = SIGINT) {
  ExpectSoonInterrupted(args, Interrupt{.after_cpu_ms = after_cpu_ms, .signal = signal});
}

// One sample of 40,000 tokens: each block takes many seconds, forward and backward.
std::vector<std::string> OnOneLongSample(std::vector<std::string> args) {
  for (const char* arg : {"--n-samples", "1", "--seq-len", "40000", "--threads", "1"}) {
    args.emplace_back(arg);
  }
  args.insert(args.end(), {"--model", kModel, "--dataset", kDataset});
  return args;
}

TEST(Interrupts, TheForwardHalfOfSensitivity) {
  const TempFolder out;
  ExpectSoonInterrupted(OnOneLongSample({"sensitivity", "--json", out.File("s.json")}), 1500);
}

TEST(Interrupts, TheBackwardHalfOfSensitivity) {
  const TempFolder out;
  // 4 samples of 2,048 tokens: most of the time goes into gradients.
  ExpectSoonInterrupted(
      {"sensitivity", "--json", out.File("s.json"), "--model", kModel, "--dataset", kDataset,
       "--n-samples", "16", "--seq-len", "8192", "--threads", "1"},
      9000, SIGTERM);
}

TEST(Interrupts, MaxKeys) {
  const TempFolder out;
  ExpectSoonInterrupted(OnOneLongSample({"max-keys", "--out", out.File("m.safetensors")}), 1500,
                        SIGTERM);
}

TEST(Interrupts, CalibrationOfMethods) {
  const TempFolder out;
  for (const char* method : {"kvmix", "oscar", "kvtuner", "rotatekv", "fastkvzip"}) {
    ExpectSoonInterrupted(
        OnOneLongSample({"calibrate", "--kv", method, "--out", out.File("x.safetensors")}), 1500);
  }
}

TEST(Interrupts, Tokenizing) {
  const TempFolder folder;
  std::string text;
  for (int i = 0; text.size() < (size_t{240} << 20); ++i) text += "word" + std::to_string(i) + ' ';
  const std::string path = folder.Write("long.txt", text);
  ExpectSoonInterrupted({"tokenize", "--model", kModel, "--file", path}, 1500);
}

TEST(Interrupts, JudgingManyResponses) {
  const TempFolder folder;
  std::string rows;
  for (int i = 0; i < 250000; ++i) {
    rows += R"({"id":"p","answer":"\\frac{1}{)" + std::to_string(i % 7 + 2) +
            R"(}","text":"So \\boxed{\\sqrt{)" + std::to_string(i) + R"(}+x^2}."})" + "\n";
  }
  // The same problem again and again: each new answer is compared with all before.
  for (size_t at = 0; (at = rows.find("frac{1}{", at)) != std::string::npos; at += 8) {
    rows[at + 8] = '2';
  }
  ExpectSoonInterrupted({"judge", folder.Write("responses.jsonl", rows)}, 2000, SIGTERM);
}

// A reader that waits for a writer that never comes.
TEST(Interrupts, AFileThatNeverComes) {
  const TempFolder folder;
  const std::string pipe = folder.File("pipe");
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  ExpectSoonInterrupted({"run", "--model", kModel, "--file", pipe, "--max-tokens", "1"},
                        {.once_asleep = true});
  ExpectSoonInterrupted({"judge", "--cases", pipe}, {.signal = SIGTERM, .once_asleep = true});
}

}  // namespace
}  // namespace pmkvq
