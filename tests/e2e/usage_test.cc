// Command lines that the program does not understand, and its help and version.
#include <gtest/gtest.h>

#include <cstdlib>
#include <set>

#include "support/command_help.h"

namespace pmkvq {
namespace {

using testing_support::AllCommands;
using testing_support::Args;
using testing_support::ExpectOneLineError;
using testing_support::HelpOf;
using testing_support::HelpOption;
using testing_support::LinesOf;
using testing_support::OptionsOf;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";

TEST(UnknownNames, OptionsNameTheNearest) {
  for (const auto& [args, expected] : std::vector<std::pair<Args, std::string>>{
           {{"run", "--model", kModel, "--tempurature", "0"}, "--temperature"},
           {{"run", "--modle", "X"}, "--model"},
           {{"run", "--max_tokens", "5"}, "--max-tokens"},
           {{"run", "--model", kModel, "--kvbudget=6MiB"}, "--kv-budget"},
           {{"eval", "--model", kModel, "--benchmrak", "aime"}, "--benchmark"},
           {{"calibrate", "--seperate-kv"}, "--separate-kv"},
           {{"bench", "gemv", "--permatrix"}, "--per-matrix"},
           {{"analyze", "transfer", "--quik"}, "--quick"}}) {
    ExpectOneLineError(RunProgram(args), 2, {"unknown option", "did you mean " + expected + "?"});
  }
  ExpectOneLineError(RunProgram({"run", "--zzzzzz", "1"}), 2, {"unknown option --zzzzzz"});
  ExpectOneLineError(RunProgram({"run", "--benchmark", "aime"}), 2, {"--benchmark", "eval"});
}

// A misspelt name of every option of every command is understood.
TEST(UnknownNames, EveryOptionIsFoundByItsMisspelling) {
  for (const Args& command : AllCommands()) {
    for (const HelpOption& option : OptionsOf(command)) {
      if (option.name.size() < 8) continue;
      std::string misspelt = option.name;
      misspelt.erase(misspelt.size() - 2, 1);
      ExpectOneLineError(RunProgram(Plus(command, {misspelt})), 2,
                         {"unknown option " + misspelt, "did you mean --"});
    }
  }
}

TEST(UnknownNames, CommandsNameTheNearest) {
  for (const auto& [args, expected] :
       std::vector<std::pair<Args, std::string>>{{{"rnu"}, "run"},
                                                 {{"calibrte", "--model", "x"}, "calibrate"},
                                                 {{"bench", "attn"}, "attention"},
                                                 {{"analyze", "error_growth"}, "error-growth"},
                                                 {{"help", "evl"}, "eval"}}) {
    const std::string& wrong = args[0] == "calibrte" ? args[0] : args.back();
    ExpectOneLineError(RunProgram(args), 2, {"'" + wrong, "did you mean " + expected + "?"});
  }
  ExpectOneLineError(RunProgram({"zzzzzz"}), 2, {"'zzzzzz'", "run", "calibrate"});
  ExpectOneLineError(RunProgram({"server", "MODEL"}), 2, {"'server'", "serve"});
  ExpectOneLineError(RunProgram({"chat"}), 2, {"pmkvq run"});
}

TEST(UnknownNames, OptionsOfOtherProgramsAreAnsweredWithOurs) {
  const Args run = {"run", "--model", kModel};
  for (const auto& [foreign, ours] : std::vector<std::pair<Args, std::string>>{
           {{"--context-length", "4096"}, "--max-len"},
           {{"--max-seq-len=4096"}, "--max-len"},
           {{"--kv-cache-dtype", "fp8"}, "--kv"},
           {{"--gpu-memory-utilization", "0.9"}, "--kv-budget"},
           {{"--tensor-parallel-size", "2"}, "one machine"},
           {{"-tp", "2"}, "one machine"},
           {{"-ngl", "99"}, "--device"},
           {{"--n-gpu-layers", "99"}, "--device"},
           {{"--repeat-penalty", "1.1"}, "--repetition-penalty"},
           {{"--batch-size", "512"}, "--batch"},
           {{"--max-num-seqs", "16"}, "eval"}}) {
    const std::string name = foreign.front().substr(0, foreign.front().find('='));
    ExpectOneLineError(RunProgram(Plus(run, foreign)), 2, {"unknown option " + name, ours});
  }
}

TEST(UnknownNames, TextBehindTheOptions) {
  ExpectOneLineError(RunProgram({"run", "--model", kModel, "What", "is"}), 2, {"'is'", "quotes"});
  ExpectOneLineError(RunProgram({"run", "--model", kModel, "a", "--prompt", "b"}), 2, {"--prompt"});
  ExpectOneLineError(RunProgram({"run", "--model", kModel, "a", "--prompt-ids", "1"}), 2,
                     {"--prompt"});
  ExpectOneLineError(RunProgram({"run", "--model", "a", "--model", "b"}), 2,
                     {"--model", "more than once"});
}

TEST(PositionalText, IsThePrompt) {
  const Args base = {"run",          "--model", kModel,   "--temperature", "0",
                     "--max-tokens", "8",       "--stop", "never, never"};
  const ProgramResult given = RunProgram(Plus(base, {"--prompt", "What is 12*12?"}));
  const ProgramResult positional = RunProgram(Plus(base, {"What is 12*12?"}));
  ASSERT_EQ(positional.exit_code, 0) << positional.err;
  EXPECT_EQ(positional.out, given.out);
  const ProgramResult ids = RunProgram({"tokenize", "--model", kModel, "Hello"});
  EXPECT_EQ(ids.out, RunProgram({"tokenize", "--model", kModel}, "Hello").out);
  EXPECT_EQ(ids.exit_code, 0) << ids.err;
  EXPECT_EQ(RunProgram({"tokenize", "--model", kModel, "--decode", "39 68 508 78"}).exit_code, 0);
}

TEST(Help, WithoutACommandAndByName) {
  const std::string all = RunProgram({"--help"}).out;
  for (const Args& args : {Args{}, Args{"help"}}) {
    const ProgramResult result = RunProgram(args);
    EXPECT_EQ(result.exit_code, 0);
    EXPECT_EQ(result.out, all);
    EXPECT_EQ(result.err, "");
  }
  for (const Args& command : {Args{"run"}, Args{"bench"}, Args{"bench", "gemv"}}) {
    const ProgramResult result = RunProgram(Plus({"help"}, command));
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, HelpOf(command));
  }
  EXPECT_EQ(RunProgram({"bench"}).out, HelpOf({"bench"}));
  EXPECT_EQ(RunProgram({"analyze"}).exit_code, 0);
}

// In a pipe: 80 columns. Examples use options that the command has.
TEST(Help, IsWrappedAndHasTwoExamples) {
  for (const Args& command : AllCommands()) {
    std::set<std::string> names;
    for (const HelpOption& option : OptionsOf(command)) names.insert(option.name);
    int num_examples = 0;
    bool in_examples = false;
    for (const std::string& line : LinesOf(HelpOf(command))) {
      if (line == "Examples:") in_examples = true;
      if (!in_examples) {
        EXPECT_LE(line.size(), 80u) << line;
        continue;
      }
      EXPECT_LE(line.size(), 80u) << line;
      if (line.find("pmkvq " + command.front()) != std::string::npos) ++num_examples;
      for (size_t at = line.find(" --"); at != std::string::npos; at = line.find(" --", at + 1)) {
        const std::string name = line.substr(at + 1, line.find_first_of(" =", at + 1) - at - 1);
        EXPECT_TRUE(names.contains(name) || name == "--help") << name << ": " << line;
      }
    }
    EXPECT_GE(num_examples, 2) << command.back();
  }
}

TEST(Version, SaysWhatThisProgramIs) {
  const ProgramResult result = RunProgram({"--version"});
  EXPECT_EQ(result.exit_code, 0);
  const std::vector<std::string> lines = LinesOf(result.out);
  ASSERT_GE(lines.size(), 6u);
  EXPECT_TRUE(lines[0].starts_with("pmkvq ")) << lines[0];
  for (const char* part :
       {"\ncommit ", "\ncompiler ", "\ninstruction sets ", "\nin use ", "\nCUDA ",
        "\nweights           F32, F16, BF16, q8, Q8_0, Q4_0, ", "\nfeatures "}) {
    EXPECT_NE(result.out.find(part), std::string::npos) << part;
  }
  // The one in use is one of the machine's, and the environment chooses it.
  const auto field = [](const std::string& text, const std::string& name) {
    const size_t at = text.find("\n" + name);
    const size_t begin = text.find_first_not_of(' ', at + 1 + name.size());
    return text.substr(begin, text.find('\n', begin) - begin);
  };
  const std::string sets = field(result.out, "instruction sets");
  const std::string in_use = field(result.out, "in use");
  EXPECT_TRUE(sets.starts_with(in_use.substr(0, in_use.find(' ')))) << sets << "; " << in_use;
  const std::string least = sets.substr(sets.rfind(' ') + 1);
  setenv("PMKVQ_TARGET", least.c_str(), 1);
  const std::string chosen = RunProgram({"--version"}).out;
  setenv("PMKVQ_TARGET", "", 1);
  const ProgramResult empty = RunProgram({"--version"});
  unsetenv("PMKVQ_TARGET");
  EXPECT_TRUE(field(chosen, "in use").starts_with(least + " (by PMKVQ_TARGET)")) << chosen;
  EXPECT_EQ(field(chosen, "instruction sets"), sets);
  EXPECT_EQ(empty.exit_code, 0) << empty.err;
}

TEST(Devices, ListsThemOrSaysWhyThereAreNone) {
  const ProgramResult result = RunProgram({"devices"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(result.out.starts_with("cpu ")) << result.out;
  EXPECT_NE(result.out.find("\ncuda:0 ") == std::string::npos,
            result.out.find("\nno CUDA device: ") == std::string::npos)
      << result.out;
  const ProgramResult json = RunProgram({"devices", "--json", "-"});
  EXPECT_TRUE(json.out.starts_with("{\"problem\":\"")) << json.out;
}

// What a shell prints on stderr and answers for `command`; $P is the program.
ProgramResult Shell(const std::string& command) {
  const testing_support::TempFolder folder;
  const std::string script = "P='" PMKVQ_PROGRAM "'; { " + command + "; } 2>" + folder.File("err");
  const int status = std::system(("bash " + folder.Write("s", script) + " >/dev/null").c_str());
  ProgramResult result;
  result.exit_code = WEXITSTATUS(status);
  result.err = testing_support::Slurp(folder.File("err"));
  return result;
}

TEST(Output, AFullDiskIsAnError) {
  for (const char* command :
       {"--version", "--help", "help run", "inspect " PMKVQ_SOURCE_DIR "/models/longcot-10m"}) {
    const ProgramResult result = Shell(std::string("\"$P\" ") + command + " > /dev/full");
    EXPECT_EQ(result.exit_code, 1) << command;
    EXPECT_NE(result.err.find("cannot write to standard output"), std::string::npos) << result.err;
  }
}

TEST(Output, AClosedPipeIsSilent) {
  for (const char* command :
       {"--help",
        "inspect " PMKVQ_SOURCE_DIR "/models/longcot-10m/model-00001-of-00002.safetensors",
        "run --model " PMKVQ_SOURCE_DIR
        "/models/longcot-10m --temperature 0 --max-tokens 40 text"}) {
    // The reader is gone before the program writes: when it is, the shell cannot write either.
    const ProgramResult result =
        Shell(std::string("(trap '' PIPE; while echo 2>/dev/null; do sleep 0.01; done; "
                          "trap - PIPE; exec \"$P\" ") +
              command + ") | true; exit ${PIPESTATUS[0]}");
    EXPECT_EQ(result.exit_code, 141) << command;  // 128 + SIGPIPE, as of cat.
    EXPECT_EQ(result.err, "") << command;
  }
}

}  // namespace
}  // namespace pmkvq
