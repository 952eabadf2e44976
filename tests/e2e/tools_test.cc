// The scripts of tools/ as their user runs them.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::Slurp;
using testing_support::TempFolder;

// `command` in the root of the repository.
ProgramResult RunTool(const std::string& command) {
  const TempFolder streams;
  const std::string line = "cd '" PMKVQ_SOURCE_DIR "' && " + command + " >'" + streams.File("out") +
                           "' 2>'" + streams.File("err") + "' </dev/null";
  const int status = std::system(line.c_str());
  ProgramResult result;
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  result.out = Slurp(streams.File("out"));
  result.err = Slurp(streams.File("err"));
  return result;
}

const char* const kRender = "tools/render_results.py --program '" PMKVQ_PROGRAM "' ";

// README's table, docs/results.md and its picture are what the result files give.
TEST(RenderResults, PagesOfTheRepositoryAreWhatItRenders) {
  const ProgramResult result = RunTool(std::string(kRender) + "--check");
  EXPECT_EQ(result.exit_code, 0) << result.err;
}

TEST(RenderResults, CheckFindsAChangedNumber) {
  const TempFolder folder;
  const std::string source = PMKVQ_SOURCE_DIR;
  std::filesystem::create_directories(folder.File("docs/images"));
  for (const char* file : {"README.md", "docs/results.md", "docs/images/results.svg"}) {
    std::filesystem::copy_file(source + "/" + file, folder.File(file));
  }
  const std::string command = std::string(kRender) + "--check --root '" + folder.path() + "'";
  ASSERT_EQ(RunTool(command).exit_code, 0);
  std::string readme = Slurp(folder.File("README.md"));
  const size_t cell = readme.find(" of 200 |");
  ASSERT_NE(cell, std::string::npos);
  readme[cell - 1] = readme[cell - 1] == '9' ? '8' : '9';
  folder.Write("README.md", readme);
  const ProgramResult result = RunTool(command);
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.err.find("README.md"), std::string::npos) << result.err;
  EXPECT_EQ(result.err.find("results.svg"), std::string::npos) << result.err;
}

// A rival that the choosing half put second may solve more of the reporting half than the first, so
// a page that names one of them alone as the best says too little.
TEST(RenderResults, PagesNameEveryRivalWithWhatItSolvedOfTheReportingHalf) {
  const ProgramResult result = RunTool(
      "python3 -c \"import sys; sys.path.insert(0, 'tools'); import results_settings as rs\n"
      "from results_data import Results\n"
      "results = Results('results/runs')\n"
      "for bits in rs.BUDGETS:\n"
      "  rows = {s.name: results.get(rs.ALL, bits, s).reporting().solved() for s in "
      "rs.best_rivals(bits)}\n"
      "  print(f'| {bits:g} (', *(f'{name} {solved}' for name, solved in rows.items()), "
      "sep='\\t')\"");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::string readme = Slurp(PMKVQ_SOURCE_DIR "/README.md");
  std::stringstream budgets(result.out);
  int num_budgets = 0;
  for (std::string line; std::getline(budgets, line); ++num_budgets) {
    std::stringstream parts(line);
    std::string part;
    ASSERT_TRUE(std::getline(parts, part, '\t'));
    const size_t begin = readme.find(part);
    ASSERT_NE(begin, std::string::npos) << part;
    const std::string row = readme.substr(begin, readme.find('\n', begin) - begin);
    while (std::getline(parts, part, '\t')) EXPECT_NE(row.find(part), std::string::npos) << row;
  }
  EXPECT_EQ(num_budgets, 4);
  EXPECT_EQ(readme.find("best rival"), std::string::npos);
  EXPECT_EQ(Slurp(PMKVQ_SOURCE_DIR "/docs/results.md").find("best rival"), std::string::npos);
}

// A verdict is explained before the first comparison that bears it, and long tables are folded.
TEST(RenderResults, VerdictsAreExplainedFirstAndLongTablesFolded) {
  std::stringstream page(Slurp(PMKVQ_SOURCE_DIR "/docs/results.md"));
  const std::string text = page.str();
  EXPECT_LT(text.find("all else is *not shown*"), text.find("(not shown)"));
  int num_rows = 0;
  bool is_folded = false;
  for (std::string line; std::getline(page, line);) {
    if (line == "<details>" || line == "</details>") is_folded = line == "<details>";
    num_rows = line.starts_with("|") ? num_rows + 1 : 0;
    EXPECT_TRUE(is_folded || num_rows <= 12) << line;
  }
  EXPECT_FALSE(is_folded);
}

