// Texts, placements, and the analyses of calibration on the tiny model.
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "pmkvq/base/error.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/analysis/interpolation.h"
#include "pmkvq/research/analysis/placement.h"
#include "pmkvq/research/analysis/texts.h"
#include "pmkvq/research/analysis/transfer.h"
#include "support/calibration_support.h"
#include "support/engine_fixture.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::RandomPrompt;
using testing_support::RandomSamples;
using testing_support::TinyFolder;
using testing_support::TinyModel;

using Texts = std::vector<std::vector<int32_t>>;

// Ids begin, begin + 1, ...
std::vector<int32_t> Ascending(int32_t begin, size_t count) {
  std::vector<int32_t> ids(count);
  std::iota(ids.begin(), ids.end(), begin);
  return ids;
}

TEST(SplitTask, HalvesShareNoText) {
  const Texts texts = {Ascending(0, 5),   Ascending(100, 9), Ascending(10, 4),
                       Ascending(200, 3), Ascending(20, 2),  Ascending(300, 6)};
  TaskTextOptions options;
  options.num_samples = 2;
  options.num_evaluation = 2;
  options.seq_len = 4;
  const TaskTexts task = SplitTask("sums", texts, options);
  // 0 1 2 3 4 10 11 12 13 ..., cut every four.
  EXPECT_EQ(task.calibration.tokens, (Texts{{0, 1, 2, 3}, {4, 10, 11, 12}}));
  EXPECT_EQ(task.calibration.seq_len, 4);
  EXPECT_EQ(task.evaluation, (Texts{{100, 101, 102, 103}, {300, 301, 302, 303}}));
}

TEST(SplitTask, NamesTheTaskThatIsTooSmall) {
  TaskTextOptions options;
  options.seq_len = 8;
  ExpectError<InvalidInput>(
      [&] {
        SplitTask("sums", {Ascending(0, 7), {1, 2}}, options);
      },
      {"task sums", "7 tokens", "8"});
  ExpectError<InvalidInput>([&] { SplitTask("sums", {Ascending(0, 9)}, options); }, {"1 texts"});
}

TEST(LongestTexts, TakesThoseThatFit) {
  const Texts texts = {Ascending(0, 3), Ascending(0, 9), Ascending(5, 3), {1}, Ascending(0, 4)};
  EXPECT_EQ(LongestTexts(texts, 3, 8), (Texts{Ascending(0, 4), Ascending(0, 3), Ascending(5, 3)}));
  EXPECT_EQ(LongestTexts(texts, 9, 3), (Texts{Ascending(0, 3), Ascending(5, 3)}));
}

TEST(ProblemText, IsThePromptAndTheChain) {
  ProblemRow row;
  row.problem = "What?";
  row.reference_chain = "That.";
  const ChatTemplate chat_template = ChatTemplate::BuiltIn("longcot");
  EXPECT_EQ(ProblemText(row, chat_template),
            "<|im_start|>user\nWhat?<|im_end|>\n<|im_start|>assistant\n<think>\nThat.");
}

AllocationOptions TinyAllocation() {
  AllocationOptions options;
  options.cache.geometry = UniformKvGeometry{6, 4, 2, 16};
  options.max_len = 400;
  options.fbit_choices = {4, 2};
  return options;
}

TEST(Placement, TheChoosingBudgetHoldsAQuarterAtTheWidestChoice) {
  const AllocationOptions options = TinyAllocation();
  EXPECT_EQ(ChoosingBudget(options), 2 * BlockBytes(options.cache, 0, 400, 4, 4) +
                                         4 * BlockBytes(options.cache, 0, 400, 2, 2));
}

// No allocation gives the rope part of latents less than its floor.
TEST(Placement, TheChoosingBudgetOfLatentsHoldsTheFloor) {
  AllocationOptions options = TinyAllocation();
  options.cache.geometry.blocks.assign(6, LatentBlockOf(4, 64, 16));
  EXPECT_EQ(ChoosingBudget(options), 2 * BlockBytes(options.cache, 0, 400, 4, 8) +
                                         4 * BlockBytes(options.cache, 0, 400, 2, 8));
  options.memory_budget_bytes = ChoosingBudget(options);
  CheckAllocationOptions(options);
}

TEST(Placement, WidthsReadAsText) {
  EXPECT_EQ(WidthsText({4, 2, 2}, {4, 2, 2}), "422");
  EXPECT_EQ(WidthsText({4, 2}, {2, 2}), "K 42 V 22");
  EXPECT_EQ(WidthsText({16, 2}, {16, 2}), "16 2");
}

TEST(Placement, BlockSensitivitiesAreOfTheNarrowestChoice) {
  Sensitivity sensitivity;
  sensitivity.k = {{0, 0}, {1, 2}, {10, 20}, {100, 200}};
  sensitivity.v = {{0, 0}, {3, 4}, {30, 40}, {300, 400}};
  EXPECT_EQ(BlockSensitivities(sensitivity, {8, 4}), (std::vector<double>{40, 60}));
  EXPECT_EQ(BlockSensitivities(sensitivity, {4, 2}), (std::vector<double>{400, 600}));
}

