// pmkvq compare as its user runs it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>

#include "pmkvq/io/json.h"
#include "support/open_page.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ExpectDrawn;
using testing_support::Open;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";

// The first two problems of level 1. static-8 needs 3.5 MiB for 1,024 tokens, the others below 2.
std::vector<std::string> Command(std::vector<std::string> more) {
  std::vector<std::string> command = {
      "compare",  "--model",     kModel, "--max-level", "1",    "--per-cell", "1",
      "--end",    "2",           "--kv", "pm-kvq",      "--kv", "rtn:bits=4", "--kv",
      "static-8", "--kv-budget", "2MiB", "--max-len",   "1024"};
  command.insert(command.end(), more.begin(), more.end());
  return command;
}

// (id, response) of the lines of a response file.
std::set<std::pair<std::string, int64_t>> KeysOf(const std::string& path) {
  std::set<std::pair<std::string, int64_t>> keys;
  std::stringstream lines(Slurp(path));
  for (std::string line; std::getline(lines, line);) {
    const JsonValue json = JsonValue::Parse(line, path);
    EXPECT_TRUE(keys.insert({json.At("id").AsString(), json.At("response").AsInt()}).second);
  }
  return keys;
}

// What does not depend on the clock, of every method.
std::string CountsOf(const JsonValue& json) {
  std::string text;
  for (size_t budget = 0; budget < json.At("budgets").size(); ++budget) {
    const JsonValue methods = json.At("budgets").At(budget).At("methods");
    for (size_t i = 0; i < methods.size(); ++i) {
      const JsonValue method = methods.At(i);
      text += method.At("kv").AsString() + " " + method.At("status").AsString();
      if (method.Has("solved")) {
        for (const char* key : {"solved", "output_tokens", "peak_bytes", "levels", "to_baseline"}) {
          text += " " + method.Find(key).Dump();
        }
      }
      text += "\n";
    }
  }
  return text;
}

TEST(Compare, TablesAtEqualBytesResumedAndRenderedAgain) {
  const TempFolder folder;
  const std::string out = folder.File("runs");
  const ProgramResult first =
      RunProgram(Command({"--out", out, "--json", folder.File("a.json"), "--markdown",
                          folder.File("a.md"), "--html", folder.File("a.html")}));
  ASSERT_EQ(first.exit_code, 0) << first.err;
  EXPECT_NE(first.out.find("does not fit: needs 3.463 MiB at 1024 tokens"), std::string::npos)
      << first.out;
  EXPECT_NE(first.err.find("static-8: 2 MiB does not hold 1024 tokens"), std::string::npos)
      << first.err;
  EXPECT_NE(Slurp(folder.File("a.md")).find("| `rtn:bits=4` | "), std::string::npos);

  ExpectDrawn(folder.File("a.html"));
  const std::string page = Slurp(folder.File("a.html"));
  for (const std::string part : {"<p class=\"verdict\">At 2 MiB for one sequence, ",
                                 "<span>--model</span>", "does not fit: needs", "\"low\":",
                                 "Right answers against the bytes", "<dt>model</dt><dd>"}) {
    EXPECT_NE(page.find(part), std::string::npos) << part;
  }

  // Without the model, from what is on disk: the same text.
  const ProgramResult from = RunProgram({"compare", "--from", out});
  ASSERT_EQ(from.exit_code, 0) << from.err;
  EXPECT_EQ(from.out + "page: " + folder.File("a.html") + "\n", first.out);

  const JsonValue json = JsonValue::ParseFile(folder.File("a.json"));
  EXPECT_EQ(json.At("problems").AsInt(), 2);
  EXPECT_EQ(json.At("settings").At("--seed").AsString(), "42");
  const JsonValue budget = json.At("budgets").At(size_t{0});
  EXPECT_EQ(budget.At("budget_bytes").AsInt(), 2 << 20);
  EXPECT_NEAR(budget.At("effective_bits").AsDouble(), (2 << 20) * 8.0 / (12.0 * 1024 * 2 * 128),
              1e-12);
  const JsonValue methods = budget.At("methods");
  ASSERT_EQ(methods.size(), 4u);
  const std::vector<std::string> names = {"fp16", "pm-kvq", "rtn:bits=4", "static-8"};
  for (size_t i = 0; i < names.size(); ++i) {
    const JsonValue method = methods.At(i);
    EXPECT_EQ(method.At("kv").AsString(), names[i]);
    EXPECT_EQ(method.At("status").AsString(), i == 3 ? "does_not_fit" : "done");
    if (i == 3) continue;
    EXPECT_EQ(method.At("responses").AsInt(), 2);
    if (i == 0) continue;
    EXPECT_LE(method.At("peak_bytes").AsInt(), 2 << 20);
    const JsonValue pair = method.At("to_baseline");
    EXPECT_EQ(pair.At("both").AsInt() + pair.At("only_other").AsInt() +
                  pair.At("only_method").AsInt() + pair.At("neither").AsInt(),
              2);
  }
  EXPECT_EQ(methods.At(3).At("needed_bytes").AsInt(), 12 * (66048 + 7 * 2 * 16896));

  // The same problems for all.
  const auto keys = KeysOf(out + "/no-budget/fp16/responses.jsonl");
  EXPECT_EQ(keys.size(), 2u);
  EXPECT_EQ(KeysOf(out + "/2048KiB/pm-kvq/responses.jsonl"), keys);
  EXPECT_EQ(KeysOf(out + "/2048KiB/rtn~bits=4/responses.jsonl"), keys);
  EXPECT_FALSE(std::filesystem::exists(out + "/2048KiB/static-8"));

  // A response is lost; the same command makes it again, and only it.
  const std::string responses = out + "/2048KiB/pm-kvq/responses.jsonl";
  const std::string content = Slurp(responses);
  std::ofstream(responses) << content.substr(0, content.find('\n') + 1);
  const ProgramResult again = RunProgram(Command({"--out", out, "--json", "-"}));
  ASSERT_EQ(again.exit_code, 0) << again.err;
  EXPECT_EQ(CountsOf(JsonValue::Parse(again.out, "stdout")), CountsOf(json));
  EXPECT_NE(again.err.find("(1 resumed)"), std::string::npos) << again.err;
  EXPECT_EQ(again.err.find("rtn"), std::string::npos) << again.err;

  // And from the disk, with the one that does not fit.
  const ProgramResult rendered = RunProgram({"compare", "--from", out, "--json", "-"});
  ASSERT_EQ(rendered.exit_code, 0) << rendered.err;
  EXPECT_EQ(CountsOf(JsonValue::Parse(rendered.out, "stdout")), CountsOf(json));
}

