// Latent attention as its user meets it: a random model with the tokenizer of the shipped one, run
// inside a budget; its golden models looked at and computed.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "pmkvq/io/checkpoint.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/safetensors.h"
#include "support/command_help.h"
#include "support/gguf_deepseek.h"
#include "support/gguf_model.h"
#include "support/run_program.h"
#include "support/tiny_model_runs.h"

namespace pmkvq {
namespace {

using testing_support::Args;
using testing_support::ExpectOneLineError;
using testing_support::GgufOf;
using testing_support::GgufOfDeepSeek;
using testing_support::kLongcot;
using testing_support::MakeTinyWeights;
using testing_support::Plus;
using testing_support::ProgramResult;
using testing_support::RunProgram;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::TinyModelRuns;
using testing_support::TinyModels;
using testing_support::TinyWeights;
using testing_support::WriteTinyModel;

const std::string kGolden = PMKVQ_SOURCE_DIR "/tests/golden/";

class Mla : public TinyModelRuns {};

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

// Of a folder and of a GGUF file: calibration in one go and step by step, and what takes its plan.
TEST_P(Mla, CalibratesAndRunsWithThePlan) {
  const TempFolder out;
  const std::string text = out.Write("text.txt", "Sort the numbers 5 3 9 and 1, then add them.");
  const std::string gguf = out.Write("m.gguf", GgufOf(tiny_, weights_).Bytes());
  for (const std::string& model : {folder_.path(), gguf}) {
    const Args with_model = {"--model", model, "--tokenizer", kLongcot};
    const Args data = Plus(with_model, {"--dataset", kLongcot + "/calibration.jsonl", "--n-samples",
                                        "2", "--seq-len", "48"});
    const std::string plan = out.File("plan.json");
    const Args budget = {"--memory-budget", "60KiB", "--max-len", "512"};
    const ProgramResult made =
        Run(Plus(Plus({"calibrate", "--plan", plan, "--rope-floor", "4"}, data), budget));
    EXPECT_EQ(made.err.find("key scales none"), std::string::npos) << made.err;

    const std::string max_keys = out.File("max.safetensors");
    const std::string scales = out.File("scales.safetensors");
    const std::string sensitivity = out.File("s.json");
    const std::string widths = out.File("widths.json");
    Run(Plus({"max-keys", "--out", max_keys}, data));
    const ProgramResult search =
        Run(Plus({"rep-scales", "--max-keys", max_keys, "--out", scales, "--json", "-"}, data));
    Run(Plus({"sensitivity", "--json", sensitivity}, data));
    Run(Plus({"allocate", "--sensitivity", sensitivity, "--model", model, "--rope-floor", "4",
              "--json", widths},
             budget));
    const JsonValue losses = JsonValue::Parse(search.out, "rep-scales");
    const JsonValue steps = JsonValue::ParseFile(widths);
    const JsonValue whole = JsonValue::ParseFile(plan);
    EXPECT_EQ(losses.At("alpha").Dump(), whole.At("rep_scales").At("alpha").Dump());
    EXPECT_EQ(losses.At("rope_alpha").size(), 3u);
    EXPECT_EQ(losses.At("rope_loss").At(2).size(), 21u);
    const SafetensorsFile apart = SafetensorsFile::Open(scales);
    const SafetensorsFile together = SafetensorsFile::Open(out.File("plan.safetensors"));
    for (size_t block = 0; block < 3; ++block) {
      const std::string name = "rep_scales." + std::to_string(block);
      const TensorView& a = apart.tensors().at(name);
      const TensorView& b = together.tensors().at(name);
      ASSERT_EQ(a.num_elements(), tiny_.latent + tiny_.rope_dim);
      ASSERT_EQ(b.num_elements(), a.num_elements());
      for (int64_t i = 0; i < a.num_elements(); ++i) {
        ASSERT_EQ(a.As<float>()[i], b.As<float>()[i]) << name << " at " << i;
      }
      const JsonValue bits = whole.At("bits").At(block);
      EXPECT_EQ(steps.At("k_bits").At(block).AsInt(), bits.At(0).AsInt());
      EXPECT_EQ(steps.At("v_bits").At(block).AsInt(), bits.At(1).AsInt());
    }

    for (const char* recipe : {"paper", "best"}) {
      const Args cache = {"--recipe", recipe, "--plan", plan, "--max-len", "512"};
      Run(Plus(Plus({"run", "--prompt", "Sort", "--max-tokens", "300", "--ignore-eos"}, with_model),
               cache));
      Run(Plus(Plus({"eval", "--data", kLongcot + "/problems.jsonl", "--per-cell", "1", "--end",
                     "2", "--max-level", "1", "--max-tokens", "20"},
                    with_model),
               cache));
      Run(Plus(Plus({"perplexity", "--dataset", text}, with_model), cache));
    }
    Run(Plus({"compare",
              "--per-cell",
              "1",
              "--end",
              "2",
              "--max-level",
              "1",
              "--max-tokens",
              "20",
              "--data",
              kLongcot + "/problems.jsonl",
              "--max-len",
              "512",
              "--kv",
              "pm-kvq",
              "--kv",
              "pm-kvq:policy=oldest-first",
              "--kv",
              "static-2",
              "--plan",
              plan,
              "--kv-budget",
              "60KiB",
              "--out",
              out.File(model == gguf ? "gguf" : "folder")},
             with_model));
  }
}

TEST_P(Mla, Analyses) {
  for (const char* file : {"/problems.jsonl", "/calibration.jsonl"}) {
    std::filesystem::copy_file(kLongcot + file, folder_.path() + file);
  }
  for (const char* what : {"error-growth", "interpolation", "transfer"}) {
    const ProgramResult result =
        Run({"analyze", what, "--model", folder_.path(), "--quick", "--json", "-"});
    EXPECT_TRUE(JsonValue::Parse(result.out, what).IsObject());
  }
}

// The build has no CUDA, there is no device, or there is no code for latents of so few values.
TEST_P(Mla, ADeviceRefusesInOneLine) {
  ExpectOneLineError(
      RunProgram({"run", "--model", folder_.path(), "--prompt", "1", "--device", "cuda"}), 1,
      {"[cuda:0]"});
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

// They have no tokenizer, so data sets are of ids.
TEST(MlaModels, CalibratesTheGoldenModels) {
  for (const std::string name : {"tiny-deepseek", "tiny-deepseek-v3"}) {
    const TempFolder out;
    const std::string gguf =
        out.Write("m.gguf", GgufOfDeepSeek(Checkpoint::Open(kGolden + name), true).Bytes());
    std::string ids = "1";
    for (int i = 1; i < 200; ++i) ids += "," + std::to_string(i * i % 61);
    const std::string data = out.Write("ids.jsonl", "{\"input_ids\":[" + ids + "]}\n");
    for (const std::string& model : {kGolden + name, gguf}) {
      const std::string plan = out.File("plan.json");
      const ProgramResult made = RunProgram(
          {"calibrate", "--model", model, "--dataset", data, "--n-samples", "2", "--seq-len", "64",
           "--memory-budget", "40KiB", "--max-len", "256", "--rope-floor", "2", "--plan", plan});
      ASSERT_EQ(made.exit_code, 0) << made.err;
      for (const double alpha :
           JsonValue::ParseFile(plan).At("rep_scales").At("alpha").AsDoubleArray()) {
        EXPECT_GT(alpha, 0.0);
      }
      const ProgramResult result =
          RunProgram({"perplexity", "--model", model, "--dataset", data, "--recipe", "best",
                      "--plan", plan, "--max-len", "256", "--json", "-"});
      ASSERT_EQ(result.exit_code, 0) << result.err;
      EXPECT_TRUE(std::isfinite(JsonValue::Parse(result.out, "perplexity").At("loss").AsDouble()));
    }
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

// The shipped model of latents solves what it was trained for, at 16 bits and in the plan's budget.
TEST(MlaModels, LongcotMlaSolvesItsProblems) {
  const std::string model = PMKVQ_SOURCE_DIR "/models/longcot-mla";
  for (const Args& cache :
       {Args{"--kv", "fp16"},
        Args{"--kv", "pm-kvq", "--plan", model + "/plan.json", "--max-len", "4096"}}) {
    const ProgramResult result =
        RunProgram(Plus({"eval", "--model", model, "--data", kLongcot + "/problems.jsonl",
                         "--per-cell", "1", "--max-level", "1", "--json", "-"},
                        cache));
    ASSERT_EQ(result.exit_code, 0) << result.err;
    const JsonValue json = JsonValue::Parse(result.out, "eval");
    EXPECT_EQ(json.At("responses").AsInt(), 5);
    EXPECT_EQ(json.At("correct").AsInt(), 5) << result.out;
  }
  // Its folder has no problems.
  ExpectOneLineError(RunProgram({"eval", "--model", model}), 1,
                     {model, "found no problems.jsonl", "--data"});
}

}  // namespace
}  // namespace pmkvq
