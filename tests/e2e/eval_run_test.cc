// pmkvq eval as its user runs it: folders of responses that survive kills, restarts and mistakes.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "pmkvq/base/random.h"
#include "pmkvq/io/json.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::Interrupt;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";

using Args = std::vector<std::string>;
using Key = std::pair<std::string, int64_t>;

// Short replies, hot enough to differ: 4 to each of the 5 tasks' first problem.
Args ShortRun(const std::string& folder, const std::string& batch = "4") {
  return {"eval", "--model",       kModel, "--per-cell",    "1",   "--max-level",
          "1",    "--temperature", "2",    "--n-responses", "4",   "--max-tokens",
          "40",   "--max-len",     "512",  "--batch",       batch, "--out",
          folder};
}

Args Plus(Args args, const Args& more) {
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

// The responses of a folder without what depends on the clock. Every one must be there once.
std::map<Key, std::string> Responses(const std::string& folder) {
  std::map<Key, std::string> responses;
  std::istringstream lines(Slurp(folder + "/responses.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const JsonValue json = JsonValue::Parse(line, folder);
    std::string kept;
    for (const std::string& key : json.Keys()) {
      if (key == "decode_seconds" || key == "longest_pause_us") continue;
      kept += key + "=" + json.At(key).Dump() + "\n";
    }
    const Key key(json.At("id").AsString(), json.At("response").AsInt());
    EXPECT_TRUE(responses.emplace(key, kept).second) << key.first << " a second time";
  }
  return responses;
}

TEST(EvalRun, SurvivesKillsAtRandomMoments) {
  constexpr int kKills = 20;
  const TempFolder folder;
  const ProgramResult whole = RunProgram(ShortRun(folder.File("whole")));
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  const std::map<Key, std::string> expected = Responses(folder.File("whole"));
  ASSERT_EQ(expected.size(), 20u);

  // Anywhere from before the program has begun to its end. A run that comes to its end before its
  // kill is checked, and the next one starts from nothing.
  Random random(20);
  int num_kills = 0;
  int num_finished = 0;
  int num_resumed = 0;
  std::string name = folder.File("killed-0");
  for (int attempt = 0; num_kills < kKills; ++attempt) {
    ASSERT_LT(attempt, 20 * kKills);
    const Interrupt kill = {
        .after_cpu_ms = static_cast<int>(random.Below(static_cast<uint64_t>(whole.cpu_ms) + 1)),
        .signal = SIGKILL};
    const ProgramResult result = RunProgram(ShortRun(name), "", kill);
    if (result.exit_code == 128 + SIGKILL) {
      ++num_kills;
    } else {
      ASSERT_EQ(result.exit_code, 0) << result.err;
      EXPECT_EQ(Responses(name), expected);
      name = folder.File("killed-" + std::to_string(++num_finished));
    }
    num_resumed += result.err.find("going on") != std::string::npos ? 1 : 0;
  }
  const ProgramResult last = RunProgram(ShortRun(name));
  ASSERT_EQ(last.exit_code, 0) << last.err;
  EXPECT_EQ(Responses(name), expected);
  EXPECT_GT(num_resumed, 0) << "no kill left work half done";
  RecordProperty("cpu_ms_of_a_whole_run", std::to_string(whole.cpu_ms));
  RecordProperty("runs_finished_before_their_kill", num_finished);
  RecordProperty("runs_resumed_half_done", num_resumed);
}

TEST(EvalRun, BatchChangesNothing) {
  const TempFolder folder;
  ASSERT_EQ(RunProgram(ShortRun(folder.File("one"), "1")).exit_code, 0);
  ASSERT_EQ(RunProgram(ShortRun(folder.File("eight"), "8")).exit_code, 0);
  EXPECT_EQ(Responses(folder.File("one")), Responses(folder.File("eight")));
  // Sampled replies differ among the responses to one problem.
  const std::map<Key, std::string> responses = Responses(folder.File("one"));
  std::set<std::string> texts;
  for (const auto& [key, text] : responses) texts.insert(text.substr(text.find("text=")));
  EXPECT_GT(texts.size(), 5u);
}

TEST(EvalRun, AFinishedRunOnlyPrintsItsSummary) {
  const TempFolder folder;
  const std::string run = folder.File("run");
  const ProgramResult first = RunProgram(Plus(ShortRun(run), {"--json", "-"}));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  const std::string responses = Slurp(run + "/responses.jsonl");
  EXPECT_EQ(Slurp(run + "/summary.json"), first.out);

  const ProgramResult again = RunProgram(ShortRun(run));
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_NE(again.err.find("20 of 20 responses are there"), std::string::npos) << again.err;
  EXPECT_NE(again.out.find("pass@1"), std::string::npos) << again.out;
  EXPECT_EQ(Slurp(run + "/responses.jsonl"), responses);
  EXPECT_EQ(Slurp(run + "/summary.json"), first.out);

  // More responses to the same problems go on where these end.
  Args more = ShortRun(run);
  *(std::find(more.begin(), more.end(), "--n-responses") + 1) = "5";
  const ProgramResult extended = RunProgram(Plus(more, {"--json", folder.File("s.json")}));
  ASSERT_EQ(extended.exit_code, 0) << extended.err;
  EXPECT_NE(extended.err.find("20 of 25 responses are there, going on"), std::string::npos);
  const std::string extended_responses = Slurp(run + "/responses.jsonl");
  EXPECT_EQ(extended_responses.substr(0, responses.size()), responses);
  EXPECT_EQ(Responses(run).size(), 25u);

  const JsonValue summary = JsonValue::ParseFile(folder.File("s.json"));
  EXPECT_EQ(summary.At("problems").AsInt(), 5);
  EXPECT_EQ(summary.At("responses").AsInt(), 25);
  const JsonValue columns = summary.At("columns");
  EXPECT_EQ(columns.Keys(), (Args{"id", "level", "response", "correct", "output_tokens",
                                  "finish_reason", "peak_bytes", "decode_seconds"}));
  for (const std::string& key : columns.Keys()) EXPECT_EQ(columns.At(key).size(), 25u) << key;
  // By problem, then index, whatever finished first.
  EXPECT_EQ(columns.At("id").At(4).AsString(), "chain-1-000");
  EXPECT_EQ(columns.At("response").At(4).AsInt(), 4);
  EXPECT_EQ(columns.At("id").At(5).AsString(), "registers-1-000");
}

TEST(EvalRun, OtherSettingsAreRefusedByName) {
  const TempFolder folder;
  const std::string run = folder.File("run");
  // A SPEC that cannot run leaves no folder that would refuse the right one.
  EXPECT_EQ(RunProgram(Plus(ShortRun(run), {"--kv", "kivi:bit=2"})).exit_code, 2);
  EXPECT_FALSE(std::filesystem::exists(run));
  ASSERT_EQ(RunProgram(Plus(ShortRun(run), {"--end", "1"})).exit_code, 0);
  const auto expect = [&](const Args& more, const Args& parts) {
    const ProgramResult result = RunProgram(Plus(ShortRun(run), more));
    EXPECT_EQ(result.exit_code, 1);
    for (const std::string& part : parts) {
      EXPECT_NE(result.err.find(part), std::string::npos) << part << ": " << result.err;
    }
  };
  expect({"--seed", "43"}, {"run.json", "--seed", "'42'", "'43'"});
  expect({"--kv", "static-4"}, {"--kv", "'fp16'", "'static-4'"});
  expect({"--top-p", "0.5"}, {"--top-p", "'1'", "'0.5'"});
  EXPECT_EQ(Responses(run).size(), 4u);
  // Other problems of the same benchmark and another batch go on.
  const ProgramResult more = RunProgram(Plus(ShortRun(run, "2"), {"--start", "1", "--end", "2"}));
  EXPECT_EQ(more.exit_code, 0) << more.err;
  EXPECT_EQ(Responses(run).size(), 8u);
}

TEST(EvalRun, TwoProcessesOnOneFolderRefuseEachOtherAndCtrlCKeepsWhatIsDone) {
  const TempFolder folder;
  const std::string run = folder.File("run");
  // More work than there is time for, ended by Ctrl-C.
  const Args args = {"eval", "--model",       kModel, "--max-level",   "1", "--batch",
                     "2",    "--n-responses", "64",   "--temperature", "1", "--max-tokens",
                     "4",    "--max-len",     "512",  "--out",         run};
  ProgramResult first;
  std::atomic<bool> second_has_ended = false;
  std::thread thread(
      [&] { first = RunProgram(args, "", {.when = [&] { return second_has_ended.load(); }}); });
  const auto has_answer = [&] {
    return Slurp(run + "/responses.jsonl").find('\n') != std::string::npos;
  };
  for (int i = 0; i < 30'000 && !has_answer(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  const ProgramResult second = RunProgram(args);
  second_has_ended = true;
  thread.join();
  EXPECT_EQ(second.exit_code, 1);
  EXPECT_NE(second.err.find(run), std::string::npos) << second.err;
  EXPECT_NE(second.err.find("another process"), std::string::npos) << second.err;
  EXPECT_EQ(first.exit_code, 130);
  EXPECT_FALSE(std::filesystem::exists(run + "/summary.json"));
  const size_t num_done = Responses(run).size();
  EXPECT_GT(num_done, 0u);
  EXPECT_NE(first.err.find(std::to_string(num_done) + " of 9600 responses are there"),
            std::string::npos)
      << first.err;
  EXPECT_NE(first.err.find("the same command goes on"), std::string::npos) << first.err;
}

TEST(EvalRun, JudgeReadsTheFolder) {
  const TempFolder folder;
  const std::string run = folder.File("run");
  ASSERT_EQ(RunProgram(ShortRun(run)).exit_code, 0);
  const std::string shape = R"({"n":5,"responses":20,"pass_at_1":0.0,"std":0.0,"voting":0.0,)"
                            R"("mean_output_tokens":40.0,"cut_by_length":1.0,"cut_by_budget":0.0})";
  EXPECT_EQ(RunProgram({"judge", run, "--json", "-"}).out, shape + "\n");
  // While a run writes a line, or after a kill, the rest of the folder is judged.
  std::filesystem::copy(run, folder.File("cut"));
  const std::string responses = Slurp(run + "/responses.jsonl");
  folder.Write("cut/responses.jsonl", responses + responses.substr(0, 100));
  EXPECT_EQ(RunProgram({"judge", folder.File("cut"), "--json", "-"}).out, shape + "\n");
}

TEST(EvalRun, TakesAnyJsonl) {
  const TempFolder folder;
  const std::string data =
      folder.Write("f.jsonl", R"({"id":"one","problem":"What is 1+1?","answer":"2"})"
                              "\n"
                              R"({"id":"two","problem":"What is 2+2?","answer":4})"
                              "\n");
  const ProgramResult result =
      RunProgram({"eval", "--benchmark", "jsonl", "--data", data, "--model", kModel, "--json", "-",
                  "--max-tokens", "8", "--max-len", "512"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const JsonValue json = JsonValue::Parse(result.out, "stdout");
  EXPECT_EQ(json.At("benchmark").AsString(), "jsonl");
  EXPECT_EQ(json.At("problems").AsInt(), 2);
  EXPECT_EQ(json.At("responses").AsInt(), 2) << "greedy, one response";
  EXPECT_EQ(json.At("columns").At("id").Dump(), R"(["one","two"])");
}

TEST(EvalRun, ContestsRunByThePapersProtocol) {
  const TempFolder folder;
  std::filesystem::create_directories(folder.File("aime/cup_1/problems"));
  folder.Write("aime/cup_1/answers.csv", "id,answer\n1,002\n2,4\n");
  folder.Write("aime/cup_1/problems/1.tex", "What is $1+1$?\n");
  folder.Write("aime/cup_1/problems/2.tex", "What is $2+2$?\n");
  folder.Write("aime/cup_1/config.yaml", "instruction: \"Put it within \\\\boxed{{}}.\"\n");
  const Args args = {"eval",
                     "--model",
                     kModel,
                     "--benchmark",
                     "aime",
                     "--data",
                     folder.File("aime"),
                     "--kv",
                     "static-4",
                     "--start",
                     "0",
                     "--end",
                     "30",
                     "--batch",
                     "16",
                     "--out",
                     folder.File("run"),
                     "--max-len",
                     "256"};
  const ProgramResult result = RunProgram(args);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::string note = "--max-tokens 32768 is more than there is room for";
  const size_t at = result.err.find(note);
  ASSERT_NE(at, std::string::npos) << result.err;
  EXPECT_EQ(result.err.find(note, at + 1), std::string::npos) << "said twice";
  EXPECT_NE(result.err.find("256 tokens (--max-len)"), std::string::npos) << result.err;
  EXPECT_EQ(Responses(folder.File("run")).size(), 2u * 16u);
  const JsonValue options = JsonValue::ParseFile(folder.File("run/run.json")).At("options");
  EXPECT_EQ(options.At("--temperature").AsString(), "0.6");
  EXPECT_EQ(options.At("--top-p").AsString(), "0.95");
  EXPECT_EQ(options.At("--seed").AsString(), "42");
}

TEST(EvalRun, MistakesAreNamed) {
  const TempFolder folder;
  const std::string file = folder.Write("old.jsonl", "{}\n");
  const auto expect = [&](const Args& args, int exit_code, const std::string& part) {
    const ProgramResult result = RunProgram(Plus({"eval", "--model", kModel}, args));
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_NE(result.err.find(part), std::string::npos) << result.err;
  };
  expect({"--benchmark", "imo"}, 2, "expected one of longcot, aime");
  expect({"--benchmark", "aime"}, 2, "--data");
  expect({"--benchmark", "aime", "--data", folder.path()}, 1, "answers.csv");
  expect({"--out", file, "--end", "1"}, 1, "is a file, expected a folder");
  expect({"--start", "870"}, 1, "expected a number from 0 to 869");
  expect({"--n-responses", "0"}, 2, "--n-responses");
  expect({"--batch", "2", "--replicas", "3", "--end", "1"}, 2,
         "found 3, expected at most the 2 of --batch");
  expect({"--top-p", "0", "--end", "1"}, 1, "top_p");
}

// Code is judged by running it. Without an interpreter that shows before the first response, not
// after hours; and a run that has all responses needs none.
TEST(EvalRun, CodeWithoutPythonIsRefusedBeforeAnythingIsGenerated) {
  const TempFolder folder;
  const std::string data = folder.Write(
      "code.jsonl",
      R"({"question_id":"a","question_content":"Add.","difficulty":"easy","platform":"atcoder",)"
      R"("question_title":"Sum","metadata":"{}","starter_code":"","public_test_cases":)"
      R"("[{\"input\":\"1 2\",\"output\":\"3\",\"testtype\":\"stdin\"}]","private_test_cases":"[]"})"
      "\n");
  const Args args = {"eval",        "--model",       kModel,
                     "--benchmark", "livecodebench", "--n-responses",
                     "1",           "--data",        data,
                     "--max-len",   "512",           "--max-tokens",
                     "8",           "--out",         folder.File("run")};
  const std::string path = getenv("PATH");
  setenv("PATH", folder.path().c_str(), 1);
  const ProgramResult without = RunProgram(args);
  setenv("PATH", path.c_str(), 1);
  EXPECT_EQ(without.exit_code, 1);
  EXPECT_NE(without.err.find("install the package python3"), std::string::npos) << without.err;
  EXPECT_EQ(without.out, "");
  EXPECT_EQ(Slurp(folder.File("run/responses.jsonl")), "");

  const ProgramResult with = RunProgram(args);
  ASSERT_EQ(with.exit_code, 0) << with.err;
  EXPECT_EQ(Responses(folder.File("run")).size(), 1u);
  setenv("PATH", folder.path().c_str(), 1);
  const ProgramResult again = RunProgram(args);
  setenv("PATH", path.c_str(), 1);
  EXPECT_EQ(again.exit_code, 0) << again.err;
}

}  // namespace
}  // namespace pmkvq
