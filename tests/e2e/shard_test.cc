// --shard I/N: parts of a job array, killed and started again, make what one process makes.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <future>
#include <map>
#include <sstream>

#include "pmkvq/base/random.h"
#include "pmkvq/io/json.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";
constexpr int64_t kUnits = 24;

using Args = std::vector<std::string>;

Args With(Args args, const Args& more) {
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

Args Eval(const std::string& folder, const Args& more = {}) {
  return With({"eval", "--model",       kModel,   "--benchmark", "longcot", "--end",
               "12",   "--n-responses", "2",      "--batch",     "3",       "--temperature",
               "0.8",  "--kv",          "pm-kvq", "--kv-budget", "1536KiB", "--max-tokens",
               "60",   "--max-len",     "512",    "--threads",   "1",       "--out",
               folder},
              more);
}

std::string Shard(int64_t index, int64_t count) {
  return std::to_string(index) + "/" + std::to_string(count);
}

// Lines by problem and index, without what depends on the clock. Each must be there once.
std::map<std::string, std::string> Responses(const std::string& folder) {
  std::map<std::string, std::string> responses;
  std::istringstream lines(Slurp(folder + "/responses.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const JsonValue json = JsonValue::Parse(line, folder);
    std::string kept;
    for (const std::string& key : json.Keys()) {
      if (key == "decode_seconds" || key == "longest_pause_us") continue;
      kept += key + "=" + json.At(key).Dump() + "\n";
    }
    const std::string key = json.At("id").AsString() + " " + json.At("response").Dump();
    EXPECT_TRUE(responses.emplace(key, kept).second) << key << " is there twice";
  }
  return responses;
}

bool HasParts(const std::string& folder) { return std::filesystem::exists(folder + "/parts"); }

TEST(Shards, KilledAtRandomWithAnyNumberOfPartsNothingIsLostOrTwice) {
  const TempFolder folder;
  ASSERT_EQ(RunProgram(Eval(folder.File("whole"))).exit_code, 0);
  const auto expected = Responses(folder.File("whole"));
  ASSERT_EQ(std::ssize(expected), kUnits);

  Random random(20);
  int num_kills = 0, num_runs = 0;
  while (num_kills < 20) {
    const std::string run = folder.File("run" + std::to_string(num_runs++));
    bool is_done = false;
    for (int round = 0; !is_done && round < 100; ++round) {
      const auto count = static_cast<int64_t>(1 + random.Below(4));
      std::vector<std::future<ProgramResult>> parts;
      for (int64_t index = 1; index <= count; ++index) {
        const int after_ms = round < 99 ? static_cast<int>(50 + random.Below(500)) : 1 << 30;
        parts.push_back(std::async(std::launch::async, [&run, index, count, after_ms] {
          return RunProgram(Eval(run, {"--shard", Shard(index, count)}), "",
                            {.after_cpu_ms = after_ms, .signal = SIGKILL});
        }));
      }
      for (auto& part : parts) {
        const ProgramResult result = part.get();
        ASSERT_TRUE(result.exit_code == 0 || result.exit_code == 137) << result.err;
        num_kills += result.exit_code == 137 ? 1 : 0;
        is_done |= result.out.find("pass@1") != std::string::npos;
      }
    }
    // The next command, of any kind, merges what a killed one left.
    const ProgramResult last = RunProgram(Eval(run, {"--json", "-"}));
    ASSERT_EQ(last.exit_code, 0) << last.err;
    EXPECT_EQ(JsonValue::Parse(last.out, "stdout").At("responses").AsInt(), kUnits);
    EXPECT_EQ(Responses(run), expected);
    EXPECT_FALSE(HasParts(run));
    EXPECT_FALSE(std::filesystem::exists(run + "/unfinished.jsonl"));
  }
}

TEST(Shards, TheLastPartMergesAndPrintsTheSummary) {
  const TempFolder folder;
  const std::string run = folder.File("run");
  const ProgramResult first = RunProgram(Eval(run, {"--shard", "1/2"}));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(first.out, "");
  EXPECT_NE(first.err.find("part 1/2 is done, 12 responses"), std::string::npos) << first.err;
  EXPECT_NE(first.err.find("12 of 24 are there"), std::string::npos) << first.err;
  EXPECT_FALSE(HasParts(run)) << "it was alone";
  EXPECT_FALSE(std::filesystem::exists(run + "/summary.json"));
  const ProgramResult second = RunProgram(Eval(run, {"--shard", "2/2"}));
  ASSERT_EQ(second.exit_code, 0) << second.err;
  EXPECT_NE(second.out.find("pass@1"), std::string::npos);
  EXPECT_EQ(JsonValue::ParseFile(run + "/summary.json").At("responses").AsInt(), kUnits);
  const auto responses = Responses(run);
  EXPECT_EQ(std::ssize(responses), kUnits);

  // Sorted by problem and index, so that the file does not depend on who did what.
  std::vector<std::pair<std::string, int64_t>> order;
  std::istringstream lines(Slurp(run + "/responses.jsonl"));
  for (std::string line; std::getline(lines, line);) {
    const JsonValue json = JsonValue::Parse(line, run);
    order.emplace_back(json.At("id").AsString(), json.At("response").AsInt());
  }
  EXPECT_TRUE(std::is_sorted(order.begin(), order.end()));
}

TEST(Shards, MistakesAreOneLine) {
  const TempFolder folder;
  const std::string run = folder.File("run");
  const auto expect = [](const Args& args, int exit_code, const Args& parts) {
    const ProgramResult result = RunProgram(args);
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_EQ(result.out, "");
    const std::string last = result.err.substr(result.err.rfind("pmkvq: "));
    EXPECT_EQ(std::count(last.begin(), last.end(), '\n'), 1) << result.err;
    for (const std::string& part : parts) {
      EXPECT_NE(last.find(part), std::string::npos) << part << " in " << result.err;
    }
  };
  expect(Eval(run, {"--shard", "3/2"}), 2, {"--shard", "part 3 of 2", "--array=1-2"});
  expect(Eval(run, {"--shard", "0/4"}), 2, {"--shard", "'0/4'", "count from 1"});
  expect(Eval(run, {"--shard", "/"}), 2, {"--shard", "I/N", "SLURM_ARRAY_TASK_ID"});
  EXPECT_FALSE(std::filesystem::exists(run));
  Args without_out = Eval(run, {"--shard", "1/2"});
  without_out.erase(std::find(without_out.begin(), without_out.end(), "--out"),
                    without_out.end() - 2);
  expect(without_out, 2, {"--shard", "part 1/2 without --out"});
  expect({"perplexity", "--model", kModel, "--dataset", kModel + "/calibration.jsonl", "--shard",
          "1/2"},
         2, {"--shard", "without --checkpoint"});
  expect({"sensitivity", "--model", kModel, "--dataset", kModel + "/calibration.jsonl", "--shard",
          "1/2", "--json", "-"},
         2, {"--shard", "without --checkpoint"});
  expect({"calibrate", "--model", kModel, "--dataset", kModel + "/calibration.jsonl", "--kv",
          "oscar", "--out", folder.File("o"), "--shard", "1/2"},
         2, {"--shard", "oscar"});

  // Parts with other settings than those of the folder.
  ASSERT_EQ(RunProgram(Eval(run, {"--shard", "1/40"})).exit_code, 0);
  expect(Eval(run, {"--shard", "2/40", "--seed", "7"}), 1, {"run.json", "--seed", "'42'", "'7'"});
}

TEST(Shards, CompareOfPartsIsTheTableOfOneProcess) {
  const TempFolder folder;
  const auto compare = [&](const std::string& out, const Args& more) {
    return RunProgram(With({"compare", "--model", kModel, "--max-level", "1", "--end", "3", "--kv",
                            "static-4", "--kv-budget", "1MiB", "--max-len", "256", "--max-tokens",
                            "20", "--threads", "1", "--out", folder.File(out)},
                           more));
  };
  const ProgramResult whole = compare("whole", {});
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  const ProgramResult first = compare("run", {"--shard", "2/2"});
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_EQ(first.out, "");
  EXPECT_NE(first.err.find("part 2/2 is done"), std::string::npos) << first.err;
  const ProgramResult second = compare("run", {"--shard", "1/2"});
  ASSERT_EQ(second.exit_code, 0) << second.err;
  const auto without_speed = [](const std::string& table) {
    return table.substr(0, table.find("tok/s"));
  };
  EXPECT_NE(second.out, "");
  EXPECT_EQ(without_speed(second.out), without_speed(whole.out));
  EXPECT_EQ(Responses(folder.File("run/no-budget/fp16")),
            Responses(folder.File("whole/no-budget/fp16")));
}

TEST(Shards, CalibrationOfPartsIsThePlanOfOneProcess) {
  const TempFolder folder;
  const auto calibrate = [&](const std::string& plan, const Args& more) {
    return RunProgram(
        With({"calibrate", "--model", kModel, "--dataset", kModel + "/calibration.jsonl",
              "--n-samples", "5", "--seq-len", "64", "--memory-budget", "2MiB", "--max-len", "512",
              "--threads", "1", "--plan", folder.File(plan)},
             more));
  };
  ASSERT_EQ(calibrate("whole.json", {}).exit_code, 0);
  // Each step ends when all parts of it are there; the last part goes on with the next one.
  int num_commands = 0;
  while (!std::filesystem::exists(folder.File("run.json"))) {
    ASSERT_LT(num_commands, 6);
    const ProgramResult result = calibrate("run.json", {"--shard", Shard(1 + num_commands % 3, 3)});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    ++num_commands;
  }
  EXPECT_EQ(num_commands, 5) << "the third ends the first step, and two more the second";
  EXPECT_EQ(Slurp(folder.File("run.json")), Slurp(folder.File("whole.json")));
  EXPECT_EQ(Slurp(folder.File("run.safetensors")), Slurp(folder.File("whole.safetensors")));
  EXPECT_EQ(folder.NumEntries(), 4u) << "no partial files are left";
}

TEST(Shards, PerplexityOfPartsIsThatOfOneProcess) {
  const TempFolder folder;
  const auto measure = [&](const Args& more) {
    return RunProgram(With(
        {"perplexity", "--model", kModel, "--dataset", kModel + "/calibration.jsonl", "--n-samples",
         "5", "--seq-len", "40", "--kv", "static-4", "--threads", "1", "--json", "-"},
        more));
  };
  const ProgramResult whole = measure({});
  ASSERT_EQ(whole.exit_code, 0) << whole.err;
  const Args checkpoint = {"--checkpoint", folder.File("p")};
  EXPECT_EQ(measure(checkpoint).out, whole.out);
  for (const char* shard : {"2/3", "1/2"}) {
    const ProgramResult part = measure(With(checkpoint, {"--shard", shard}));
    ASSERT_EQ(part.exit_code, 0) << part.err;
    EXPECT_EQ(part.out, "");
    EXPECT_NE(part.err.find("are missing"), std::string::npos) << part.err;
  }
  EXPECT_EQ(measure(With(checkpoint, {"--shard", "2/2"})).out, whole.out);
  EXPECT_EQ(folder.NumEntries(), 0u);
}

}  // namespace
}  // namespace pmkvq