// What is compared to choose lies in one half, what is reported in the other, in every cell.
TEST(ResultsSettings, HalvesAreDisjointInEveryCell) {
  const ProgramResult result = RunTool(
      "python3 -c \"import sys; sys.path.insert(0, 'tools'); import results_settings as rs\n"
      "ids = [r['id'] for r in rs.problem_rows()]\n"
      "assert not any(rs.is_reporting(i) for i in ids if rs.HARD.holds(i))\n"
      "assert all(rs.is_reporting(i) for i in ids if rs.LATE.holds(i) or rs.LONG.holds(i))\n"
      "cells = {rs.cell_of(i)[:2] for i in ids if rs.ALL.holds(i)}\n"
      "for cell in cells:\n"
      "  half = [rs.is_reporting(i) for i in ids if rs.ALL.holds(i) and rs.cell_of(i)[:2] == "
      "cell]\n"
      "  assert sum(half) * 2 == len(half), cell\n"
      "for s in (rs.ALL, rs.HARD, rs.LATE, rs.LONG): assert sum(map(s.holds, ids)) == "
      "s.num_problems\n"
      "print(len(cells))\"");
  EXPECT_EQ(result.out, "25\n") << result.err;
}

TEST(PlotLadder, DrawsBesideItsInputByDefault) {
  const TempFolder folder;
  std::string rows;
  for (int position = 1; position <= 3; ++position) {
    rows += "{\"event\":\"token\",\"position\":" + std::to_string(position) +
            ",\"bytes\":1048576,\"budget_bytes\":2097152,\"pages\":[1,1,0,0]}\n";
  }
  const std::string stats = folder.Write("stats.jsonl", rows);
  const ProgramResult result = RunTool("tools/plot_ladder.py '" + stats + "'");
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_NE(Slurp(folder.File("stats.svg")).find("budget 2.00 MiB"), std::string::npos);
}

TEST(Tools, ErrorsAreOneLine) {
  const TempFolder folder;
  const std::string empty = folder.Write("empty.jsonl", "");
  const std::string words = folder.Write("words.jsonl", "not JSON\n");
  const std::string list = folder.Write("list.jsonl", "[1]\n");
  const std::vector<std::string> commands = {
      "tools/plot_ladder.py",
      "tools/plot_ladder.py '" + empty + "'",
      "tools/plot_ladder.py '" + words + "'",
      "tools/plot_ladder.py '" + list + "'",
      "tools/plot_ladder.py nowhere.jsonl",
      "tools/plot_ladder.py a b c d",
      "tools/pick_problems.py",
      "tools/pick_problems.py '" + words + "'",
      "tools/pick_problems.py '" + list + "'",
      "tools/pick_problems.py nowhere",
      "tools/make_results.py --program nowhere",
      "tools/render_results.py --results nowhere",
      "tools/render_results.py --program nowhere",
  };
  for (const std::string& command : commands) {
    const ProgramResult result = RunTool(command);
    EXPECT_NE(result.exit_code, 0) << command;
    EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << command << result.err;
    EXPECT_EQ(result.err.find("Traceback"), std::string::npos) << command << result.err;
  }
  for (const char* arguments : {"--jobs four", "--verify 0", "--only '('"}) {
    const ProgramResult result = RunTool(std::string("tools/make_results.py ") + arguments);
    EXPECT_EQ(result.exit_code, 2) << arguments;
    EXPECT_NE(result.err.find("found '"), std::string::npos) << result.err;
  }
}

// Stands for the program: every problem is solved, with as many tokens as its id has letters.
constexpr const char* kStandIn = R"(#!/usr/bin/env python3
import json, pathlib, sys
a = sys.argv[1:]
opt = lambda name: a[a.index(name) + 1]
if a[0] == "calibrate":
    plan = pathlib.Path(opt("--plan" if "--plan" in a else "--out"))
    plan.write_text("{}")
    plan.with_suffix(".safetensors").write_text("")
elif a[0] == "inspect":
    print(json.dumps({"needs_bytes": 5, "holds": True}))
