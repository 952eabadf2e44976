// --weights as its user meets it.
#include <gtest/gtest.h>

#include "pmkvq/io/json.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;

const std::string kTiny = PMKVQ_SOURCE_DIR "/tests/golden/tiny-llama";

std::string Rows(const TempFolder& folder) {
  std::string ids;
  for (int i = 0; i < 200; ++i) ids += (i > 0 ? "," : "") + std::to_string(i * 7 % 250);
  return folder.Write("rows.jsonl", "{\"input_ids\":[" + ids + "]}\n");
}

TEST(Weights, QuantisedOnesDriftLittleFromTheModelAsStored) {
  const TempFolder folder;
  const std::string dataset = Rows(folder);
  for (const std::string weights : {"as-stored", "q8", "q4"}) {
    const ProgramResult result = RunProgram({"perplexity", "--model", kTiny, "--dataset", dataset,
                                             "--weights", weights, "--json", "-"});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const JsonValue json = JsonValue::Parse(result.out, "stdout");
    EXPECT_EQ(json.At("weights").AsString(), weights);
    const double kl = json.At("kl_to_fp16").AsDouble();
    if (weights == "as-stored") {
      EXPECT_EQ(kl, 0);
    } else {
      EXPECT_GT(kl, weights == "q4" ? 1e-4 : 0);
      EXPECT_LT(kl, weights == "q4" ? 0.3 : 1e-2);
    }
  }
}

// A plan of quantised weights says so, and serves the model with any weights.
TEST(Weights, CalibrationMeasuresThem) {
  const TempFolder folder;
  const std::string dataset = Rows(folder);
  for (const std::string weights : {"q8", "q4"}) {
    const std::string plan = folder.File(weights + ".json");
    const ProgramResult made = RunProgram(
        {"calibrate", "--model", kTiny, "--weights", weights, "--dataset", dataset, "--n-samples",
         "1", "--seq-len", "128", "--memory-budget", "64KiB", "--max-len", "512", "--plan", plan});
    ASSERT_EQ(made.exit_code, 0) << made.err;
    EXPECT_NE(made.err.find("with --weights " + weights), std::string::npos) << made.err;
    const ProgramResult inspected = RunProgram({"inspect", plan, "--json", "-"});
    ASSERT_EQ(inspected.exit_code, 0) << inspected.err;
    EXPECT_EQ(JsonValue::Parse(inspected.out, "stdout").At("weights").AsString(), weights);
    const ProgramResult used = RunProgram(
        {"perplexity", "--model", kTiny, "--dataset", dataset, "--kv", "pm-kvq", "--plan", plan});
    EXPECT_EQ(used.exit_code, 0) << used.err;
  }
  const ProgramResult step =
      RunProgram({"sensitivity", "--model", kTiny, "--weights", "q4", "--dataset", dataset,
                  "--n-samples", "1", "--seq-len", "128", "--json", "-"});
  ASSERT_EQ(step.exit_code, 0) << step.err;
  EXPECT_EQ(JsonValue::Parse(step.out, "stdout").At("calibration").At("weights").AsString(), "q4");
}

// A folder of 4-bit weights is a model like any other.
TEST(Weights, QuantizedFolderIsNearerToItsOriginalThanQ4) {
  const TempFolder folder;
  const std::string dataset = Rows(folder);
  const std::string out = folder.File("q4");
  const ProgramResult made = RunProgram({"quantize", "--model", kTiny, "--out", out, "--dataset",
                                         dataset, "--n-samples", "1", "--seq-len", "128"});
  ASSERT_EQ(made.exit_code, 0) << made.err;
  EXPECT_NE(made.err.find("wrote " + out), std::string::npos) << made.err;
  const auto kl_of = [&](const std::vector<std::string>& model) {
    std::vector<std::string> args = {"perplexity", "--dataset", dataset, "--json", "-"};
    args.insert(args.end(), model.begin(), model.end());
    const ProgramResult result = RunProgram(args);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return JsonValue::Parse(result.out, "stdout").At("kl_to_fp16").AsDouble();
  };
  const double rounded = kl_of({"--model", out, "--reference", kTiny});
  EXPECT_GT(rounded, 0);
  EXPECT_LT(rounded, kl_of({"--model", kTiny, "--weights", "q4"}));
  EXPECT_EQ(kl_of({"--model", out}), 0);  // To itself.
  const ProgramResult again = RunProgram({"quantize", "--model", kTiny, "--out", out});
  EXPECT_EQ(again.exit_code, 1);
  EXPECT_NE(again.err.find("new or empty"), std::string::npos) << again.err;
}

TEST(Weights, ReferenceMustBeTheSameModel) {
  const TempFolder folder;
  const ProgramResult result =
      RunProgram({"perplexity", "--model", kTiny, "--dataset", Rows(folder), "--reference",
                  PMKVQ_SOURCE_DIR "/models/longcot-10m"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_NE(result.err.find("another vocabulary"), std::string::npos) << result.err;
}

TEST(Weights, UnknownOnesAreNamed) {
  const ProgramResult result =
      RunProgram({"run", "--model", kTiny, "--weights", "q5", "--prompt-ids", "3"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("q5"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace pmkvq
