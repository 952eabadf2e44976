// Every option of every command that names a file, with names that cannot be: no abort, one line,
// before long work.
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "support/command_help.h"

namespace pmkvq {
namespace {

using testing_support::AllCommands;
using testing_support::Args;
using testing_support::ExpectOneLineError;
using testing_support::HelpOption;
using testing_support::OptionsOf;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";
const std::string kTiny = PMKVQ_SOURCE_DIR "/tests/golden/tiny-llama";

bool NamesFile(const HelpOption& option) {
  return option.value == "FILE" || option.value == "DIR" || option.value == "PATH";
}

// In parts that may run side by side.
constexpr int kParts = 6;
class FileOptions : public testing::TestWithParam<int> {};

TEST_P(FileOptions, NoNameMakesAnyCommandAbort) {
  const TempFolder folder;
  const std::vector<std::string> unwritable = {folder.path(), "/nonexistent/folder/file.json",
                                               "/proc/pmkvq.json"};
  const std::vector<std::string> all =
      Plus(unwritable, {"-", "/dev/full", folder.Write("text.gguf", "GGUF")});
  int count = 0;
  for (const Args& command : AllCommands()) {
    if (command.front() == "man") continue;  // Its folder is made, and pages are written.
    for (const HelpOption& option : OptionsOf(command)) {
      if (!NamesFile(option)) continue;
      if (count++ % kParts != GetParam()) continue;
      // These need no more options: with a name that can be written they would run for minutes.
      const bool runs = command.front() == "bench" || command.front() == "demo";
      for (const std::string& name : runs ? unwritable : all) {
        const ProgramResult result = RunProgram(Plus(command, {option.name, name}));
        EXPECT_TRUE(result.exit_code == 0 || result.exit_code == 1 || result.exit_code == 2)
            << command.back() << ' ' << option.name << ' ' << name << ": " << result.exit_code;
        EXPECT_EQ(result.err.find("internal error"), std::string::npos) << result.err;
      }
    }
  }
  EXPECT_GT(count, 50);
  EXPECT_EQ(folder.NumEntries(), 1u);  // No probe is left behind.
}
INSTANTIATE_TEST_SUITE_P(Parts, FileOptions, testing::Range(0, kParts));

// Commands that would run, and their outputs.
struct Output {
  Args args;
  std::string option;
  bool takes_stdout;
};

class Outputs : public testing::Test {
 protected:
  Outputs() {
    rows_ = folder_.Write("rows.jsonl", "{\"input_ids\":[1,2,3,4,5,6,7,8]}\n");
    sensitivity_ = folder_.Write(
        "s.json", R"({"bits":[4,2],"k":{"4":[1,1],"2":[2,2]},"v":{"4":[1,1],"2":[2,2]}})");
    max_keys_ = folder_.File("max_keys.safetensors");
    cases_ = folder_.Write("cases.jsonl", "{\"response\":\"\\\\boxed{1}\",\"gold\":\"1\"}\n");
    const Args data = {"--model", kTiny, "--dataset", rows_, "--n-samples", "1", "--seq-len", "8"};
    EXPECT_EQ(RunProgram(Plus(Plus({"max-keys"}, data), {"--out", max_keys_})).exit_code, 0);
    const Args run = {"run", "--model", kTiny, "--prompt-ids", "1,2", "--max-tokens", "1"};
    const Args ppl = {"perplexity", "--model", kTiny, "--dataset", rows_};
    const Args allocate = {
        "allocate",   "--kv-dim",        "128", "--reference-accounting", "--sensitivity",
        sensitivity_, "--memory-budget", "8"};
    const Args calibrate =
        Plus(Plus({"calibrate"}, data), {"--memory-budget", "1", "--max-len", "256"});
    outputs_ = {
        {run, "--json", true},
        {run, "--stats", false},
        {{"logits", "--model", kTiny, "--prompt-ids", "1,2"}, "--out", false},
        {Plus({"sensitivity"}, data), "--json", true},
        {Plus(Plus({"sensitivity"}, data), {"--json", "/dev/null"}), "--checkpoint", false},
        {Plus({"max-keys"}, data), "--out", false},
        {Plus(Plus({"rep-scales"}, data), {"--max-keys", max_keys_}), "--out", false},
        {Plus(Plus({"rep-scales"}, data), {"--max-keys", max_keys_}), "--json", true},
        {calibrate, "--plan", false},
        {Plus(Plus({"calibrate"}, data), {"--kv", "kvmix"}), "--out", false},
        {allocate, "--json", true},
        {ppl, "--json", true},
        {{"inspect", kTiny}, "--json", true},
        {{"judge", "--cases", cases_}, "--json", true},
    };
  }

