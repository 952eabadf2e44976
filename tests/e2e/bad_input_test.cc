// Mistakes that users make: each ends with one line on stderr that says what is wrong, the right
// exit code, and nothing half-written.
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "pmkvq/io/safetensors.h"
#include "support/command_help.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ExpectOneLineError;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";
const std::string kTiny = PMKVQ_SOURCE_DIR "/tests/golden/tiny-llama";

// A copy of the tiny model to damage.
class DamagedModel : public testing::Test {
 protected:
  DamagedModel() {
    std::filesystem::copy(kTiny, folder_.path(), std::filesystem::copy_options::recursive);
  }
  std::string weights() const { return folder_.File("model.safetensors"); }

  void ReplaceInConfig(const std::string& from, const std::string& to) {
    std::string text = Slurp(folder_.File("config.json"));
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << from;
    folder_.Write("config.json", text.replace(at, from.size(), to));
  }
  void ChangeWeights(const std::function<void(std::string&)>& change) {
    std::string bytes = Slurp(weights());
    change(bytes);
    folder_.Write("model.safetensors", bytes);
  }
  ProgramResult Run(const std::vector<std::string>& more = {}) const {
    std::vector<std::string> args = {
        "run", "--model", folder_.path(), "--prompt-ids", "1,2", "--max-tokens", "2"};
    args.insert(args.end(), more.begin(), more.end());
    return RunProgram(args);
  }

  TempFolder folder_;
};

TEST_F(DamagedModel, TruncatedWeights) {
  ChangeWeights([](std::string& bytes) { bytes.resize(bytes.size() / 2); });
  ExpectOneLineError(Run(), 1, {"model.safetensors"});
}

TEST_F(DamagedModel, HugeHeaderLength) {
  ChangeWeights([](std::string& bytes) { std::fill_n(bytes.begin(), 8, '\xff'); });
  ExpectOneLineError(Run(), 1, {"model.safetensors", "header"});
}

TEST_F(DamagedModel, HeaderIsNoJson) {
  ChangeWeights([](std::string& bytes) { bytes[8] = '!'; });
  ExpectOneLineError(Run(), 1, {"model.safetensors"});
}

TEST_F(DamagedModel, WrongDtype) {
  ChangeWeights([](std::string& bytes) {
    const size_t at = bytes.find("\"F32\"");
    bytes.replace(at, 5, "\"Q99\"");
  });
  ExpectOneLineError(Run(), 1, {"model.safetensors", "Q99"});
}

TEST_F(DamagedModel, WrongShape) {
  ReplaceInConfig("\"intermediate_size\": 128", "\"intermediate_size\": 120");
  ExpectOneLineError(Run(), 1, {"model.safetensors", "mlp", "128", "120"});
}

TEST_F(DamagedModel, NoWeights) {
  std::filesystem::remove(weights());
  ExpectOneLineError(Run(), 1, {folder_.path(), "model.safetensors"});
}

TEST_F(DamagedModel, MissingShard) {
  std::filesystem::remove(weights());
  folder_.Write("model.safetensors.index.json",
                R"({"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}})");
  ExpectOneLineError(Run(), 1, {"model-00001-of-00002.safetensors"});
}

TEST_F(DamagedModel, HeadsNotDivisible) {
  ReplaceInConfig("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3");
  ExpectOneLineError(Run(), 1, {"config.json", "num_key_value_heads", "3"});
}

TEST_F(DamagedModel, OddHeadDim) {
  ReplaceInConfig("\"head_dim\": 16", "\"head_dim\": 15");
  ExpectOneLineError(Run(), 1, {"config.json", "head_dim", "15"});
}

TEST_F(DamagedModel, ZeroLayers) {
  ReplaceInConfig("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 0");
  ExpectOneLineError(Run(), 1, {"config.json", "num_hidden_layers", "0"});
}

TEST_F(DamagedModel, UnknownArchitecture) {
  ReplaceInConfig("LlamaForCausalLM", "MambaForCausalLM");
  ExpectOneLineError(Run(), 1, {"config.json", "architectures", "MambaForCausalLM"});
}

TEST_F(DamagedModel, ConfigIsNoJson) {
  folder_.Write("config.json", "{");
  ExpectOneLineError(Run(), 1, {"config.json"});
}

