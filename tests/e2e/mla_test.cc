// Latent attention as its user meets it: a random model with the tokenizer of the shipped one, run
// inside a budget; its golden models looked at and computed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "pmkvq/io/json.h"
#include "pmkvq/io/safetensors.h"
#include "support/command_help.h"
#include "support/gguf_model.h"
#include "support/run_program.h"

namespace pmkvq {
namespace {

using testing_support::Args;
using testing_support::ExpectOneLineError;
using testing_support::GgufOf;
using testing_support::MakeTinyWeights;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::TinyModels;
using testing_support::TinyWeights;
using testing_support::WriteTinyModel;

const std::string kGolden = PMKVQ_SOURCE_DIR "/tests/golden/";
const std::string kLongcot = PMKVQ_SOURCE_DIR "/models/longcot-10m";

class Mla : public testing::TestWithParam<const char*> {
 protected:
  Mla() {
    tiny_.vocab = 576;  // That of the tokenizer.
    weights_ = MakeTinyWeights(tiny_);
    WriteTinyModel(tiny_, weights_, folder_);
    for (const char* file : {"/tokenizer.json", "/tokenizer_config.json"}) {
      std::filesystem::copy_file(kLongcot + file, folder_.path() + file);
    }
  }

  static ProgramResult Run(const Args& args) {
    const ProgramResult result = RunProgram(args);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return result;
  }

  // Ids of three sequences that decode side by side.
  static std::string Ids(const std::string& model, const Args& more) {
    const Args run = {"run",
                      "--model",
                      model,
                      "--prompt-ids",
                      "5,77,9,300,12,41",
                      "--max-tokens",
                      "400",
                      "--n-samples",
                      "3",
                      "--seed",
                      "7",
                      "--ignore-eos",
                      "--json",
                      "-"};
    const ProgramResult result = Run(Plus(run, more));
    if (result.exit_code != 0) return "";
    std::string ids;
    const JsonValue sequences = JsonValue::Parse(result.out, "run").At("sequences");
    for (size_t i = 0; i < sequences.size(); ++i) {
      EXPECT_EQ(sequences.At(i).At("output_ids").size(), 400u);
      ids += sequences.At(i).At("output_ids").Dump() + "\n";
    }
    return ids;
  }

