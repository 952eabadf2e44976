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

TEST(Weights, QuantisedOnesDriftLittleFromTheModelAsStored) {
  const TempFolder folder;
  std::string ids;
  for (int i = 0; i < 200; ++i) ids += (i > 0 ? "," : "") + std::to_string(i * 7 % 250);
  const std::string dataset = folder.Write("rows.jsonl", "{\"input_ids\":[" + ids + "]}\n");
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

TEST(Weights, CalibrationMeasuresTheModelAsStored) {
  for (const std::string command : {"calibrate", "sensitivity"}) {
    for (const std::string weights : {"q8", "q4"}) {
      const ProgramResult result = RunProgram({command, "--model", kTiny, "--weights", weights});
      EXPECT_EQ(result.exit_code, 2);
      EXPECT_NE(result.err.find("calibration measures the model as stored"), std::string::npos)
          << result.err;
    }
  }
}

TEST(Weights, UnknownOnesAreNamed) {
  const ProgramResult result =
      RunProgram({"run", "--model", kTiny, "--weights", "q5", "--prompt-ids", "3"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_NE(result.err.find("q5"), std::string::npos) << result.err;
}

}  // namespace
}  // namespace pmkvq
