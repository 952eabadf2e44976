#include "pmkvq/research/calib/round_weights.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/quantized_folder.h"
#include "support/calibration_support.h"
#include "support/dense_kv_store.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::CancelAfter;
using testing_support::DenseKvStore;
using testing_support::ExpectError;
using testing_support::MakeTinyWeights;
using testing_support::RandomSamples;
using testing_support::RandomTokens;
using testing_support::TempFolder;
using testing_support::TinyModel;
using testing_support::WriteTinyModel;

TinyModel Tied() {
  TinyModel tiny = testing_support::TinyModels().at("qwen2_bf16_tied");
  tiny.hidden = 64;
  tiny.inner = 96;
  return tiny;
}

// A model in a folder, and samples for it.
struct Made {
  explicit Made(const TinyModel& tiny_model) : tiny(tiny_model) {
    WriteTinyModel(tiny, MakeTinyWeights(tiny), folder);
    model = Model::Load(folder.path(), {WeightMode::kAsStored, 1});
    samples = RandomSamples(tiny.vocab, std::vector<size_t>(24, 60), 5);
    context.model = model.get();
    context.samples = &samples;
    context.num_threads = 2;
  }

  std::shared_ptr<const Model> Write(const RoundedWeights& rounded, const std::string& out) const {
    std::map<std::string, StoredBlocks> matrices;
    for (const auto& [name, weight] : rounded.matrices) {
      matrices[name] = {weight.data.data(), weight.rows, weight.cols};
    }
    WriteQuantizedFolder(model->checkpoint(), matrices, {{"rounding", "a test's"}}, out);
    return Model::Load(out, {WeightMode::kAsStored, 1});
  }

  TinyModel tiny;
  TempFolder folder;
  std::shared_ptr<const Model> model;
  Samples samples;
  CalibrationContext context;
};

std::vector<float> LogitsOf(const Model& model, uint64_t seed) {
  DenseKvStore store(model.kv_geometry());
  const std::vector<int32_t> tokens = RandomTokens(model.config().vocab_size, 50, seed);
  const ForwardChunk chunk{store.Open().value(), tokens, 0, ForwardChunk::Logits::kAll};
  ForwardWorkspace workspace;
  ThrowIfFailed(model.Forward({&chunk, 1}, store, workspace, 1));
  return {workspace.logits.begin(), workspace.logits.end()};
}

// Sum of squared differences of the logits of some texts that were no samples.
double Distance(const Model& a, const Model& b) {
  double sum = 0;
  for (const uint64_t seed : {101, 102, 103, 104}) {
    const std::vector<float> x = LogitsOf(a, seed);
    const std::vector<float> y = LogitsOf(b, seed);
    for (size_t i = 0; i < x.size(); ++i) sum += std::pow(x[i] - y[i], 2);
  }
  return sum;
}

TEST(RoundWeights, ModelIsNearerToItsOriginalThanWithTheNearestCodes) {
  const Made made(Tied());
  const TempFolder rounded_folder;
  const TempFolder nearest_folder;
  const auto rounded = made.Write(RoundWeights(made.context), rounded_folder.path());
  CalibrationContext without = made.context;
  without.samples = nullptr;
  const auto nearest = made.Write(RoundWeights(without), nearest_folder.path());
  const auto while_loading = Model::Load(made.folder.path(), {WeightMode::kQ4, 1});
  const double error = Distance(*made.model, *rounded);
  EXPECT_GT(error, 0);
  EXPECT_LT(error, 0.7 * Distance(*made.model, *nearest));
  // What loading makes are the codes of the folder.
  EXPECT_EQ(LogitsOf(*while_loading, 9), LogitsOf(*nearest, 9));
}

TEST(RoundWeights, FolderHoldsWhatWasRounded) {
  const Made made(Tied());
  made.folder.Write("tokenizer_config.json", R"({"a": 1})");
  const RoundedWeights rounded = RoundWeights(made.context);
  EXPECT_EQ(rounded.num_unseen, 0);
  // Seven matrices of each block, and the head, which was tied.
  EXPECT_EQ(std::ssize(rounded.matrices), 7 * made.tiny.layers + 1);
  const TempFolder folder;
  const std::string out = folder.File("a/b");
  const auto model = made.Write(rounded, out);
  EXPECT_FALSE(model->config().tie_word_embeddings);
  EXPECT_EQ(ReadFile(JoinPath(out, "tokenizer_config.json")), R"({"a": 1})");
  EXPECT_EQ(JsonValue::ParseFile(JoinPath(out, "config.json"))
                .At("quantization_config")
                .At("rounding")
                .AsString(),
            "a test's");
  for (const Model::NamedMatrix& matrix : model->matrices()) {
    const Q4Weight& expected = rounded.matrices.at(matrix.name);
    ASSERT_EQ(matrix.view.format, WeightFormat::kQ4_1) << matrix.name;
    ASSERT_EQ(matrix.view.num_bytes(), expected.data.size());
    EXPECT_EQ(std::memcmp(matrix.view.data, expected.data.data(), expected.data.size()), 0);
  }
  EXPECT_EQ(model->embedding().format, WeightFormat::kBF16);
  EXPECT_NE(model->checkpoint().Identity(), made.model->checkpoint().Identity());
  // What is quantised is not quantised again.
  CalibrationContext again = made.context;
  again.model = model.get();
  EXPECT_TRUE(RoundWeights(again).matrices.empty());
}