// The value of an attribute of the page's first canvas.
std::string ChartAttribute(const std::string& dom, const std::string& name) {
  const size_t canvas = dom.find("<canvas");
  const std::string mark = " " + name + "=\"";
  const size_t begin = dom.find(mark, canvas) + mark.size();
  return dom.substr(begin, dom.find('"', begin) - begin);
}

// At 5 MiB nothing steps down on short problems: fp16 and pm-kvq take the same bytes and solve as
// much, and lie at one point of the chart.
TEST(Compare, ChartShowsMarksThatCoincideAndSeveralTicks) {
  const TempFolder folder;
  const std::string html = folder.File("page.html");
  std::vector<std::string> command = Command({"--html", html});
  *std::find(command.begin(), command.end(), "2MiB") = "5MiB";
  const ProgramResult result = RunProgram(command);
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const std::string dom = Open(html).dom;
  std::stringstream marks(ChartAttribute(dom, "data-marks"));
  std::vector<std::pair<int, int>> places;
  char comma = 0;
  for (int x = 0, y = 0; marks >> x >> comma >> y;) {
    for (const auto& [other_x, other_y] : places) {
      EXPECT_TRUE(std::abs(x - other_x) >= 10 || std::abs(y - other_y) >= 10)
          << x << "," << y << " of " << marks.str();
    }
    places.emplace_back(x, y);
  }
  EXPECT_EQ(places.size(), 4u) << marks.str();
  std::stringstream ticks(ChartAttribute(dom, "data-ticks"));
  std::vector<double> values;
  for (double value = 0; ticks >> value;) values.push_back(value);
  EXPECT_GE(values.size(), 3u) << ticks.str();
  EXPECT_TRUE(std::is_sorted(values.begin(), values.end())) << ticks.str();

  // The head names the commit as --version does, and no option of the command is broken.
  const std::string version = RunProgram({"--version"}).out;
  const size_t commit = version.find_first_of("0123456789abcdef", version.find("commit") + 6);
  ASSERT_NE(commit, std::string::npos) << version;
  if (version.find("unknown") == std::string::npos) {
    EXPECT_NE(dom.find(" (" + version.substr(commit, 10)), std::string::npos) << version;
  }
  EXPECT_NE(dom.find("<span>--kv-budget</span> <span>5MiB</span>"), std::string::npos);
}

