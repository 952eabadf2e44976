// The steps of calibration, timed one by one.
#include <algorithm>
#include <array>
#include <memory>

#include "pmkvq/io/dataset.h"
#include "pmkvq/io/file.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/calib/allocate.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq {
namespace {

enum StepIndex : size_t { kSampling, kMaxKeys, kKeyScales, kSensitivity, kAllocation, kAll };
constexpr std::array<const char*, 6> kStepNames = {"samples",     "max keys",   "key scales",
                                                   "sensitivity", "allocation", "all"};
using StepTimes = std::array<Measurements, kStepNames.size()>;

// A budget between those of 2 and of 4 bits in all blocks, so that there is something to decide.
AllocationOptions HalfwayBudget(const Model& model) {
  AllocationOptions options;
  options.cache.geometry = model.kv_geometry();
  options.max_len = model.config().max_position_embeddings;
  const int64_t both = BlockBytes(options.cache, 0, options.max_len, 2, 2) +
                       BlockBytes(options.cache, 0, options.max_len, 4, 4);
  options.memory_budget_bytes = both / 2 * options.cache.geometry.num_layers();
  return options;
}

// All steps once. Returns the number of tokens that were measured.
int64_t RunSteps(const BenchOptions& options, const SampleOptions& sample_options,
                 const Model& model, const Tokenizer* tokenizer, StepTimes& times) {
  double sum = 0;
  const auto time = [&](StepIndex step, const auto& action) {
    const double seconds = TimeSeconds(action);
    times[step].Add(seconds);
    sum += seconds;
  };
  Samples samples;
  time(kSampling,
       [&] { samples = DrawSamples(sample_options, model.config(), tokenizer, nullptr); });
  CalibrationContext context;
  context.model = &model;
  context.samples = &samples;
  context.effective_len = sample_options.seq_len;
  context.num_threads = options.num_threads;
  context.cancel = options.cancel;
  std::vector<Tensor> max_keys;
  time(kMaxKeys, [&] { max_keys = MeasureMaxKeys(context); });
  time(kKeyScales, [&] { SearchRepScales(context, max_keys, {}); });
  Sensitivity sensitivity;
  time(kSensitivity, [&] { sensitivity = MeasureSensitivity(context); });
  time(kAllocation, [&] { Allocate(sensitivity, HalfwayBudget(model)); });
  times[kAll].Add(sum);
  int64_t num_tokens = 0;
  for (const std::vector<int32_t>& sample : samples.tokens) num_tokens += std::ssize(sample);
  return num_tokens;
}

// Rows of token ids need none, and one that is refused must not stop them.
std::shared_ptr<const Tokenizer> TokenizerForRows(const std::string& dataset,
                                                  const std::string& model) {
  const std::vector<TextRow> rows = LoadTextRows(dataset);
  const bool has_text = std::any_of(rows.begin(), rows.end(),
                                    [](const TextRow& row) { return row.input_ids.empty(); });
  return has_text && Tokenizer::IsIn(model) ? Tokenizer::Load(model) : nullptr;
}

}  // namespace

BenchReport BenchCalibration(const BenchOptions& options,
                             const CalibrationBenchOptions& calibration) {
  internal::CheckOptions(options);
  const std::shared_ptr<const Model> model =
      Model::Load(calibration.model, {WeightMode::kAsStored, options.num_threads});
  SampleOptions sample_options;
  sample_options.dataset = calibration.dataset.empty()
                               ? JoinPath(calibration.model, "calibration.jsonl")
                               : calibration.dataset;
  sample_options.num_samples = calibration.num_samples;
  sample_options.seq_len = calibration.seq_len;
  const std::shared_ptr<const Tokenizer> tokenizer =
      TokenizerForRows(sample_options.dataset, calibration.model);

  StepTimes times;
  int64_t num_tokens = 0;
  Ceilings ceilings(options.num_threads);
  if (options.progress != nullptr) options.progress->Begin("calibrate", options.repeat, 0);
  for (int i = 0; i < options.repeat; ++i) {
    ceilings.Measure();
    num_tokens = RunSteps(options, sample_options, *model, tokenizer.get(), times);
    if (options.progress != nullptr) options.progress->Advance(1);
  }
  if (options.progress != nullptr) options.progress->End();

  BenchReport report;
  report.facts.Add("bench", std::string("calibrate"));
  report.facts.Add("model", calibration.model, "model");
  report.facts.Add("seq_len", calibration.seq_len, "tokens per sample");
  report.facts.Add("tokens", num_tokens, "tokens");
  report.facts.Add("repeat", int64_t{options.repeat});
  ceilings.AddTo(report.facts);
  BenchTable table{"rows", "", {}};
  for (size_t step = 0; step < times.size(); ++step) {
    const double seconds = times[step].Median();
    BenchFields row;
    row.Add("step", std::string(kStepNames[step]), "step");
    row.AddSpread("seconds", times[step].ToSpread(), "seconds", 3);
    row.Add("percent", 100.0 * seconds / times[kAll].Median(), "% of all", 1);
    row.Add("tokens_per_s", static_cast<double>(num_tokens) / seconds);
    table.rows.push_back(row);
  }
  report.facts.Add("total_seconds", times[kAll].Median());
  report.tables.push_back(std::move(table));
  return report;
}

}  // namespace pmkvq