  TinyModel tiny_ = TinyModels().at(GetParam());
  TinyWeights weights_;
  const TempFolder folder_;
};

// Four pages of 3 blocks take 72 and 96 KiB at 16 bits.
TEST_P(Mla, RunsInsideABudget) {
  const Args budget = {"--kv", "pm-kvq", "--kv-budget", "60KiB", "--max-len", "512"};
  const ProgramResult stats = Run(Plus({"run", "--model", folder_.path(), "--prompt", "Sort",
                                        "--max-tokens", "400", "--ignore-eos", "--seed", "1"},
                                       budget));
  EXPECT_NE(stats.err.find(" 8:"), std::string::npos) << "pages of 8 bits: " << stats.err;
  const std::string ids = Ids(folder_.path(), Plus(budget, {"--threads", "2"}));
  EXPECT_FALSE(ids.empty());
  EXPECT_TRUE(ids == Ids(folder_.path(), Plus(budget, {"--threads", "1"})))
      << "any number of threads";
}

TEST_P(Mla, PerplexityAndSensitivity) {
  const TempFolder out;
  const std::string text = out.Write("text.txt", "Sort the numbers 5 3 9 and 1, then add them.");
  Run({"perplexity", "--model", folder_.path(), "--dataset", text, "--kv", "static-8"});
  const std::string file = out.File("s.json");
  Run({"sensitivity", "--model", folder_.path(), "--dataset", kLongcot + "/calibration.jsonl",
       "--n-samples", "1", "--seq-len", "48", "--json", file});
  const JsonValue json = JsonValue::ParseFile(file);
  for (const char* stream : {"k", "v"}) {
    EXPECT_EQ(json.At(stream).At("4").AsDoubleArray().size(), 3u) << stream;
  }
}

TEST_P(Mla, ADeviceRefusesInOneLine) {
  ExpectOneLineError(
      RunProgram({"run", "--model", folder_.path(), "--prompt", "1", "--device", "cuda"}), 1,
      {"found latent attention", "use --device cpu"});
}

INSTANTIATE_TEST_SUITE_P(Models, Mla, testing::Values("deepseek2_f32", "deepseek3_bf16"),
                         [](const auto& each) { return std::string(each.param); });

TEST(MlaModels, AGgufFileIsTheSameModel) {
  TinyModel tiny = TinyModels().at("deepseek2_f32");
  const TinyWeights weights = MakeTinyWeights(tiny);
  const TempFolder folder;
  WriteTinyModel(tiny, weights, folder);
  const TempFolder out;
  const std::string file = out.Write("m.gguf", GgufOf(tiny, weights).Bytes());
  for (const char* kept : {"as-stored", "q8", "q4"}) {
    const auto ids = [&](const std::string& model) {
      const ProgramResult result =
          RunProgram({"run", "--model", model, "--prompt-ids", "5,7,9,3", "--max-tokens", "40",
                      "--ignore-eos", "--seed", "3", "--weights", kept, "--kv", "static-4",
                      "--max-len", "512", "--json", "-"});
      EXPECT_EQ(result.exit_code, 0) << result.err;
      return JsonValue::Parse(result.out, "run").At("sequences").At(0).At("output_ids").Dump();
    };
    EXPECT_EQ(ids(file), ids(folder.path())) << kept;
  }
}

// 5e-4 as in the description of the goldens; mla_golden_test.cc is sharper.
TEST(MlaModels, LogitsOfTheGoldenModels) {
  for (const char* name : {"tiny-deepseek", "tiny-deepseek-v3"}) {
    const SafetensorsFile golden = SafetensorsFile::Open(kGolden + name + ".safetensors");
    const TensorView& ids = golden.tensors().at("prompt_ids");
    std::string text;
    for (int64_t i = 0; i < ids.num_elements(); ++i) {
      text += (i > 0 ? "," : "") + std::to_string(ids.As<int32_t>()[i]);
    }
    const TempFolder out;
    const std::string path = out.File("logits.safetensors");
    const ProgramResult result = RunProgram({"logits", "--model", kGolden + name, "--prompt-ids",
                                             text, "--kv-dtype", "f32", "--out", path});
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const SafetensorsFile file = SafetensorsFile::Open(path);
    const TensorView& logits = file.tensors().at("logits");
    const TensorView& expected = golden.tensors().at("logits");
    ASSERT_EQ(logits.num_elements(), expected.num_elements());
    double worst = 0;
    for (int64_t i = 0; i < logits.num_elements(); ++i) {
      worst = std::max(worst, std::abs(double{logits.As<float>()[i]} - expected.As<float>()[i]));
    }
    EXPECT_LT(worst, 5e-4) << name;
  }
}

TEST(MlaModels, InspectAndFitTellWhatIsCached) {
  const ProgramResult result = RunProgram({"inspect", kGolden + "tiny-deepseek-v3", "--json", "-"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const JsonValue json = JsonValue::Parse(result.out, "inspect");
  EXPECT_EQ(json.At("kv_latent").AsInt(), 32);
  EXPECT_EQ(json.At("rope_key").AsInt(), 16);
  EXPECT_EQ(json.At("query_latent").AsInt(), 24);
  EXPECT_EQ(json.At("head_dim").AsInt(), 32);
  EXPECT_EQ(json.At("value_head_dim").AsInt(), 16);
  EXPECT_EQ(json.At("kv_bytes_per_token_at_16_bit").AsInt(), 2 * 2 * (32 + 16));
  EXPECT_FALSE(json.Has("kv_heads"));
  const ProgramResult fit =
      RunProgram({"fit", PMKVQ_SOURCE_DIR "/docs/configs/deepseek-v2-lite.json", "--memory", "64GB",
                  "--len", "32768", "--json", "-"});
  ASSERT_EQ(fit.exit_code, 0) << fit.err;
  const JsonValue sizes = JsonValue::Parse(fit.out, "fit");
  EXPECT_NEAR(sizes.At("parameters").AsDouble(), 15.7e9, 0.05e9);
  // 31,104 bytes a token, and what pages and the sink round up: less than a page of each block.
  const JsonValue fp16 = sizes.At("methods").At(0);
  EXPECT_EQ(fp16.At("kv").AsString(), "fp16");
  EXPECT_GE(fp16.At("sequence_bytes").AsInt(), 31104 * 32768);
  EXPECT_LT(fp16.At("sequence_bytes").AsInt(), 31104 * (32768 + 256));
}

}  // namespace
}  // namespace pmkvq