TEST(Compare, CtrlCKeepsWhatIsFinished) {
  const TempFolder folder;
  std::vector<std::string> command = {
      "compare", "--model",   kModel, "--max-level", "1", "--kv",  "pm-kvq",     "--kv-budget",
      "2MiB",    "--max-len", "1024", "--batch",     "4", "--out", folder.path()};
  const ProgramResult result = RunProgram(command, "", {.after_cpu_ms = 2000});
  EXPECT_EQ(result.exit_code, 130) << result.err;
  const std::string responses = folder.File("no-budget/fp16/responses.jsonl");
  // Whole lines only; how many there are is a matter of speed.
  EXPECT_LT(KeysOf(responses).size(), 150u);
}

TEST(Compare, SaysWhatIsWrong) {
  struct Case {
    std::vector<std::string> args;
    int exit_code;
    std::string message;
  };
  const std::vector<std::string> model = {"--model", kModel};
  const auto with_model = [&](std::vector<std::string> args) {
    args.insert(args.begin(), model.begin(), model.end());
    return args;
  };
  for (const Case& c : std::vector<Case>{
           {{}, 2, "--model"},
           {with_model({"--kv-budget", "2MiB"}), 2, "--kv: found none"},
           {with_model({"--kv", "rtn"}), 2, "--kv-budget: found none"},
           {with_model({"--kv", "rtn", "--kv", "rtn", "--kv-budget", "2MiB"}), 2, "given twice"},
           {with_model({"--kv", "rtn", "--kv-budget", "2MiB", "--against", "kivi"}), 2,
            "--against: found 'kivi'"},
           {with_model({"--kv", "rtn", "--kv-budget", "2MiB,"}), 2, "--kv-budget"},
           {with_model({"--kv", "rtn", "--kv-budget", "2MiB,2048KiB"}), 2, "twice"},
           {with_model({"--kv", "nothing", "--kv-budget", "2MiB"}), 2, "unknown method 'nothing'"},
           {with_model({"--kv", "pm-kvq:bits=2", "--kv-budget", "2MiB"}), 2,
            "expected one of them"},
           {{"--from", kModel, "--kv", "rtn"}, 2, "--from: found --kv"},
           {{"--counts", kModel + "/config.json", "--kv", "rtn"}, 2, "--counts: found --kv"},
           {{"--counts", "/nothing"}, 1, "[/nothing]"},
           {{"--counts", "/dev/zero"}, 1, "[/dev/zero:1] found a line of more than 1048576 bytes"},
           {{"--from", "/nothing"}, 1, "[/nothing] no such file or folder"}}) {
    std::vector<std::string> args = {"compare"};
    args.insert(args.end(), c.args.begin(), c.args.end());
    const ProgramResult result = RunProgram(args);
    EXPECT_EQ(result.exit_code, c.exit_code) << c.message << ": " << result.err;
    EXPECT_NE(result.err.find(c.message), std::string::npos) << c.message << ": " << result.err;
    EXPECT_EQ(result.out, "");
  }
}

TEST(CompareCommand, FiguresOfCountsLineByLine) {
  const ProgramResult result = RunProgram({"compare", "--counts", "-"},
                                          "{\"solved\":3,\"responses\":4}\n"
                                          "{\"both\":4,\"only_other\":3,\"only_method\":0,"
                                          "\"neither\":1}\n");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  std::stringstream lines(result.out);
  std::string share, pair;
  ASSERT_TRUE(std::getline(lines, share) && std::getline(lines, pair));
  EXPECT_EQ(JsonValue::Parse(share, "share").At("share").AsDouble(), 0.75);
  EXPECT_EQ(JsonValue::Parse(pair, "pair").At("difference").AsDouble(), -0.375);
  EXPECT_EQ(JsonValue::Parse(pair, "pair").At("p_value").AsDouble(), 0.25);

  const ProgramResult wrong =
      RunProgram({"compare", "--counts", "-"},
                 "{\"solved\":3,\"responses\":4}\n{\"solved\":5,\"responses\":4}\n");
  EXPECT_EQ(wrong.exit_code, 1);
  EXPECT_NE(wrong.err.find("stdin:2"), std::string::npos) << wrong.err;
}

}  // namespace
}  // namespace pmkvq
