#include "pmkvq/research/calib/calibrate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "support/calibration_support.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::CancelAfter;
using testing_support::ExpectError;
using testing_support::RandomSamples;
using testing_support::TempFolder;
using testing_support::TinyFolder;
using testing_support::TinyModels;

class CalibrateTest : public ::testing::Test {
 protected:
  CalibrateTest() : tiny_(TinyModels().at("llama_f32")), model_folder_(tiny_) {
    model_ = model_folder_.Load();
    options_.samples.dataset = data_.Write("rows.jsonl", Rows());
    options_.samples.num_samples = 3;
    options_.samples.seq_len = 24;
    options_.samples.effective_len = 48;
    options_.samples.seed = 11;
    options_.rep_scales.k_bits = 2;
    options_.allocation.cache.sink_tokens = 3;
    options_.allocation.cache.window_tokens = 256;
    options_.allocation.cache.float_type = DType::kBF16;
    options_.allocation.max_len = 1000;
    options_.allocation.memory_budget_bytes = Budget(4, 4, 2);
    options_.num_threads = 1;
    options_.plan_path = output_.File("plan.json");
  }

  std::string Rows() const {
    std::string rows;
    for (const auto& tokens : RandomSamples(tiny_.vocab, {24, 24, 24}, 5).tokens) {
      JsonWriter json;
      json.BeginObject().Key("input_ids").Array(tokens).EndObject();
      rows += json.text() + "\n";
    }
    return rows;
  }

  // Bytes of three blocks of these widths.
  int64_t Budget(int first, int second, int third) const {
    CacheConfig cache = options_.allocation.cache;
    cache.geometry = model_->kv_geometry();
    int64_t bytes = 0;
    for (const int bits : {first, second, third}) {
      bytes += BlockBytes(cache, 0, options_.allocation.max_len, bits, bits);
    }
    return bytes;
  }

  // Both files of a plan.
  static std::string Bytes(const std::string& plan_path) {
    std::string tensors = plan_path;
    tensors.replace(tensors.size() - 5, 5, ".safetensors");
    return ReadFile(plan_path) + ReadFile(tensors);
  }

  testing_support::TinyModel tiny_;
  TinyFolder model_folder_;
  std::shared_ptr<const Model> model_;
  TempFolder data_;
  TempFolder output_;
  CalibrateOptions options_;
};

TEST_F(CalibrateTest, FillsAndWritesThePlan) {
  const Plan plan = Calibrate(options_, *model_, nullptr);
  EXPECT_EQ(plan.model_identity, model_->checkpoint().Identity());
  EXPECT_EQ(plan.geometry.num_layers(), 3);
  EXPECT_EQ(plan.settings.sink_tokens, 3);
  EXPECT_EQ(plan.settings.window_tokens, 256);
  EXPECT_EQ(plan.settings.kv_dtype, DType::kBF16);
  EXPECT_EQ(plan.max_len, 1000);
  EXPECT_EQ(plan.memory_budget_bytes, options_.allocation.memory_budget_bytes);
  EXPECT_EQ(std::count(plan.k_bits.begin(), plan.k_bits.end(), 4), 2);
  EXPECT_EQ(plan.v_bits, plan.k_bits);
  EXPECT_EQ(plan.budget_bytes.size(), 3u);
  EXPECT_EQ(plan.alpha.size(), 3u);
  EXPECT_EQ(plan.key_scales.size(), 3u);
  EXPECT_EQ(plan.rep_k_bits, 2);
  EXPECT_EQ(plan.rep_v_bits, 4);
  EXPECT_EQ(plan.record.dataset, options_.samples.dataset);
  EXPECT_EQ(plan.record.pack, "concat");
  EXPECT_EQ(plan.record.num_samples, 3);
  EXPECT_EQ(plan.record.seq_len, 24);
  EXPECT_EQ(plan.record.effective_len, 48);
  EXPECT_EQ(plan.record.seed, 11u);

  EXPECT_EQ(output_.NumEntries(), 2u);  // The plan's two files, no checkpoint.
  const Plan loaded = LoadPlan(options_.plan_path);
  EXPECT_EQ(loaded.k_bits, plan.k_bits);
  EXPECT_EQ(loaded.sensitivity.k, plan.sensitivity.k);
  EXPECT_EQ(loaded.alpha, plan.alpha);
}