TEST_F(DamagedModel, NanInWeightsIsFoundAtCalibration) {
  ChangeWeights([](std::string& bytes) {
    const SafetensorsFile file = SafetensorsFile::Open(kTiny + "/model.safetensors");
    const TensorView* weight = file.Find("model.layers.1.mlp.up_proj.weight");
    ASSERT_NE(weight, nullptr);
    const std::byte* begin = weight->data;
    for (const auto& [name, tensor] : file.tensors()) begin = std::min(begin, tensor.data);
    uint64_t header_bytes = 0;
    std::copy_n(bytes.data(), 8, reinterpret_cast<char*>(&header_bytes));
    const size_t offset = 8 + header_bytes + static_cast<size_t>(weight->data - begin);
    const std::string nan("\0\0\xc0\x7f", 4);
    bytes.replace(offset, 4, nan);
  });
  const std::string dataset = folder_.Write("rows.jsonl", "{\"input_ids\":[1,2,3,4,5,6,7,8]}\n");
  const ProgramResult result =
      RunProgram({"sensitivity", "--model", folder_.path(), "--dataset", dataset, "--n-samples",
                  "1", "--seq-len", "8", "--json", folder_.File("out.json")});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.err.find("block 1"), std::string::npos) << result.err;
  EXPECT_FALSE(std::filesystem::exists(folder_.File("out.json")));
}

TEST_F(DamagedModel, UnknownTokenizerPart) {
  std::string text = Slurp(kModel + "/tokenizer.json");
  const size_t at = text.find("\"NFC\"");
  ASSERT_NE(at, std::string::npos);
  folder_.Write("tokenizer.json", text.replace(at, 5, "\"Precompiled\""));
  ExpectOneLineError(RunProgram({"tokenize", "--model", folder_.path()}, "x"), 1,
                     {"tokenizer.json", "normalizer", "Precompiled"});
}

TEST_F(DamagedModel, PlanOfAnotherModel) {
  ExpectOneLineError(Run({"--kv", "pm-kvq", "--plan", kModel + "/plan.json"}), 1,
                     {"plan.json", "model"});
}

TEST(BadRequest, TokenIdOutOfRange) {
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--prompt-ids", "1,256"}), 1,
                     {"--prompt-ids", "256", "255"});
}

TEST(BadRequest, NoIds) {
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--prompt-ids", ""}, "text"), 2,
                     {"--prompt-ids", "empty"});
}

TEST(BadRequest, TextToTokenizeIsNoUtf8) {
  ExpectOneLineError(RunProgram({"tokenize", "--model", kModel}, "ab\xff"), 1,
                     {"stdin", "byte 2", "UTF-8"});
}

TEST(BadRequest, InspectedFileIsSomethingElse) {
  ExpectOneLineError(RunProgram({"inspect", kModel + "/config.json"}), 1,
                     {"config.json", "folder"});
}

TEST(BadRequest, PlanIsSomethingElse) {
  ExpectOneLineError(RunProgram({"run", "--model", kModel, "--prompt", "a", "--kv", "pm-kvq",
                                 "--plan", kModel + "/config.json"}),
                     1, {"config.json", "format", "pmkvq-plan"});
}

TEST(BadRequest, NotANumberInIds) {
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--prompt-ids", "1,x"}), 2,
                     {"--prompt-ids", "'x'"});
}

TEST(BadRequest, EmptyPrompt) {
  ExpectOneLineError(RunProgram({"run", "--model", kModel, "--prompt", ""}), 2,
                     {"--prompt", "empty"});
  ExpectOneLineError(RunProgram({"run", "--model", kModel}, ""), 1, {"stdin", "empty"});
}

TEST(BadRequest, PromptIsNoUtf8) {
  ExpectOneLineError(RunProgram({"run", "--model", kModel}, "abc\xff"), 1,
                     {"stdin", "UTF-8", "byte 3"});
}

TEST(BadRequest, PromptLongerThanTheModel) {
  std::string ids = "1";
  for (int i = 0; i < 4096; ++i) ids += ",2";
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--prompt-ids", ids}), 1,
                     {"4097", "4096"});
}

TEST(BadRequest, BudgetTooSmallForThePromptNamesTheSmallest) {
  std::string prompt;
  for (int i = 0; i < 600; ++i) prompt += "1 ";
  const std::vector<std::string> base = {"run",  "--model",       kModel,   "--prompt",
                                         prompt, "--kv",          "pm-kvq", "--max-tokens",
                                         "1",    "--temperature", "0",      "--kv-budget"};
  std::vector<std::string> small = base;
  small.push_back("900KiB");
  const ProgramResult result = RunProgram(small);
  ExpectOneLineError(result, 1, {"--kv-budget", "at least"});
  // The size it names works, and one byte less does not.
  const size_t at = result.err.find("at least");
  ASSERT_NE(at, std::string::npos);
  const size_t digits = result.err.find_first_of("0123456789", at);
  const int64_t bytes = std::stoll(result.err.substr(digits));
  for (const int64_t less : {0, 1}) {
    std::vector<std::string> args = base;
    args.push_back(std::to_string(bytes - less));
    EXPECT_EQ(RunProgram(args).exit_code, less == 0 ? 0 : 1) << bytes - less;
  }
}