  TempFolder folder_;
  std::string rows_, sensitivity_, max_keys_, cases_;
  std::vector<Output> outputs_;
};

TEST_F(Outputs, NamesThatCannotBeWrittenAreRefused) {
  for (const Output& output : outputs_) {
    SCOPED_TRACE(output.args.front() + " " + output.option);
    const bool is_plan = output.option == "--plan";  // Its name ends in .json.
    const std::string folder_name = folder_.File("folder.json");
    std::filesystem::create_directory(folder_name);
    ExpectOneLineError(RunProgram(Plus(output.args, {output.option, folder_name})), 1,
                       {folder_name, "is a folder"});
    ExpectOneLineError(RunProgram(Plus(output.args, {output.option, "/nonexistent/x.json"})), 1,
                       {"/nonexistent/x.json", "cannot write"});
    ExpectOneLineError(RunProgram(Plus(output.args, {output.option, "/proc/x.json"})), 1,
                       {"/proc/x.json", "cannot write"});
    const ProgramResult dash = RunProgram(Plus(output.args, {output.option, "-"}));
    if (output.takes_stdout) {
      EXPECT_EQ(dash.exit_code, 0) << dash.err;
      EXPECT_NE(dash.out, "");
    } else {
      ExpectOneLineError(dash, 2, {output.option, "found '-'"});
    }
    if (is_plan) continue;
    const ProgramResult full = RunProgram(Plus(output.args, {output.option, "/dev/full"}));
    if (output.option != "--checkpoint") {
      EXPECT_EQ(full.exit_code, 1) << full.err;
    }
    EXPECT_EQ(full.err.find("internal error"), std::string::npos) << full.err;
    EXPECT_NE(full.exit_code, 134);
  }
  EXPECT_TRUE(std::filesystem::is_character_file("/dev/full"));
}

TEST_F(Outputs, AFolderOfAnEvaluationMustBeOne) {
  const Args eval = {"eval", "--model", kModel, "--end", "1", "--max-tokens", "1", "--out"};
  ExpectOneLineError(RunProgram(Plus(eval, {rows_})), 1, {rows_, "is a file"});
  ExpectOneLineError(RunProgram(Plus(eval, {rows_ + "/run"})), 1, {rows_, "is a file"});
  ExpectOneLineError(RunProgram(Plus(eval, {"-"})), 2, {"--out", "'-'", "folder"});
  ExpectOneLineError(RunProgram(Plus(eval, {"/proc/run"})), 1, {"/proc/run", "cannot write"});
}

TEST(Inputs, AreLookedAtBeforeAnythingElse) {
  const TempFolder folder;
  const std::string missing = folder.File("nofile");
  ExpectOneLineError(RunProgram({"calibrate", "--model", kModel, "--dataset", missing,
                                 "--memory-budget", "5", "--plan", folder.File("plan.json")}),
                     1, {missing, "no such file"});
  for (const Args& args : std::vector<Args>{
           {"run", "--model", kTiny, "--prompt-ids", "1", "--plan", missing},
           {"run", "--model", kModel, "--file", missing},
           {"perplexity", "--model", kTiny, "--dataset", missing},
           {"allocate", "--kv-dim", "8", "--sensitivity", missing, "--memory-budget", "1"},
           {"compare", "--from", missing},
           {"judge", "--cases", missing},
           {"judge", missing},
           {"inspect", missing}}) {
    ExpectOneLineError(RunProgram(args), 1, {missing, "no such file"});
  }
  ExpectOneLineError(RunProgram({"run", "--model", missing, "text"}), 1,
                     {missing, "no such folder"});
  ExpectOneLineError(RunProgram({"run", "--model", "Qwen/Qwen2.5-7B", "text"}), 1,
                     {"Qwen/Qwen2.5-7B", "nothing is downloaded"});
  ExpectOneLineError(RunProgram({"run", "--model", folder.path(), "text"}), 1,
                     {folder.path(), "found no config.json and no .gguf file"});
  const std::string gguf = folder.Write("x.gguf", "GGUF");
  ExpectOneLineError(RunProgram({"run", "--model", gguf, "text"}), 1,
                     {gguf, "version: found the end of the file (4 bytes)"});
  const std::string other = folder.Write("x.bin", "text");
  ExpectOneLineError(RunProgram({"run", "--model", other, "text"}), 1,
                     {other, "is a file of another kind", "GGUF"});
  ExpectOneLineError(RunProgram({"run", "--model", kModel, "--file", folder.path()}), 1,
                     {folder.path(), "is a folder"});
}

TEST(Inputs, FilesOfAnotherKindAreNamed) {
  const std::string plan = kModel + "/plan.json";
  ExpectOneLineError(
      RunProgram({"allocate", "--model", kModel, "--sensitivity", plan, "--memory-budget", "5"}), 1,
      {plan, "is a plan", "calibrate --from"});
  ExpectOneLineError(RunProgram({"inspect", plan, "--kv", "kivi"}), 1,
                     {plan, "model folder", "--plan"});
}

TEST(Demo, LooksAtItsPlanFirst) {
  ExpectOneLineError(RunProgram({"demo", "--model", kModel, "--plan", "/nonexistent/plan.json"}), 1,
                     {"/nonexistent/plan.json", "cannot write"});
  ExpectOneLineError(RunProgram({"demo", "--model", kModel, "--plan", "-"}), 2, {"--plan", "'-'"});
}

TEST(Demo, FindsTheModelBesideTheProgram) {
  const TempFolder folder;
  const std::filesystem::path before = std::filesystem::current_path();
  std::filesystem::current_path(folder.path());
  // The plan is looked at when the model has been found.
  const ProgramResult result = RunProgram({"demo", "--plan", "/nonexistent/plan.json"});
  std::filesystem::current_path(before);
  ExpectOneLineError(result, 1, {"/nonexistent/plan.json", "cannot write"});
}

}  // namespace
}  // namespace pmkvq