// Their sensitivities are close to those of the stored weights, and the plan says what was
// measured. What another form of weights left of an interrupted run is not taken.
TEST_F(CalibrateTest, MeasuresQuantisedWeights) {
  const Plan as_stored = Calibrate(options_, *model_, nullptr);
  EXPECT_EQ(as_stored.record.weights, "as-stored");
  const std::shared_ptr<const Model> q8 = model_folder_.Load(WeightMode::kQ8);
  CancelFlag cancel = false;
  CancelAfter interrupt(4, &cancel);
  options_.cancel = &cancel;
  options_.progress = &interrupt;
  options_.plan_path = output_.File("q8.json");
  EXPECT_THROW(Calibrate(options_, *model_, nullptr), Cancelled);
  cancel = false;
  CancelAfter whole(1000, &cancel);
  options_.progress = &whole;
  const Plan plan = Calibrate(options_, *q8, nullptr);
  EXPECT_EQ(whole.advanced, 6) << "three samples in each of two steps";
  EXPECT_EQ(LoadPlan(options_.plan_path).record.weights, "q8");
  EXPECT_EQ(plan.model_identity, as_stored.model_identity);
  EXPECT_NE(plan.sensitivity.k, as_stored.sensitivity.k);
  for (size_t block = 0; block < 3; ++block) {
    // Weights err by up to 0.4 % of the largest of 32, so sums of products by less.
    const double expected = as_stored.sensitivity.k[WidthIndex(2)][block];
    EXPECT_NEAR(plan.sensitivity.k[WidthIndex(2)][block], expected, 0.05 * expected);
  }
}

TEST_F(CalibrateTest, ResumesInEveryStepWithTheSamePlan) {
  Calibrate(options_, *model_, nullptr);
  const std::string uninterrupted = Bytes(options_.plan_path);
  // Three samples in each of two steps.
  for (int64_t stop_after = 0; stop_after < 6; ++stop_after) {
    const TempFolder output;
    options_.plan_path = output.File("plan.json");
    CancelFlag cancel = false;
    CancelAfter first(stop_after, &cancel);
    options_.cancel = &cancel;
    options_.progress = &first;
    EXPECT_THROW(Calibrate(options_, *model_, nullptr), Cancelled);
    EXPECT_FALSE(FileExists(options_.plan_path));

    cancel = false;
    CancelAfter second(1000, &cancel);
    options_.progress = &second;
    Calibrate(options_, *model_, nullptr);
    EXPECT_EQ(second.advanced, 6 - stop_after);
    EXPECT_EQ(Bytes(options_.plan_path), uninterrupted) << stop_after;
    EXPECT_EQ(output.NumEntries(), 2u);
  }
}

TEST_F(CalibrateTest, WithoutScalesAndWithoutAFile) {
  options_.search_key_scales = false;
  options_.plan_path.clear();
  options_.samples.effective_len = 0;
  const Plan plan = Calibrate(options_, *model_, nullptr);
  EXPECT_TRUE(plan.key_scales.empty());
  EXPECT_TRUE(plan.alpha.empty());
  EXPECT_EQ(plan.record.effective_len, 24);
  EXPECT_EQ(plan.k_bits.size(), 3u);
  EXPECT_EQ(output_.NumEntries(), 0u);
}

TEST_F(CalibrateTest, RefusesAnImpossibleBudgetBeforeMeasuring) {
  options_.allocation.memory_budget_bytes = Budget(2, 2, 2) - 1;
  CancelFlag cancel = false;
  CancelAfter progress(1000, &cancel);
  options_.progress = &progress;
  ExpectError<InvalidInput>([&] { Calibrate(options_, *model_, nullptr); },
                            {"memory-budget", std::to_string(Budget(2, 2, 2))});
  EXPECT_EQ(progress.num_begun, 0);
}

TEST_F(CalibrateTest, ReallocatesFromItsSensitivities) {
  const Plan plan = Calibrate(options_, *model_, nullptr);
  // The same inputs give the same widths.
  AllocationOptions inputs = AllocationOptionsOf(plan);
  EXPECT_EQ(inputs.fbit_choices, (std::vector<int>{4, 2}));
  EXPECT_FALSE(inputs.separate_kv);
  const Plan same = Reallocate(plan, inputs);
  EXPECT_EQ(same.k_bits, plan.k_bits);
  EXPECT_EQ(same.budget_bytes, plan.budget_bytes);

  inputs.memory_budget_bytes = Budget(4, 2, 2);
  const Plan smaller = Reallocate(plan, inputs);
  EXPECT_EQ(std::count(smaller.k_bits.begin(), smaller.k_bits.end(), 4), 1);
  EXPECT_EQ(smaller.memory_budget_bytes, Budget(4, 2, 2));
  EXPECT_EQ(smaller.alpha, plan.alpha);
  EXPECT_EQ(smaller.sensitivity.v, plan.sensitivity.v);

  inputs.separate_kv = true;
  inputs.fbit_choices = {8, 4, 2};
  inputs.max_len = 500;
  const Plan separate = Reallocate(plan, inputs);
  EXPECT_EQ(separate.max_len, 500);
  EXPECT_LE(std::accumulate(separate.budget_bytes.begin(), separate.budget_bytes.end(), int64_t{0}),
            inputs.memory_budget_bytes);

  Plan without = plan;
  without.sensitivity = {};
  ExpectError<InvalidInput>([&] { Reallocate(without, inputs); }, {"sensitivities"});
}

TEST(CheckpointPath, StandsBesideThePlan) {
  EXPECT_EQ(CheckpointPath("a/plan.json", "rep-scales"), "a/plan.rep-scales.partial.json");
  EXPECT_EQ(CheckpointPath("plan", "rep-scales"), "plan.rep-scales.partial.json");
}

}  // namespace
}  // namespace pmkvq
