// The program with --device cuda, as its user runs it, beside itself on the CPU.
#include <algorithm>
#include <string>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/tensor/device/buffer.h"
#include "support/gpu_test.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";
constexpr char kPrompt[] =
    "Multiply 472 by 58 with column sums of digit products. What is the product?";

class ProgramOnCudaTest : public GpuTest {
 protected:
  static ProgramResult Run(std::vector<std::string> args, const std::string& device) {
    args.insert(args.end(), {"--device", device});
    ProgramResult result = RunProgram(args);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result;
  }
};

TEST_F(ProgramOnCudaTest, RunGivesTheTextOfTheCpu) {
  for (const std::string spec : {"fp16", "static-4", "kivi"}) {
    SCOPED_TRACE(spec);
    const std::vector<std::string> args = {"run",           "--model", kModel, "--prompt", kPrompt,
                                           "--temperature", "0",       "--kv", spec};
    EXPECT_EQ(Run(args, "cuda").out, Run(args, "cpu").out);
  }
}

TEST_F(ProgramOnCudaTest, AutoTakesTheDeviceWhereTheCacheFits) {
  const std::vector<std::string> args = {
      "run", "--model", kModel, "--prompt", kPrompt, "--max-tokens", "8", "--temperature", "0"};
  const ProgramResult fits = Run(args, "auto");
  EXPECT_NE(fits.err.find("device: cuda:0"), std::string::npos) << fits.err;
  // 64 caches of 48 MiB, and 2.5 GiB free.
  std::vector<std::string> many = args;
  many.insert(many.end(), {"--n-samples", "64", "--kv", "fp16"});
  const Buffer taken(kDevice, Query(kDevice).free_bytes - (size_t{5} << 29));
  const ProgramResult does_not = Run(many, "auto");
  EXPECT_NE(does_not.err.find("device: cpu: cuda:0 has "), std::string::npos) << does_not.err;
  EXPECT_NE(does_not.err.find("the cache takes"), std::string::npos) << does_not.err;
}

TEST_F(ProgramOnCudaTest, EvaluationsSolveWhatTheCpuSolves) {
  const auto right = [&](const std::string& device) {
    const TempFolder folder;
    Run({"eval", "--model", kModel, "--per-cell", "1", "--max-level", "1", "--kv", "pm-kvq",
         "--plan", kModel + "/plan.json", "--temperature", "0", "--out", folder.File("run")},
        device);
    const ProgramResult judged = RunProgram({"judge", folder.File("run"), "--json", "-"});
    EXPECT_EQ(judged.exit_code, 0) << judged.err;
    return JsonValue::Parse(judged.out, "judge");
  };
  EXPECT_EQ(right("cuda").At("pass_at_1").AsDouble(), right("cpu").At("pass_at_1").AsDouble());
}

TEST_F(ProgramOnCudaTest, PerplexityIsThatOfTheCpu) {
  const TempFolder folder;
  const std::string all = Slurp(kModel + "/calibration.jsonl");
  const std::string texts = folder.Write("texts.jsonl", all.substr(0, all.find('\n', 20000) + 1));
  const auto loss = [&](const std::string& device) {
    const ProgramResult result = Run(
        {"perplexity", "--model", kModel, "--dataset", texts, "--kv", "static-4", "--json", "-"},
        device);
    return JsonValue::Parse(result.out, "perplexity").At("loss").AsDouble();
  };
  EXPECT_NEAR(loss("cuda"), loss("cpu"), 2e-3);
}

TEST_F(ProgramOnCudaTest, CalibrationChoosesTheWidthsOfTheCpu) {
  const TempFolder folder;
  const auto plan = [&](const std::string& device) {
    const std::string path = folder.File(device + ".json");
    Run({"calibrate", "--model", kModel, "--dataset", kModel + "/calibration.jsonl", "--pack",
         "single", "--n-samples", "4", "--seq-len", "256", "--memory-budget", "4.75MiB",
         "--max-len", "4096", "--plan", path},
        device);
    return JsonValue::ParseFile(path);
  };
  const JsonValue cuda = plan("cuda");
  const JsonValue cpu = plan("cpu");
  // They follow from the widths.
  EXPECT_EQ(cuda.At("budget_bytes").AsIntArray(), cpu.At("budget_bytes").AsIntArray());
}

}  // namespace
}  // namespace pmkvq
