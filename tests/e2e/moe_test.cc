// Mixtures of experts as their user meets them: a random model with the tokenizer of the shipped
// one, calibrated, run inside a budget and judged.
#include <gtest/gtest.h>

#include <filesystem>

#include "pmkvq/io/json.h"
#include "support/command_help.h"
#include "support/gguf_model.h"
#include "support/run_program.h"
#include "support/tiny_model_runs.h"

namespace pmkvq {
namespace {

using testing_support::Args;
using testing_support::GgufOf;
using testing_support::kLongcot;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;
using testing_support::TinyModelRuns;

const std::string kGolden = PMKVQ_SOURCE_DIR "/tests/golden/";

class Moe : public TinyModelRuns {
 protected:
  Moe() {
    std::filesystem::copy_file(kLongcot + "/problems.jsonl", folder_.path() + "/problems.jsonl");
  }
};

TEST_P(Moe, IsCalibratedRunAndEvaluated) {
  const TempFolder out;
  const std::string plan = out.File("plan.json");
  const std::string model = folder_.path();
  Run({"calibrate", "--model", model, "--dataset", kLongcot + "/calibration.jsonl", "--n-samples",
       "2", "--seq-len", "64", "--effective-len", "256", "--memory-budget", "96KiB", "--max-len",
       "512", "--plan", plan});

  // 400 tokens of 3 blocks take three times the budget at 16 bits.
  const Args budget = {"--kv", "pm-kvq", "--plan", plan, "--max-len", "512"};
  const ProgramResult stats = Run(Plus({"run", "--model", model, "--prompt", "Sort", "--max-tokens",
                                        "400", "--ignore-eos", "--seed", "1"},
                                       budget));
  EXPECT_NE(stats.err.find(" 4:"), std::string::npos) << "pages of 4 bits: " << stats.err;
  const std::string ids = Ids(model, Plus(budget, {"--threads", "2"}));
  EXPECT_TRUE(ids == Ids(model, Plus(budget, {"--threads", "1"}))) << "any number of threads";

  const std::string results = out.File("results");
  Run(Plus({"eval", "--model", model, "--per-cell", "1", "--max-level", "1", "--max-tokens", "60",
            "--out", results},
           budget));
  Run({"judge", results});
}

TEST_P(Moe, AGgufFileIsTheSameModel) {
  const TempFolder out;
  const std::string file = out.Write("m.gguf", GgufOf(tiny_, weights_).Bytes());
  for (const char* weights : {"as-stored", "q8", "q4"}) {
    const Args options = {"--weights", weights, "--kv", "static-4", "--max-len", "512"};
    const std::string expected = Ids(folder_.path(), options);
    EXPECT_FALSE(expected.empty());
    EXPECT_TRUE(Ids(file, options) == expected) << weights;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, Moe, testing::Values("mixtral_f32", "qwen3_moe_bf16"),
                         [](const auto& each) { return std::string(each.param); });

TEST(InspectMoe, TellsTotalAndActiveParameters) {
  const ProgramResult result = RunProgram({"inspect", kGolden + "tiny-mixtral", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const JsonValue json = JsonValue::Parse(result.out, "inspect");
  constexpr int64_t kExpert = 3 * 40 * 64;
  constexpr int64_t kOthers = 2 * 256 * 64 + 2 * (64 * (64 + 32 + 32 + 64) + 4 * 64 + 2 * 64) + 64;
  EXPECT_EQ(json.At("parameters").AsInt(), kOthers + 2 * 4 * kExpert);
  EXPECT_EQ(json.At("parameters_active_per_token").AsInt(), kOthers + 2 * 2 * kExpert);
  EXPECT_EQ(json.At("experts").AsInt(), 4);
  EXPECT_EQ(json.At("experts_per_token").AsInt(), 2);
  EXPECT_EQ(json.At("expert_intermediate_size").AsInt(), 40);
  EXPECT_EQ(json.At("blocks_with_experts").AsInt(), 2);
  const ProgramResult fit = RunProgram(
      {"fit", kGolden + "tiny-qwen3-moe", "--memory", "64MiB", "--len", "128", "--json", "-"});
  ASSERT_EQ(fit.exit_code, 0) << fit.err;
  const JsonValue sizes = JsonValue::Parse(fit.out, "fit");
  EXPECT_EQ(sizes.At("parameters").AsInt() - sizes.At("parameters_active_per_token").AsInt(),
            2 * 6 * 3 * 24 * 64);
}

}  // namespace
}  // namespace pmkvq
