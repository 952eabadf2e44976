// pmkvq eval that is ended inside of responses and goes on with them.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <sstream>

#include "pmkvq/io/json.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";

using Args = std::vector<std::string>;

// Four long replies as one batch: nothing is finished before its last seconds. The budget halves
// the cache on the way.
Args LongReplies(const std::string& folder) {
  return {"eval", "--model",   kModel,   "--benchmark", "longcot", "--min-level",
          "4",    "--end",     "4",      "--batch",     "4",       "--temperature",
          "0.5",  "--kv",      "pm-kvq", "--kv-budget", "1536KiB", "--max-tokens",
          "900",  "--max-len", "2048",   "--threads",   "1",       "--out",
          folder};
}

// Lines by problem, without what depends on the clock.
std::map<std::string, std::string> Responses(const std::string& folder) {
  std::map<std::string, std::string> responses;
  std::istringstream lines(Slurp(folder + "/responses.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const JsonValue json = JsonValue::Parse(line, folder);
    std::string& kept = responses[json.At("id").AsString()];
    for (const std::string& key : json.Keys()) {
      if (key == "decode_seconds" || key == "longest_pause_us") continue;
      kept += key + "=" + json.At(key).Dump() + "\n";
    }
  }
  return responses;
}

TEST(EvalResume, RepliesThatWereCutGoOnBitForBit) {
  const TempFolder folder;
  ASSERT_EQ(RunProgram(LongReplies(folder.File("whole"))).exit_code, 0);
  const auto expected = Responses(folder.File("whole"));
  ASSERT_EQ(expected.size(), 4u);
  EXPECT_FALSE(std::filesystem::exists(folder.File("whole/unfinished.jsonl")));

  const std::string run = folder.File("run");
  int num_continued = 0;
  // Ended by every signal in turn, each time when it has written more tokens; it writes twice a
  // second, so that how many tokens these are depends on the machine.
  const int signals[] = {SIGKILL, SIGINT, SIGTERM};
  const auto num_lines = [&] {
    const std::string text = Slurp(run + "/unfinished.jsonl");
    return std::count(text.begin(), text.end(), '\n');
  };
  for (int i = 0; i < 100; ++i) {
    const auto before = num_lines();
    const ProgramResult result = RunProgram(
        LongReplies(run), "",
        {.signal = signals[i % 3], .when = [&] { return num_lines() > before + i / 2; }});
    num_continued += result.err.find("more begun") != std::string::npos &&
                             result.err.find("going on") != std::string::npos
                         ? 1
                         : 0;
    if (result.exit_code == 0) break;
    ASSERT_EQ(result.exit_code, signals[i % 3] == SIGKILL ? 137 : 130) << result.err;
  }
  EXPECT_GT(num_continued, 0);
  EXPECT_EQ(Responses(run), expected);
  EXPECT_FALSE(std::filesystem::exists(run + "/unfinished.jsonl"));
}

TEST(EvalResume, WithoutAFolderItSaysThatNothingIsKept) {
  Args args = LongReplies("");
  args.resize(args.size() - 2);
  const ProgramResult result = RunProgram(args, "", {.after_cpu_ms = 600});
  ASSERT_EQ(result.exit_code, 130) << result.err;
  EXPECT_NE(result.err.find("--out DIR"), std::string::npos) << result.err;
  EXPECT_EQ(result.err.find("solved 0"), std::string::npos) << "nothing is finished";
}

// Finished responses can be judged while others are begun.
TEST(EvalResume, TheFolderOfAnEndedRunIsJudged) {
  const TempFolder folder;
  Args args = LongReplies(folder.File("run"));
  ASSERT_EQ(RunProgram(args).exit_code, 0);
  folder.Write("run/unfinished.jsonl",
               R"({"id":"x","response":0,"first":0,"tokens":[1],"seconds":1})"
               "\n");
  const ProgramResult judged = RunProgram({"judge", folder.File("run"), "--json", "-"});
  ASSERT_EQ(judged.exit_code, 0) << judged.err;
  EXPECT_EQ(JsonValue::Parse(judged.out, "stdout").At("responses").AsInt(), 4);

  std::filesystem::create_directory(folder.File("cmp"));
  folder.Write("cmp/comparison.json", "{}");
  const ProgramResult comparison = RunProgram({"judge", folder.File("cmp")});
  EXPECT_EQ(comparison.exit_code, 1);
  EXPECT_NE(comparison.err.find("pmkvq compare --from"), std::string::npos) << comparison.err;
}

TEST(EvalResume, PromptsThatDoNotFitAreUnsolved) {
  const TempFolder folder;
  std::string problems;
  for (const int length : {5, 900, 20}) {
    std::string text;
    for (int i = 0; i < length; ++i) text += "12 ";
    problems += R"({"id":"p)" + std::to_string(length) + R"(","problem":")" + text +
                R"(","answer":"1"})"
                "\n";
  }
  const std::string data = folder.Write("problems.jsonl", problems);
  const auto eval = [&](const Args& more) {
    Args args = {"eval", "--model",      kModel, "--benchmark", "jsonl", "--data",
                 data,   "--max-tokens", "5"};
    args.insert(args.end(), more.begin(), more.end());
    return RunProgram(args);
  };
  const ProgramResult by_length = eval({"--max-len", "512", "--out", folder.File("length")});
  ASSERT_EQ(by_length.exit_code, 0) << by_length.err;
  EXPECT_NE(by_length.out.find("of these, 1 whose prompt left no room"), std::string::npos)
      << by_length.out;
  const JsonValue summary = JsonValue::ParseFile(folder.File("length/summary.json"));
  EXPECT_EQ(summary.At("responses").AsInt(), 3);
  EXPECT_EQ(summary.At("prompts_too_long").AsInt(), 1);
  const JsonValue columns = summary.At("columns");
  EXPECT_EQ(columns.At("output_tokens").Dump(), "[5,0,5]");
  EXPECT_EQ(columns.At("finish_reason").Dump(), R"(["length","length","length"])");

  const ProgramResult by_budget =
      eval({"--kv", "pm-kvq", "--kv-budget", "800KiB", "--json", folder.File("s.json")});
  ASSERT_EQ(by_budget.exit_code, 0) << by_budget.err;
  const JsonValue budgeted = JsonValue::ParseFile(folder.File("s.json"));
  EXPECT_EQ(budgeted.At("columns").At("finish_reason").Dump(),
            R"(["length","kv_budget","length"])");
  EXPECT_EQ(budgeted.At("cut_by_budget").AsInt(), 1);
  EXPECT_EQ(budgeted.At("prompts_too_long").AsInt(), 1);

  const ProgramResult judged = RunProgram({"judge", folder.File("length"), "--json", "-"});
  EXPECT_EQ(judged.exit_code, 0) << judged.err;
  EXPECT_NE(judged.out.find("\"responses\":3"), std::string::npos) << judged.out;
}

// Simulated methods have no pages, and the speed says whose it is.
TEST(EvalResume, TheTableSaysWhatItsNumbersAre) {
  const ProgramResult result =
      RunProgram({"eval", "--model", kModel, "--max-level", "1", "--end", "1", "--max-tokens", "5",
                  "--max-len", "256", "--kv", "kivi"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(result.out.find("0%"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("     -     -     -     -"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("of all"), std::string::npos) << result.out;
}

}  // namespace
}  // namespace pmkvq
