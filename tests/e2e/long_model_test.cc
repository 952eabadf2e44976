// The shipped model of 32,768 positions.
#include <gtest/gtest.h>

#include "pmkvq/io/json.h"
#include "support/command_help.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::Args;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;

// It solves short and middle chains at 16 bits, and in a budget that the plan's bytes are split by
// and that halves its pages.
TEST(LongModel, Longcot32kSolvesItsProblems) {
  const std::string model = PMKVQ_SOURCE_DIR "/models/longcot-32k";
  for (const Args& cache :
       {Args{"--kv", "fp16"},
        Args{"--recipe", "best", "--plan", model + "/plan.json", "--kv-budget", "2MiB"}}) {
    const ProgramResult result = RunProgram(Plus(
        {"eval", "--model", model, "--data", PMKVQ_SOURCE_DIR "/models/longcot-10m/problems.jsonl",
         "--per-cell", "1", "--max-level", "2", "--max-len", "1280", "--json", "-"},
        cache));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const JsonValue json = JsonValue::Parse(result.out, "eval");
    EXPECT_EQ(json.At("responses").AsInt(), 10);
    EXPECT_EQ(json.At("correct").AsInt(), 10) << result.out;
  }
  // Its folder has no problems.
  const ProgramResult none = RunProgram({"eval", "--model", model});
  EXPECT_EQ(none.exit_code, 1);
  EXPECT_NE(none.err.find("found no problems.jsonl"), std::string::npos) << none.err;
}

}  // namespace
}  // namespace pmkvq