TEST(RoundWeights, RowsThatAreNoWholeGroupsStay) {
  TinyModel tiny = Tied();
  tiny.inner = 56;
  tiny.tied = false;
  const Made made(tiny);
  const RoundedWeights rounded = RoundWeights(made.context);
  EXPECT_FALSE(rounded.matrices.contains("blocks.0.mlp.down"));  // Rows of 56.
  EXPECT_TRUE(rounded.matrices.contains("blocks.0.mlp.up"));
  const TempFolder folder;
  const auto model = made.Write(rounded, folder.path());
  EXPECT_LT(Distance(*made.model, *model), 1e3);
  for (const Model::NamedMatrix& matrix : model->matrices()) {
    const bool stays = matrix.name.ends_with("mlp.down");
    EXPECT_EQ(matrix.view.format, stays ? WeightFormat::kBF16 : WeightFormat::kQ4_1);
  }
}

TEST(RoundWeights, ExpertsThatNoTokenChoseAreCounted) {
  TinyModel tiny;
  tiny.architecture = "MixtralForCausalLM";
  tiny.hidden = 32;
  tiny.inner = 64;
  tiny.experts = 8;
  tiny.normalizes = true;
  tiny.dtype = DType::kBF16;
  Made made(tiny);
  EXPECT_EQ(RoundWeights(made.context).num_unseen, 0);
  made.samples = RandomSamples(tiny.vocab, {2}, 5);
  const RoundedWeights few = RoundWeights(made.context);
  // Two tokens choose at most four of eight experts in each block; each has three matrices.
  EXPECT_GE(few.num_unseen, 3 * 4 * tiny.layers);
  EXPECT_FALSE(few.matrices.contains("blocks.0.mlp.router"));
  const TempFolder folder;
  const auto model = made.Write(few, folder.path());
  EXPECT_TRUE(std::isfinite(Distance(*made.model, *model)));
}

TEST(RoundWeights, IsCancelled) {
  const Made made(Tied());
  CancelFlag cancel{false};
  CancelAfter progress(1, &cancel);
  CalibrationContext context = made.context;
  context.progress = &progress;
  context.cancel = &cancel;
  EXPECT_THROW(RoundWeights(context), Cancelled);
}

TEST(QuantizedFolder, RefusesOtherModelsAndFoldersInUse) {
  const Made made(Tied());
  ExpectError<IoError>(
      [&] { WriteQuantizedFolder(made.model->checkpoint(), {}, {}, made.folder.path()); },
      {made.folder.path(), "found files there"});
  const std::string file = made.folder.Write("file", "x");
  ExpectError<IoError>([&] { CheckQuantizedFolder(made.model->checkpoint(), file); },
                       {file, "expected a folder that is new or empty"});
  std::filesystem::remove(made.folder.File("config.json"));
  ExpectError<Unsupported>(
      [&] { CheckQuantizedFolder(made.model->checkpoint(), made.folder.File("new")); },
      {"found no config.json"});
}

TEST(QuantizedFolder, BlocksNeedTheirConfig) {
  const Made made(Tied());
  const TempFolder folder;
  made.Write(RoundWeights(made.context), folder.path());
  const std::string config = ReadFile(folder.File("config.json"));
  const auto rewritten = [&](const std::string& from, const std::string& to) {
    std::string text = config;
    text.replace(text.find(from), from.size(), to);
    folder.Write("config.json", text);
    return folder.path();
  };
  ExpectError<Unsupported>([&] { Model::Load(rewritten("\"Q4_1\"", "\"Q4_K\"")); },
                           {"quantization_config.format: found \"Q4_K\"", "Q4_1"});
  ExpectError<InvalidInput>(
      [&] { Model::Load(rewritten("quantization_config", "another_config")); },
      {"found U8", "expected F32, F16 or BF16"});
}

}  // namespace
}  // namespace pmkvq