std::shared_ptr<const Model> SixBlocks() {
  TinyModel tiny;
  tiny.layers = 6;
  return TinyFolder(tiny).Load();
}

TaskTexts RandomTask(const std::string& name, uint64_t seed) {
  TaskTexts task;
  task.name = name;
  task.calibration = RandomSamples(48, {64, 64}, seed);
  task.evaluation = {RandomPrompt(400, seed + 1, 48), RandomPrompt(300, seed + 2, 48)};
  return task;
}

Transfer TinyTransfer(const std::shared_ptr<const Model>& model) {
  TransferOptions options;
  options.allocation = TinyAllocation();
  options.allocation.memory_budget_bytes = ChoosingBudget(options.allocation);
  return MeasureTransfer(model, {RandomTask("a", 1), RandomTask("b", 5)}, options);
}

TEST(Transfer, MeasuresEveryPlacementOnEveryTask) {
  const auto model = SixBlocks();
  const Transfer transfer = TinyTransfer(model);
  ASSERT_EQ(transfer.rows.size(), 5u);
  const std::vector<std::string> names = {"a", "b", "all tasks", "mirrored", "uniform"};
  for (size_t i = 0; i < names.size(); ++i) {
    const TransferRow& row = transfer.rows[i];
    EXPECT_EQ(row.name, names[i]);
    EXPECT_EQ(row.is_reference, i >= 2);
    // Uniform budgets are whole bytes per block.
    EXPECT_NEAR(static_cast<double>(
                    std::accumulate(row.budget_bytes.begin(), row.budget_bytes.end(), int64_t{0})),
                static_cast<double>(transfer.allocation.memory_budget_bytes), 6);
    ASSERT_EQ(row.on_task.size(), 2u);
    for (size_t task = 0; task < 2; ++task) {
      EXPECT_EQ(row.on_task[task].num_predictions, 399 + 299);
      EXPECT_GT(row.on_task[task].kl, 0);
      EXPECT_EQ(row.on_task[task].fp16_loss, transfer.rows[0].on_task[task].fp16_loss);
    }
    if (i < 4) {
      EXPECT_EQ(std::count(row.k_bits.begin(), row.k_bits.end(), 4), 2) << row.name;
    }
  }
  std::vector<int> reversed = transfer.rows[2].k_bits;
  std::reverse(reversed.begin(), reversed.end());
  EXPECT_EQ(transfer.rows[3].k_bits, reversed);
  EXPECT_TRUE(transfer.rows[4].k_bits.empty());
  EXPECT_EQ(transfer.rank_correlation[0][0], 1);
  EXPECT_EQ(transfer.rank_correlation[0][1], transfer.rank_correlation[1][0]);
}

// A row's number is what its placement measures alone, whatever ran beside it.
TEST(Transfer, ARowIsWhatItsPlanMeasures) {
  const auto model = SixBlocks();
  const Transfer transfer = TinyTransfer(model);
  const TransferRow& row = transfer.rows[3];
  Plan plan;
  plan.geometry = model->kv_geometry();
  plan.model_identity = model->checkpoint().Identity();
  plan.k_bits = row.k_bits;
  plan.v_bits = row.v_bits;
  plan.budget_bytes = row.budget_bytes;
  KvOptions cache;
  cache.spec = "pm-kvq";
  cache.plan = std::make_shared<const Plan>(plan);
  LockStepOptions options;
  options.chunk = 16;
  options.max_len = transfer.allocation.max_len;
  const CacheMeans alone = MeasureMeans(model, transfer.tasks[1].evaluation, {cache}, options)[0];
  EXPECT_EQ(alone.kl, row.on_task[1].kl);
  EXPECT_EQ(alone.loss, row.on_task[1].loss);
}

TEST(Transfer, VerdictLeavesOutTasksThatNoCacheHadToQuantise) {
  Transfer transfer;
  for (const char* name : {"a", "b", "c"}) transfer.tasks.emplace_back().name = name;
  const auto add = [&](const std::string& name, bool is_reference, std::vector<double> kls) {
    TransferRow& row = transfer.rows.emplace_back();
    row.name = name;
    row.is_reference = is_reference;
    for (const double kl : kls) row.on_task.emplace_back().kl = kl;
  };
  add("a", false, {1e-2, 4e-2, 1e-10});
  add("b", false, {2e-2, 1e-2, 3e-2});
  add("c", false, {2e-2, 4e-2, 2e-10});
  add("uniform", true, {1e-2, 1e-2, 1e-9});
  // Own: 1e-2 and 1e-2. Others': 4e-2, 2e-2, 2e-2, 4e-2.
  EXPECT_EQ(TransferVerdict(transfer),
            "Mean KL to fp16 (geometric) with a task's own sensitivities: 0.01, with another "
            "task's: 0.02828 (+183 %), uniform: 0.01. Left out: c, whose texts some cache held "
            "without quantising them.");
  for (TransferRow& row : transfer.rows) {
    for (CacheMeans& means : row.on_task) means.kl = 0;
  }
  EXPECT_NE(TransferVerdict(transfer).find("there is no damage to compare"), std::string::npos);
}