else:
    rows = [json.loads(l) for l in open(opt("--data"))][int(opt("--start")):int(opt("--end"))]
    ids, n = [r["id"] for r in rows], len(rows)
    (pathlib.Path(opt("--out")) / "responses.jsonl").write_text("".join(
        json.dumps({"id": i, "response": 0, "final_pages": [0, 0, 0, 1], "text": i} |
                   ({"kept_share": 0.5} if "random" in opt("--kv") and i.startswith("sort") else {})) + "\n" for i in ids))
    pathlib.Path(opt("--json")).write_text(json.dumps({"budget_bytes": 9, "longest_pause_us": 1.0, "columns": {
        "id": ids, "response": [0] * n, "correct": [True] * n, "output_tokens": [len(i) for i in ids],
        "finish_reason": ["stop"] * n, "peak_bytes": [7] * n}}))
)";

TEST(MakeResults, VerifyRunsSettingsAgainAndNamesWhatDiffers) {
  const TempFolder folder;
  const std::string program = folder.Write("stand_in", kStandIn);
  std::filesystem::permissions(program, std::filesystem::perms::owner_all);
  const std::string results = folder.File("results");
  const std::string base = "tools/make_results.py --program '" + program + "' --results '" +
                           results + "' --work '" + folder.File("work") +
                           "' --only late/2.7/of --jobs 2 ";
  ASSERT_EQ(RunTool(base + "--no-estimate").exit_code, 0);
  const std::string path = results + "/late/2.7/of+split+channel.json";
  std::string text = Slurp(path);
  EXPECT_NE(text.find("\"text_sha256\""), std::string::npos);

  const ProgramResult equal = RunTool(base + "--verify 20 --seed 1 --problems 120");
  EXPECT_EQ(equal.exit_code, 0) << equal.out << equal.err;
  EXPECT_NE(equal.out.find("all equal: 1 settings"), std::string::npos) << equal.out;

  const size_t tokens = text.find("\"output_tokens\":[11");
  ASSERT_NE(tokens, std::string::npos);
  text.replace(tokens, 19, "\"output_tokens\":[12");
  std::ofstream(path) << text;
  const ProgramResult different = RunTool(base + "--verify 20 --seed 1 --problems 120");
  EXPECT_EQ(different.exit_code, 1) << different.out;
  EXPECT_NE(different.out.find("chain-3-008: output_tokens was 12, is 11"), std::string::npos)
      << different.out;
}

// The share of kept tokens is recorded of runs that evicted, for every problem.
TEST(MakeResults, RecordsWhatWasKeptAndHowLongCalibrationsTook) {
  const TempFolder folder;
  const std::string program = folder.Write("stand_in", kStandIn);
  std::filesystem::permissions(program, std::filesystem::perms::owner_all);
  const std::string results = folder.File("results");
  const std::string base = "tools/make_results.py --program '" + program + "' --results '" +
                           results + "' --work '" + folder.File("work") + "' --jobs 2 ";
  const ProgramResult made = RunTool(base + "--no-estimate --only 'hard/2.7/(random|window)$'");
  ASSERT_EQ(made.exit_code, 0) << made.err;
  EXPECT_EQ(Slurp(results + "/hard/2.7/window.json").find("kept_share"), std::string::npos);
  const std::string text = Slurp(results + "/hard/2.7/random.json");
  const size_t begin = text.find("\"kept_share\":[1,1,");
  ASSERT_NE(begin, std::string::npos) << text;
  const std::string shares = text.substr(begin, text.find(']', begin) - begin);
  EXPECT_EQ(std::count(shares.begin(), shares.end(), ','), 104);
  EXPECT_NE(shares.find(",0.5,0.5"), std::string::npos) << shares;

  const ProgramResult timed = RunTool(base + "--time-calibrations --only 'hard/2.7/(cq|pm-kvq)$'");
  ASSERT_EQ(timed.exit_code, 0) << timed.err;
  const std::string time = Slurp(results + "/calibrations/cq-4c8b.json");
  for (const char* part : {"\"seconds\": ", "\"processor_seconds\": ", "\"threads\": 2",
                           "\"samples\": 16", "\"file_bytes\": "}) {
    EXPECT_NE(time.find(part), std::string::npos) << part << time;
  }
}

}  // namespace
}  // namespace pmkvq