TEST(BadRequest, BudgetIsNoSize) {
  ExpectOneLineError(
      RunProgram({"run", "--model", kTiny, "--prompt-ids", "1", "--kv-budget", "lots"}), 2,
      {"--kv-budget", "lots"});
}

TEST(BadRequest, UnknownMethodListsTheKnownOnes) {
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--prompt-ids", "1", "--kv", "magic"}), 2,
                     {"magic", "pm-kvq", "static-4"});
}

TEST(BadRequest, UnwritableOutput) {
  ExpectOneLineError(RunProgram({"logits", "--model", kTiny, "--prompt-ids", "1", "--out",
                                 "/nonexistent/logits.safetensors"}),
                     1, {"/nonexistent/logits.safetensors"});
  ExpectOneLineError(RunProgram({"run", "--model", kTiny, "--prompt-ids", "1", "--max-tokens", "1",
                                 "--json", "-", "--stats", "/nonexistent/stats"}),
                     1, {"/nonexistent/stats"});
  // Said before the work is done, not after it.
  ExpectOneLineError(
      RunProgram({"run", "--model", kModel, "--prompt", "a", "--json", "/nonexistent/result.json"}),
      1, {"/nonexistent/result.json", "cannot write"});
  ExpectOneLineError(
      RunProgram({"calibrate", "--model", kModel, "--dataset", kModel + "/calibration.jsonl",
                  "--memory-budget", "64", "--plan", "/nonexistent/plan.json"}),
      1, {"/nonexistent/plan.json", "cannot write"});
  ExpectOneLineError(
      RunProgram({"calibrate", "--model", kModel, "--dataset", kModel + "/calibration.jsonl",
                  "--memory-budget", "64", "--plan", "plan"}),
      2, {"--plan", "'plan'", ".json"});
  ExpectOneLineError(RunProgram({"run", "--model", kModel, "--prompt", "a", "--stats", "-"}), 2,
                     {"--stats", "'-'"});
}

TEST(BadRequest, ImpossibleAllocationNamesTheSmallestBudget) {
  const TempFolder folder;
  const std::string sensitivity = folder.Write(
      "s.json", R"({"bits":[4,2],"k":{"4":[1,1],"2":[2,2]},"v":{"4":[1,1],"2":[2,2]}})");
  const std::vector<std::string> base = {
      "allocate",  "--kv-dim",  "128",  "--reference-accounting", "--sensitivity",
      sensitivity, "--max-len", "4096", "--memory-budget"};
  std::vector<std::string> small = base;
  small.push_back("0.49");
  ExpectOneLineError(RunProgram(small), 1, {"524288"});
  std::vector<std::string> enough = base;
  enough.push_back("0.5");
  EXPECT_EQ(RunProgram(enough).exit_code, 0);
  enough.back() = "512KiB";
  EXPECT_EQ(RunProgram(enough).exit_code, 0);
  enough.back() = "511KiB";
  ExpectOneLineError(RunProgram(enough), 1, {"0.500 MiB"});
  enough.back() = "much";
  ExpectOneLineError(RunProgram(enough), 2, {"--memory-budget", "'much'"});
}

TEST(BadUsage, ExitsWithTwo) {
  for (const std::vector<std::string>& args : std::vector<std::vector<std::string>>{
           {"fly"},
           {"run"},
           {"run", "--model", kTiny, "--no-such-option"},
           {"run", "--model", kTiny, "--temperature", "warm"},
           {"run", "--model", kTiny, "--kv-dtype", "f64"},
           {"run", "--model", kTiny, "--prompt", "a", "--prompt-ids", "1"},
           {"run", "--model", kTiny, "--chat", "--n-samples", "2"},
           {"run", "--model", kTiny, "--chat", "--prompt-logprobs", "2"},
           {"run", "--model", kTiny, "--chat", "--json", "-"},
           {"allocate", "--sensitivity", "x", "--memory-budget", "1"}}) {
    ExpectOneLineError(RunProgram(args), 2, {"--help"});
  }
}

TEST(BadUsage, NamesTheUnknownCommand) { ExpectOneLineError(RunProgram({"fly"}), 2, {"'fly'"}); }

TEST(BadUsage, HelpIsNoError) {
  const ProgramResult result = RunProgram({"run", "--help"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_NE(result.out.find("--kv-budget"), std::string::npos);
}

}  // namespace
}  // namespace pmkvq
