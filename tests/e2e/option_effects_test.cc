// Options that change nothing are said, and so are plans that would serve better.
#include <gtest/gtest.h>

#include "pmkvq/io/json.h"
#include "support/command_help.h"

namespace pmkvq {
namespace {

using testing_support::Args;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";
const std::string kTiny = PMKVQ_SOURCE_DIR "/tests/golden/tiny-llama";
const std::string kPlan = kModel + "/plan.json";

// A command, and options with what is said of them: the name of the one without effect, or "".
struct Case {
  Args more;
  std::string unused;
};

void ExpectUnused(const Args& command, const std::vector<Case>& cases) {
  for (const Case& row : cases) {
    const ProgramResult result = RunProgram(Plus(command, row.more));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const size_t at = result.err.find("has no effect");
    if (row.unused.empty()) {
      EXPECT_EQ(at, std::string::npos) << result.err;
    } else {
      EXPECT_NE(result.err.find("warning: " + row.unused + " has no effect: "), std::string::npos)
          << row.unused << ": " << result.err;
      EXPECT_EQ(result.err.find("has no effect", at + 1), std::string::npos) << result.err;
    }
  }
}

const std::vector<Case> kCacheCases = {
    {{"--kv", "fp16", "--policy", "oldest-first"}, "--policy"},
    {{"--kv", "static-4", "--policy", "oldest-first"}, "--policy"},
    {{"--kv", "kivi", "--policy", "layer-budget"}, "--policy"},
    {{"--kv", "pm-kvq:k=4+v=4+static", "--policy", "oldest-first"}, "--policy"},
    {{"--kv", "pm-kvq:policy=layer-budget", "--kv-budget", "2MiB", "--policy", "oldest-first"},
     "--policy"},
    {{"--recipe", "best", "--kv-budget", "2MiB", "--policy", "layer-budget"}, "--policy"},
    {{"--kv", "pm-kvq", "--kv-budget", "2MiB", "--policy", "oldest-first"}, ""},
    {{"--kv", "kivi", "--n-sink-token", "4"}, "--n-sink-token"},
    {{"--kv", "static-4:sink=2", "--n-sink-token", "4"}, "--n-sink-token"},
    {{"--kv", "static-4:window=256", "--n-window-token", "128"}, "--n-window-token"},
    {{"--kv", "rtn", "--n-window-token", "256"}, "--n-window-token"},
    {{"--kv", "fp16", "--n-window-token", "256"}, "--n-window-token"},
    {{"--kv", "static-4", "--n-sink-token", "4", "--n-window-token", "256"}, ""},
    {{"--kv", "static-4", "--n-init-kv-bits", "8"}, "--n-init-kv-bits"},
    {{"--kv", "kivi", "--n-init-kv-bits", "8"}, "--n-init-kv-bits"},
    {{"--kv", "pm-kvq", "--kv-budget", "2MiB", "--n-init-kv-bits", "8"}, ""},
    {{"--kv", "static-4:plan=none", "--plan", kPlan}, "--plan"},
};

const std::vector<Case> kAttentionCases = {
    {{"--kv", "kivi", "--attention", "fast"}, "--attention"},
    {{"--kv", "fp16", "--attention", "fast"}, "--attention"},
    {{"--kv", "static-4", "--attention", "fast"}, ""},
};

TEST(OptionsWithoutEffect, OfTheCache) {
  const Args run = {"run", "--model", kModel, "--prompt-ids", "1,2", "--max-tokens", "1"};
  ExpectUnused(run, kCacheCases);
  ExpectUnused(run, kAttentionCases);
  ExpectUnused({"inspect", kModel, "--max-len", "256"}, kCacheCases);
}

TEST(OptionsWithoutEffect, OfTheCacheInLongerCommands) {
  const TempFolder folder;
  const std::string rows = folder.Write("rows.jsonl", "{\"input_ids\":[1,2,3,4,5,6,7,8]}\n");
  const std::vector<Case> some = {kCacheCases[0], kCacheCases[4], kCacheCases[13],
                                  kAttentionCases[0], kAttentionCases[2]};
  ExpectUnused({"perplexity", "--model", kModel, "--dataset", rows}, some);
  const Args eval = {"eval",         "--model", kModel,      "--end", "1",
                     "--max-tokens", "1",       "--max-len", "1024"};
  ExpectUnused(eval, some);
  const Args compare = {"compare", "--model",   kModel, "--end",       "1",   "--max-tokens",
                        "1",       "--max-len", "1024", "--kv-budget", "8MiB"};
  ExpectUnused(compare, {{{"--kv", "kivi", "--attention", "fast"}, "--attention"},
                         {{"--kv", "kivi", "--kv", "static-4", "--attention", "fast"}, ""},
                         {{"--kv", "static-4", "--policy", "oldest-first"}, "--policy"}});
}

TEST(OptionsWithoutEffect, OfSampling) {
  const Args run = {"run", "--model", kTiny, "--prompt-ids", "1,2", "--max-tokens", "1"};
  ExpectUnused(run, {{{"--temperature", "0", "--top-k", "5"}, "--top-k"},
                     {{"--temperature", "0", "--top-p", "0.5"}, "--top-p"},
                     {{"--temperature", "0", "--min-p", "0.5"}, "--min-p"},
                     {{"--temperature", "0", "--seed", "5"}, "--seed"},
                     {{"--temperature", "1", "--top-k", "5", "--seed", "1"}, ""},
                     {{"--top-k", "5"}, ""},
                     {{"--system", "Be brief."}, "--system"},
                     {{"--chat-template", "chatml"}, "--chat-template"}});
  ExpectUnused({"eval", "--model", kModel, "--end", "1", "--max-tokens", "1", "--max-len", "1024"},
               {{{"--top-p", "0.5"}, "--top-p"}, {{"--temperature", "0.5", "--top-p", "0.5"}, ""}});
}

TEST(OptionsWithoutEffect, OfOtherCommands) {
  const TempFolder folder;
  ExpectUnused({"inspect", kModel}, {{{"--plan", kPlan}, "--plan"},
                                     {{"--kv-budget", "6MiB"}, "--kv-budget"},
                                     {{"--kv", "fp16", "--chunk", "64"}, "--chunk"}});
  const Args from = {"calibrate", "--from", kPlan,    "--memory-budget",    "5MiB",
                     "--max-len", "4096",   "--plan", folder.File("p.json")};
  ExpectUnused(from, {{{"--n-samples", "4"}, "--n-samples"},
                      {{"--no-key-scales"}, "--no-key-scales"},
                      {{"--separate-kv"}, ""}});
}

TEST(Plans, AReplacedPlanIsSaid) {
  const TempFolder folder;
  const Args args = {"calibrate", "--from", kPlan,    "--memory-budget",    "5MiB",
                     "--max-len", "4096",   "--plan", folder.File("p.json")};
  EXPECT_NE(RunProgram(args).err.find("wrote " + folder.File("p.json")), std::string::npos);
  EXPECT_NE(RunProgram(args).err.find("replaced " + folder.File("p.json")), std::string::npos);
}

TEST(Plans, UnusedBudgetAndLengthsAreSaid) {
  const TempFolder folder;
  const auto from = [&](const Args& more) {
    return RunProgram(Plus({"calibrate", "--from", kPlan, "--plan", folder.File("p.json")}, more))
        .err;
  };
  const std::string roomy = from({"--memory-budget", "1024MiB"});
  EXPECT_NE(roomy.find("of --memory-budget 1 GiB stay unused: all blocks have 4 bits"),
            std::string::npos)
      << roomy;
  EXPECT_NE(roomy.find("--fbit-choices 8,4 allows more"), std::string::npos) << roomy;
  EXPECT_NE(roomy.find("of 4096 tokens"), std::string::npos) << "as the plan it is made from";
  EXPECT_EQ(from({"--memory-budget", "4.9MiB"}).find("unused"), std::string::npos);
  EXPECT_EQ(from({"--memory-budget", "1GiB", "--fbit-choices", "16"}).find("unused"),
            std::string::npos);

  const auto measured = [&](const Args& more) {
    return RunProgram(
               Plus({"calibrate", "--model", kModel, "--dataset", kModel + "/calibration.jsonl",
                     "--n-samples", "1", "--seq-len", "64", "--no-key-scales", "--memory-budget",
                     "60MiB", "--plan", folder.File("p.json")},
                    more))
        .err;
  };
  EXPECT_NE(measured({}).find("of 8192 tokens"), std::string::npos) << "the model's positions";
  const std::string longer = measured({"--max-len", "32768"});
  EXPECT_NE(longer.find("--max-len 32768 is more than the 8192 positions"), std::string::npos)
      << longer;
}

TEST(Plans, HintsAtThePlanThatIsThere) {
  const Args run = {"run", "--model", kModel, "--prompt-ids", "1,2", "--max-tokens", "1"};
  const auto err_of = [&](const Args& more) { return RunProgram(Plus(run, more)).err; };
  const std::string hint = "hint: pm-kvq runs without a plan; --plan " + kPlan;
  EXPECT_NE(err_of({"--kv", "pm-kvq", "--kv-budget", "6MiB"})
                .find(hint + " gives it key scales and widths per block\n"),
            std::string::npos);
  EXPECT_NE(
      err_of({"--recipe", "best", "--kv-budget", "6MiB"}).find(hint + " gives it key scales\n"),
      std::string::npos);
  for (const Args& more : std::vector<Args>{{"--kv", "pm-kvq", "--plan", kPlan},
                                            {"--recipe", "best", "--plan", kPlan},
                                            {"--kv", "pm-kvq:bits=4"},
                                            {"--kv", "pm-kvq:plan=none", "--kv-budget", "6MiB"},
                                            {"--kv", "static-4"},
                                            {"--kv", "kivi"}}) {
    EXPECT_EQ(err_of(more).find("hint"), std::string::npos) << err_of(more);
  }
}

// A recipe for every plan: its widths say an order of halving, the plan the bytes and key scales.
TEST(Plans, TheBestRecipeTakesTheBytesOfAnyPlan) {
  const auto budget_of = [](const Args& more) {
    const ProgramResult result =
        RunProgram(Plus({"inspect", kModel, "--plan", kPlan, "--json", "-"}, more));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return JsonValue::Parse(result.out, "inspect").At("budget_bytes").AsInt();
  };
  EXPECT_EQ(budget_of({"--recipe", "best"}), budget_of({"--recipe", "paper"}));
}

TEST(Plans, OfFewerTokensThanTheRunAreSaid) {
  const Args run = {"run", "--model", kModel,   "--prompt-ids", "1,2", "--max-tokens",
                    "1",   "--kv",    "pm-kvq", "--plan",       kPlan};
  EXPECT_NE(RunProgram(Plus(run, {"--max-len", "8192"})).err.find("are for 4096 tokens"),
            std::string::npos);
  EXPECT_EQ(RunProgram(Plus(run, {"--max-len", "4096"})).err.find("4096 tokens, not"),
            std::string::npos);
  EXPECT_NE(RunProgram(run).err.find("the plan's budgets hold 4096 tokens"), std::string::npos);
  EXPECT_EQ(RunProgram(Plus(run, {"--kv-budget", "6MiB"})).err.find("4096 tokens"),
            std::string::npos);
  const std::string spent =
      RunProgram({"run", "--model", kModel, "--ignore-eos", "--max-tokens", "6000", "--kv",
                  "pm-kvq", "--plan", kPlan, "--temperature", "0", "-p", "hi"})
          .err;
  EXPECT_NE(spent.find("is for 4096 tokens: for longer output give --kv-budget"), std::string::npos)
      << spent;
}

// The first answer holds the prompt, not only the first page of every block.
TEST(Budgets, TheSizeThatWorksIsNamedAtOnce) {
  std::string prompt;
  for (int i = 0; i < 600; ++i) prompt += "1 ";
  const Args run = {"run",  "--model", kModel,         "--prompt", prompt,
                    "--kv", "pm-kvq",  "--max-tokens", "1",        "--kv-budget"};
  const ProgramResult refused = RunProgram(Plus(run, {"100KiB"}));
  EXPECT_EQ(refused.exit_code, 1);
  const size_t at = refused.err.find("at least ");
  const size_t unit = refused.err.find("KiB)", at);
  ASSERT_NE(unit, std::string::npos) << refused.err;
  const size_t begin = refused.err.rfind('(', unit) + 1;
  const std::string works = refused.err.substr(begin, unit + 3 - begin);
  EXPECT_EQ(RunProgram(Plus(run, {works})).exit_code, 0) << works;
  const std::string bytes = refused.err.substr(at + 9, refused.err.find(' ', at + 9) - at - 9);
  EXPECT_EQ(RunProgram(Plus(run, {bytes})).exit_code, 0) << bytes;
  EXPECT_EQ(RunProgram(Plus(run, {std::to_string(std::stoll(bytes) - 1)})).exit_code, 1) << bytes;
}

TEST(Budgets, BeyondTheMachineAreSaid) {
  const Args run = {"run",          "--model", kTiny,  "--prompt-ids", "1,2",
                    "--max-tokens", "1",       "--kv", "pm-kvq",       "--kv-budget"};
  EXPECT_NE(RunProgram(Plus(run, {"500TiB"})).err.find("memory"), std::string::npos);
  EXPECT_EQ(RunProgram(Plus(run, {"6MiB"})).err.find("memory"), std::string::npos);
}

}  // namespace
}  // namespace pmkvq
