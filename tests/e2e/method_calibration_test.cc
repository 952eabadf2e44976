// calibrate --kv of published methods, and the use of what it writes.
#include <gtest/gtest.h>

#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;

const std::string kModel = std::string(PMKVQ_SOURCE_DIR) + "/models/longcot-10m";
const std::string kTexts = kModel + "/calibration.jsonl";

std::vector<std::string> Calibrate(const std::string& kv, const std::vector<std::string>& more,
                                   const std::string& samples = "2") {
  std::vector<std::string> args = {"calibrate", "--kv",      kv,     "--model",
                                   kModel,      "--dataset", kTexts, "--n-samples",
                                   samples,     "--seq-len", "128"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

// Runs a prompt with a SPEC and tells how it went.
ProgramResult Use(const std::string& kv, const std::string& model = kModel) {
  return RunProgram({"run", "--model", model, "--kv", kv, "--prompt", "What is 12*34?",
                     "--max-tokens", "40", "--temperature", "0"});
}

TEST(MethodCalibration, WritesAFileThatTheMethodTakes) {
  const TempFolder folder;
  for (const std::string method :
       {"rotatekv", "oscar", "kvmix", "cq", "qaq", "svdq", "recalkv", "fastkvzip"}) {
    SCOPED_TRACE(method);
    const std::string file = folder.File(method);
    const ProgramResult made = RunProgram(Calibrate(method, {"--out", file}));
    ASSERT_EQ(made.exit_code, 0) << made.err;
    EXPECT_EQ(made.out, "");
    EXPECT_NE(made.err.find("use it with --kv " + method + ":from=" + file), std::string::npos)
        << made.err;
    const ProgramResult used = Use(method + ":from=" + file);
    EXPECT_EQ(used.exit_code, 0) << used.err;
    EXPECT_FALSE(used.out.empty());
  }
  EXPECT_EQ(folder.NumEntries(), 8u);
  const ProgramResult mixed_up = Use("oscar:from=" + folder.File("kvmix"));
  EXPECT_EQ(mixed_up.exit_code, 1);
  EXPECT_NE(mixed_up.err.find("made for method kvmix, expected oscar"), std::string::npos)
      << mixed_up.err;
}

TEST(MethodCalibration, SaysWhatIsWrong) {
  const TempFolder folder;
  const std::string file = folder.File("out");
  struct Case {
    std::vector<std::string> args;
    int exit_code;
    const char* message;
  };
  const Case cases[] = {
      {Calibrate("rtn", {"--out", file}), 2,
       "rtn has nothing to calibrate, expected one of pm-kvq"},
      {Calibrate("oscra", {"--out", file}), 2, "unknown method 'oscra'"},
      {Calibrate("oscar", {}), 2, "--out"},
      {Calibrate("oscar", {"--out", file, "--plan", "p.json"}), 2,
       "--plan: does not go with --kv oscar, expected --out"},
      {Calibrate("pm-kvq", {"--out", file}), 2, "--out: does not go with --kv pm-kvq"},
      {Calibrate("oscar", {"--out", file, "--device", "cuda"}), 2,
       "--device: does not go with --kv oscar, whose calibration runs on the CPU"},
      {Calibrate("pm-kvq", {"--plan", folder.File("p.json")}), 2, "--memory-budget"},
      {Calibrate("oscar", {"--out", "-"}), 2, "found '-', expected the name of a file"},
      {Calibrate("oscar", {"--out", folder.File("no/such")}), 1, "cannot write"},
      {{"calibrate", "--kv", "kvmix", "--out", file}, 2, "--model"},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.message);
    const ProgramResult result = RunProgram(each.args);
    EXPECT_EQ(result.exit_code, each.exit_code) << result.err;
    EXPECT_NE(result.err.find(each.message), std::string::npos) << result.err;
  }
  EXPECT_EQ(folder.NumEntries(), 0u);
}

// Stopped and started again until it is through: the same bytes as in one go.
TEST(MethodCalibration, GoesOnAfterCtrlC) {
  const TempFolder folder;
  const auto calibrate = [&](const std::string& name) {
    return Calibrate("kvmix", {"--out", folder.File(name)}, "40");
  };
  ASSERT_EQ(RunProgram(calibrate("whole")).exit_code, 0);
  ProgramResult result = RunProgram(calibrate("pieces"), "", {.after_cpu_ms = 500});
  int tries = 1;
  for (; result.exit_code == 130 && tries < 40; ++tries) {
    EXPECT_NE(result.err.find("interrupted"), std::string::npos) << result.err;
    result = RunProgram(calibrate("pieces"), "", {.after_cpu_ms = 500 + 500 * tries});
  }
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(testing_support::Slurp(folder.File("pieces")),
            testing_support::Slurp(folder.File("whole")));
  EXPECT_EQ(folder.NumEntries(), 2u);
}

}  // namespace
}  // namespace pmkvq
