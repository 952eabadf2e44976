// Options of llama.cpp, vLLM and transformers: each row of the table, in the commands that have
// such an option.
#include <gtest/gtest.h>

#include <set>
#include <string>

#include "foreign_names.h"
#include "support/command_help.h"

namespace pmkvq {
namespace {

using cli::ForeignName;
using testing_support::AllCommands;
using testing_support::Args;
using testing_support::ExpectOneLineError;
using testing_support::HelpOption;
using testing_support::OptionsOf;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";

std::set<std::string> NamesOf(const Args& command) {
  std::set<std::string> names;
  for (const HelpOption& option : OptionsOf(command)) names.insert(option.name);
  return names;
}

// Without a value the error names the option that wanted one: ours.
TEST(Aliases, EachIsTakenAsOursWhereThereIsOne) {
  std::set<std::string_view> used;
  for (const Args& command : AllCommands()) {
    const std::set<std::string> names = NamesOf(command);
    for (const ForeignName& row : cli::ForeignOptions()) {
      if (row.use == ForeignName::Use::kAnswer || !names.contains(std::string(row.ours))) continue;
      used.insert(row.name);
      const std::string wants =
          row.use == ForeignName::Use::kAlias ? std::string(row.ours) : std::string(row.name);
      ExpectOneLineError(RunProgram(Plus(command, {std::string(row.name)})), 2,
                         {wants + ": found nothing behind it"});
    }
  }
  for (const ForeignName& row : cli::ForeignOptions()) {
    EXPECT_EQ(used.contains(row.name), row.use != ForeignName::Use::kAnswer) << row.name;
  }
}

TEST(Aliases, WhereThereIsNoneTheAnswerSaysWhichCommandsHaveIt) {
  ExpectOneLineError(RunProgram({"tokenize", "-m", kModel, "-c", "4096"}), 2,
                     {"unknown option -c: --max-len does it in pmkvq run"});
  ExpectOneLineError(RunProgram({"inspect", kModel, "-n", "4"}), 2,
                     {"unknown option -n: --max-tokens does it in pmkvq run"});
}

TEST(Aliases, EveryOtherNameIsAnswered) {
  for (const ForeignName& row : cli::ForeignOptions()) {
    if (row.use != ForeignName::Use::kAnswer) continue;
    const std::string name(row.name);
    const bool is_second = cli::FindForeignOption(name) != &row;  // For what only a server has.
    ExpectOneLineError(
        RunProgram({is_second ? "serve" : "run", "--model", kModel, name, "1"}), 2,
        {"unknown option " + name, std::string(row.ours.empty() ? row.note : row.ours)});
  }
}

TEST(Aliases, GiveWhatOurNamesGive) {
  const ProgramResult ours =
      RunProgram({"run", "--model", kModel, "--max-len", "400", "--max-tokens", "12",
                  "--temperature", "0", "--threads", "1", "--seed", "4", "--json", "-", "4+5"});
  ASSERT_EQ(ours.exit_code, 0) << ours.err;
  const ProgramResult theirs = RunProgram({"run", "-m", kModel, "-c", "400", "-n", "12", "--temp",
                                           "0", "-t", "1", "-s", "4", "--json", "-", "4+5"});
  ASSERT_EQ(theirs.exit_code, 0) << theirs.err;
  const auto text = [](const std::string& json) {
    const size_t at = json.find("\"output_ids\"");
    return json.substr(at, json.find("\"finish_reason\"") - at);
  };
  EXPECT_EQ(text(theirs.out), text(ours.out));
  EXPECT_EQ(RunProgram({"run", "-m", kModel, "--max-new-tokens=x", "4+5"}).err,
            RunProgram({"run", "-m", kModel, "--max-tokens=x", "4+5"}).err);
}

TEST(Aliases, AValueIsNoAlias) {
  const Args base = {"run", "--model", kModel, "--temperature", "0", "--max-tokens", "6"};
  const ProgramResult prompt = RunProgram(Plus(base, {"--stop", "-n", "--", "-n"}));
  EXPECT_EQ(prompt.exit_code, 0) << prompt.err;
  EXPECT_EQ(RunProgram(Plus(base, {"-n", "3"})).exit_code, 2);  // Twice.
}

TEST(Aliases, CacheTypesBecomeOneMethod) {
  const auto found = [](const Args& types) {
    return RunProgram(Plus({"inspect", kModel, "--json", "-"}, types));
  };
  for (const auto& [types, spec] : std::vector<std::pair<Args, std::string>>{
           {{"-ctk", "q8_0", "-ctv", "q8_0"}, "static-8"},
           {{"--cache-type-k", "q4_0", "--cache-type-v=q4_0"}, "static-4"},
           {{"-ctk", "f16"}, "fp16"},
           {{"-ctk", "q8_0", "-ctv", "q4_0"}, "pm-kvq:static+k=8+v=4"},
           {{"-ctk", "q8_0"}, "pm-kvq:static+k=8+v=16"}}) {
    const ProgramResult result = found(types);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, found({"--kv", spec}).out) << spec;
  }
  ExpectOneLineError(found({"-ctk", "q5_0"}), 2, {"-ctk: found 'q5_0'", "q8_0 or q4_0"});
  ExpectOneLineError(found({"-ctk", "f16", "-ctk", "f16"}), 2, {"-ctk", "more than once"});
  ExpectOneLineError(found({"-ctk", "f16", "--kv", "fp16"}), 2, {"--kv", "more than once"});
}

}  // namespace
}  // namespace pmkvq
