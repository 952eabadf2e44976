// pmkvq fit: from a folder, from a config.json alone, and what it refuses.
#include <gtest/gtest.h>

#include "pmkvq/io/json.h"
#include "support/command_help.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::Args;
using testing_support::ExpectOneLineError;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::Slurp;
using testing_support::TempFolder;

const std::string kModel = PMKVQ_SOURCE_DIR "/models/longcot-10m";
const std::string kConfigs = PMKVQ_SOURCE_DIR "/docs/configs/";

JsonValue FitOf(const std::string& model, const Args& more) {
  const ProgramResult result = RunProgram(Plus({"fit", model, "--json", "-"}, more));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return JsonValue::Parse(result.out, "fit");
}

TEST(FitCommand, AConfigAloneGivesWhatTheFolderGives) {
  const Args options = {"--memory", "64MiB", "--len", "4096", "--sequences", "3"};
  const TempFolder folder;
  const std::string config = folder.Write("config.json", Slurp(kModel + "/config.json"));
  const std::string of_folder = FitOf(kModel, options).Dump();
  EXPECT_EQ(FitOf(config, options).Dump(), of_folder);
  EXPECT_EQ(FitOf(folder.path(), options).Dump(), of_folder);
}

// The cache of inspect, which is the one that run allocates.
TEST(FitCommand, BytesAreThoseOfTheCache) {
  const JsonValue fit = FitOf(kModel, {"--memory", "64MiB", "-c", "4096"});
  for (size_t i = 0; i < 4; ++i) {
    const JsonValue method = fit.At("methods").At(i);
    const ProgramResult cache = RunProgram({"inspect", kModel, "--json", "-", "--max-len", "4096",
                                            "--kv", method.At("kv").AsString()});
    EXPECT_EQ(method.At("sequence_bytes").AsInt(),
              JsonValue::Parse(cache.out, "inspect").At("budget_bytes").AsInt());
  }
}

TEST(FitCommand, PublishedShapesHaveTheirSizes) {
  const JsonValue small = FitOf(kConfigs + "r1-distill-qwen-7b.json", {"--memory", "24GB"});
  EXPECT_NEAR(small.At("parameters").AsDouble(), 7.6e9, 0.05e9);
  EXPECT_NEAR(small.At("weight_bytes").AsDouble(), 15.2e9, 0.1e9);
  EXPECT_EQ(small.At("len").AsInt(), 131072);
  const JsonValue large =
      FitOf(kConfigs + "r1-distill-llama-70b.json", {"--memory", "80GB", "--weights", "q8"});
  EXPECT_NEAR(large.At("parameters").AsDouble(), 70.6e9, 0.1e9);
  EXPECT_EQ(large.At("weights").AsString(), "Q8");
  const JsonValue four =
      FitOf(kConfigs + "r1-distill-llama-70b.json", {"--memory", "80GB", "--weights", "q4"});
  EXPECT_EQ(four.At("weights").AsString(), "Q4");
  // 70.6 - 1.05 parameters of 0.625 bytes, and the embedding in BF16.
  EXPECT_NEAR(four.At("weight_bytes").AsDouble(), 69.5e9 * 0.625 + 1.05e9 * 2, 0.1e9);
}

TEST(FitCommand, RefusesInOneLine) {
  const std::string config = kConfigs + "r1-distill-qwen-7b.json";
  ExpectOneLineError(RunProgram({"fit", config}), 2, {"--memory"});
  ExpectOneLineError(RunProgram({"fit", config, "--memory", "24"}), 2,
                     {"--memory", "found '24'", "24GB"});
  ExpectOneLineError(RunProgram({"fit", config, "--memory", "24GB", "--len", "200000"}), 1,
                     {"--len", "found 200000", "131072"});
  ExpectOneLineError(RunProgram({"fit", "nowhere.json", "--memory", "24GB"}), 1, {"nowhere.json"});
  const TempFolder folder;
  ExpectOneLineError(RunProgram({"fit", folder.Write("plan.json", "{}"), "--memory", "24GB"}), 1,
                     {"plan.json", "architectures"});
  ExpectOneLineError(
      RunProgram(
          {"fit",
           folder.Write("config.json", R"({"architectures":["LlamaForCausalLM"],"dtype":5})"),
           "--memory", "24GB"}),
      1, {"config.json"});
}

TEST(FitCommand, SaysWhatIsMissing) {
  const ProgramResult result =
      RunProgram({"fit", kConfigs + "r1-distill-llama-70b.json", "--memory", "24GB"});
  EXPECT_EQ(result.exit_code, 0);
  EXPECT_NE(result.out.find("missing"), std::string::npos) << result.out;
  EXPECT_NE(result.out.find("nothing is left for a cache"), std::string::npos);
}

}  // namespace
}  // namespace pmkvq
