// What stands on a terminal while a run goes on: it fits the width, and is plain where asked for.
#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>

#include "support/run_in_terminal.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RowLengths;
using testing_support::RunInTerminal;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;
using testing_support::TerminalResult;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";

// A long SPEC, which names the bar.
const std::vector<std::string> kEval = {
    "eval",
    "--model",
    kModel,
    "--max-level",
    "1",
    "--end",
    "2",
    "--max-tokens",
    "60",
    "--max-len",
    "512",
    "--kv",
    "pm-kvq:policy=oldest-first+sink=4+rotate=keys+axis=channel+plan=none",
    "--kv-budget",
    "4MiB",
    "--json",
    "/dev/null"};

std::vector<std::string> RunArgs(const std::vector<std::string>& more,
                                 const std::string& max_tokens = "80") {
  std::vector<std::string> args = {"run",
                                   "--model",
                                   kModel,
                                   "--prompt",
                                   "Compute 12 * 34. Work digit by digit.",
                                   "--temperature",
                                   "0",
                                   "--max-len",
                                   "1024",
                                   "--max-tokens",
                                   max_tokens,
                                   "--ignore-eos"};
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

// Progress is what comes before the table of results, whose width is its own.
std::string ProgressOf(const std::string& sent) {
  return sent.substr(0, sent.rfind('\n', sent.find("final pages")));
}

TEST(Terminal, BarsFitTheWidth) {
  for (const int columns : {120, 80, 60, 40, 24}) {
    const TerminalResult result = RunInTerminal(kEval, {.columns = columns});
    ASSERT_EQ(result.exit_code, 0) << result.sent;
    const std::vector<int> lengths = RowLengths(ProgressOf(result.sent));
    EXPECT_LT(*std::max_element(lengths.begin(), lengths.end()), columns) << result.sent;
    EXPECT_NE(result.sent.find("2/2"), std::string::npos) << result.sent;
  }
}

TEST(Terminal, BarsFollowANarrowerTerminal) {
  // Long enough that there is a bar after the change, which may come late on a busy machine.
  std::vector<std::string> args = kEval;
  *(std::find(args.begin(), args.end(), "--max-tokens") + 1) = "480";
  *(std::find(args.begin(), args.end(), "--end") + 1) = "5";
  const TerminalResult result = RunInTerminal(args, {.columns = 100, .narrower_after_bytes = 300});
  ASSERT_EQ(result.exit_code, 0) << result.sent;
  const std::string progress = ProgressOf(result.sent);
  const std::vector<int> lengths = RowLengths(progress.substr(progress.rfind('\r')));
  EXPECT_LT(*std::max_element(lengths.begin(), lengths.end()), 50) << result.sent;
}

TEST(Terminal, ADumbOneGetsPlainLines) {
  const TerminalResult eval = RunInTerminal(kEval, {.columns = 60, .term = "dumb"});
  EXPECT_EQ(eval.exit_code, 0);
  EXPECT_EQ(eval.sent.find('\033'), std::string::npos) << eval.sent;
  EXPECT_NE(eval.sent.find("2/2"), std::string::npos) << eval.sent;
  const TerminalResult run = RunInTerminal(RunArgs({}), {.term = "dumb"});
  EXPECT_EQ(run.exit_code, 0);
  EXPECT_EQ(run.sent.find('\033'), std::string::npos) << run.sent;
}

TEST(Terminal, NoColorLeavesOutTheReversedLine) {
  const std::string reversed = "\033[7m";
  EXPECT_NE(RunInTerminal(RunArgs({}), {}).sent.find(reversed), std::string::npos);
  const TerminalResult plain = RunInTerminal(RunArgs({}), {.no_color = true});
  EXPECT_EQ(plain.sent.find(reversed), std::string::npos) << plain.sent;
  EXPECT_NE(plain.sent.find("tok/s | KV"), std::string::npos) << plain.sent;
}

// The line that closes a run breaks at its commas; piped it is one line.
TEST(Terminal, ClosingLineFitsTheWidth) {
  const std::string budget = "the KV budget is spent";
  for (const int columns : {120, 80, 60}) {
    const TerminalResult result = RunInTerminal(
        RunArgs({"--kv", "pm-kvq", "--kv-budget", "1MiB"}, "0"), {.columns = columns});
    ASSERT_EQ(result.exit_code, 0) << result.sent;
    const size_t closing = result.sent.find("[kv_budget]");
    ASSERT_NE(closing, std::string::npos) << result.sent;
    const std::string line =
        result.sent.substr(closing, result.sent.find("hint:", closing) - closing);
    const std::vector<int> lengths = RowLengths(line);
    EXPECT_LT(*std::max_element(lengths.begin(), lengths.end()), columns) << line;
    EXPECT_NE(line.find(budget), std::string::npos) << line;
  }
  const ProgramResult piped = RunProgram(RunArgs({"--kv", "pm-kvq", "--kv-budget", "1MiB"}, "0"));
  const std::string line = piped.err.substr(piped.err.find("[kv_budget]"));
  EXPECT_LT(line.find(budget), line.find('\n')) << line;
}

TEST(Terminal, AnswersOfTheChatCloseInOneRow) {
  const TerminalResult result = RunInTerminal(RunArgs({}), {.columns = 80});
  const std::string line = result.sent.substr(result.sent.find("[length]"));
  EXPECT_LT(line.find("pages"), line.find('\n')) << line;
}

// One token is drawn from the prompt's logits, so nothing was decoded and nothing has a speed.
TEST(Terminal, OneTokenHasNoSpeed) {
  const ProgramResult one = RunProgram(RunArgs({}, "1"));
  ASSERT_EQ(one.exit_code, 0) << one.err;
  EXPECT_NE(one.err.find(" + 1 tokens, KV peak"), std::string::npos) << one.err;
  EXPECT_NE(RunProgram(RunArgs({})).err.find(" tok/s, KV peak"), std::string::npos);
}

// The table of eval fits a terminal of 80 columns, whatever the SPEC.
TEST(Terminal, TableOfEvalFitsItsWidth) {
  for (const std::string spec :
       {"fp16", "static-8",
        "pm-kvq:policy=oldest-first+sink=4+rotate=keys+axis=channel+plan=none"}) {
    std::vector<std::string> args = {"eval", "--model",      kModel, "--max-level", "1",   "--end",
                                     "1",    "--max-tokens", "8",    "--max-len",   "512", "--kv",
                                     spec};
    if (spec.starts_with("pm-kvq")) args.insert(args.end(), {"--kv-budget", "4MiB"});
    const ProgramResult result = RunProgram(args);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    std::stringstream lines(result.out);
    for (std::string line; std::getline(lines, line);) {
      EXPECT_TRUE(line.size() <= 78 || line == spec) << line;
    }
    EXPECT_NE(result.out.find("\nmethod "), std::string::npos) << result.out;
  }
}

// Where standard output is a file, stderr shows that something moves, and ends clean.
TEST(Terminal, ARedirectedRunHasAStatusLine) {
  const TempFolder folder;
  const TerminalResult result =
      RunInTerminal(RunArgs({}), {.columns = 60, .stdout_path = folder.File("out")});
  ASSERT_EQ(result.exit_code, 0) << result.sent;
  EXPECT_NE(result.sent.find("tok/s | KV"), std::string::npos) << result.sent;
  const size_t closing = result.sent.find("[length]");
  ASSERT_NE(closing, std::string::npos) << result.sent;
  EXPECT_TRUE(result.sent.substr(0, closing).ends_with("\r\033[K")) << result.sent;
  EXPECT_EQ(Slurp(folder.File("out")).find('\033'), std::string::npos);
  EXPECT_GT(Slurp(folder.File("out")).size(), 40u);
}

}  // namespace
}  // namespace pmkvq