TEST(Transfer, JsonAndPageHoldTheMatrix) {
  const Transfer transfer = TinyTransfer(SixBlocks());
  const JsonValue json = JsonValue::Parse(TransferJson(transfer, "the command"), "json");
  EXPECT_EQ(json.At("analysis").AsString(), "transfer");
  EXPECT_EQ(json.At("command").AsString(), "the command");
  EXPECT_EQ(json.At("tasks").size(), 2u);
  EXPECT_EQ(json.At("tasks").At(size_t{0}).At("sensitivity").At("k").At("2").size(), 6u);
  EXPECT_EQ(json.At("rank_correlation").At(size_t{1}).size(), 2u);
  ASSERT_EQ(json.At("rows").size(), 5u);
  const JsonValue on = json.At("rows").At(size_t{0}).At("on").At("b");
  EXPECT_EQ(on.At("kl").AsDouble(), transfer.rows[0].on_task[1].kl);
  EXPECT_DOUBLE_EQ(on.At("loss_increase").AsDouble(),
                   on.At("loss").AsDouble() - on.At("fp16_loss").AsDouble());
  const std::string html = TransferPage(transfer, {"the command", "", "", "", ""}).Render();
  EXPECT_NE(html.find("calibrated on b"), std::string::npos);
  EXPECT_NE(html.find("chart-2"), std::string::npos);
}

InterpolationOptions TinyInterpolation(const AllocationOptions& allocation) {
  InterpolationOptions options;
  options.allocation = allocation;
  options.allocation.memory_budget_bytes = ChoosingBudget(allocation);
  options.factors = {1, 4};
  options.samples = {RandomSamples(48, {32, 32}, 1), RandomSamples(48, {64}, 2)};
  options.texts = {RandomPrompt(400, 3, 48)};
  options.rep_scales.grid = 3;
  return options;
}

TEST(Interpolation, HasAPointPerLengthAndFactor) {
  const auto model = SixBlocks();
  const Interpolation result = MeasureInterpolation(model, TinyInterpolation(TinyAllocation()));
  ASSERT_EQ(result.points.size(), 4u);
  EXPECT_EQ(result.num_samples, (std::vector<int64_t>{2, 1}));
  EXPECT_EQ(result.text_tokens, (std::vector<int64_t>{400}));
  for (size_t i = 0; i < 4; ++i) {
    const InterpolationPoint& point = result.points[i];
    EXPECT_EQ(point.seq_len, i < 2 ? 32 : 64);
    EXPECT_EQ(point.factor, i % 2 == 0 ? 1 : 4);
    EXPECT_EQ(point.alpha.size(), 6u);
    EXPECT_EQ(std::count(point.k_bits.begin(), point.k_bits.end(), 4), 2);
    EXPECT_EQ(point.cache.num_predictions, 399);
    EXPECT_GT(point.cache.kl, 0);
    EXPECT_GT(point.placement_only.kl, 0);
    if (point.factor == 1) {
      EXPECT_EQ(point.rank_correlation, 1);
    }
  }
  // The same texts at other positions: another loss.
  EXPECT_NE(result.points[0].calibration_loss, result.points[1].calibration_loss);
}

// What is measured at factor 4 is what the steps of calibration measure at that effective length.
TEST(Interpolation, StretchesAsCalibrationDoes) {
  const auto model = SixBlocks();
  const InterpolationOptions options = TinyInterpolation(TinyAllocation());
  const Interpolation result = MeasureInterpolation(model, options);
  CalibrationContext context;
  context.model = model.get();
  context.samples = &options.samples[0];
  context.effective_len = 128;
  EXPECT_EQ(result.points[1].sensitivity.k, MeasureSensitivity(context).k);
  EXPECT_EQ(result.points[1].alpha,
            SearchRepScales(context, MeasureMaxKeys(context), options.rep_scales).alpha);
}

TEST(Interpolation, JsonAndPageHoldThePoints) {
  const Interpolation result =
      MeasureInterpolation(SixBlocks(), TinyInterpolation(TinyAllocation()));
  const JsonValue json = JsonValue::Parse(InterpolationJson(result, "c"), "json");
  EXPECT_EQ(json.At("analysis").AsString(), "interpolation");
  ASSERT_EQ(json.At("points").size(), 4u);
  const JsonValue last = json.At("points").At(size_t{3});
  EXPECT_EQ(last.At("effective_len").AsInt(), 256);
  EXPECT_EQ(last.At("cache").At("kl").AsDouble(), result.points[3].cache.kl);
  const std::string html = InterpolationPage(result, {"c", "", "", "", ""}).Render();
  EXPECT_NE(html.find("64 tokens, s = 4"), std::string::npos);
  EXPECT_NE(html.find("chart-3"), std::string::npos);
}

TEST(Interpolation, RefusesNothingToDo) {
  InterpolationOptions options = TinyInterpolation(TinyAllocation());
  options.texts.clear();
  ExpectError<InvalidInput>([&] { MeasureInterpolation(SixBlocks(), options); }, {"--data"});
}

}  // namespace
}  // namespace pmkvq
