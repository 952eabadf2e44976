// The steps of calibration, timed one by one.
#include <algorithm>
#include <array>
#include <functional>
#include <memory>

#include "pmkvq/base/random.h"
#include "pmkvq/io/dataset.h"
#include "pmkvq/io/file.h"
#include "pmkvq/research/bench/rounds.h"
#include "pmkvq/research/bench/shapes.h"
#include "pmkvq/research/bench/synthetic.h"
#include "pmkvq/research/calib/allocate.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/tensor/device/device_info.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq {
namespace {

enum StepIndex : size_t { kSampling, kSensitivity, kKeyScales, kAllocation, kAll };
constexpr std::array<const char*, 5> kStepNames = {"samples", "sensitivity, max keys", "key scales",
                                                   "allocation", "all"};
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

using DrawFunction = std::function<Samples()>;

// All steps once. Returns the number of tokens that were measured.
int64_t RunSteps(const BenchOptions& options, const DrawFunction& draw, int64_t seq_len,
                 const Model& model, StepTimes& times) {
  double sum = 0;
  const auto time = [&](StepIndex step, const auto& action) {
    const double seconds = TimeSeconds(action);
    times[step].Add(seconds);
    sum += seconds;
  };
  Samples samples;
  time(kSampling, [&] { samples = draw(); });
  CalibrationContext context;
  context.model = &model;
  context.samples = &samples;
  context.effective_len = seq_len;
  context.num_threads = options.num_threads;
  context.cancel = options.cancel;
  SensitivityAndKeys measured;
  time(kSensitivity, [&] { measured = MeasureSensitivityAndKeys(context); });
  time(kKeyScales, [&] { SearchRepScales(context, measured.max_keys, {}); });
  time(kAllocation, [&] { Allocate(measured.sensitivity, HalfwayBudget(model)); });
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

std::shared_ptr<const Model> LoadModel(const BenchOptions& options,
                                       const CalibrationBenchOptions& calibration) {
  ModelOptions model_options{WeightMode::kAsStored, options.num_threads};
  model_options.device = calibration.device;
  return Model::Load(calibration.model, model_options);
}

std::shared_ptr<const Model> MakeModel(const BenchOptions& options,
                                       const CalibrationBenchOptions& calibration) {
  // 0: all of the shape.
  ModelConfig shape = NamedShape(options.shape, options.layers);
  shape.vocab_size = calibration.vocab_size;
  CheckMemory(SyntheticModelBytes(shape), "give fewer --layers");
  return SyntheticModel(shape, WeightMode::kAsStored, options.num_threads, calibration.device);
}

DrawFunction TokensOfDataset(const CalibrationBenchOptions& calibration,
                             const ModelConfig& config) {
  SampleOptions options;
  options.dataset = calibration.dataset.empty() ? JoinPath(calibration.model, "calibration.jsonl")
                                                : calibration.dataset;
  options.num_samples = calibration.num_samples;
  options.seq_len = calibration.seq_len;
  return [options, &config, tokenizer = TokenizerForRows(options.dataset, calibration.model)] {
    return DrawSamples(options, config, tokenizer.get(), nullptr);
  };
}

DrawFunction RandomTokens(const CalibrationBenchOptions& calibration, const ModelConfig& config) {
  return [calibration, &config] {
    Random random(42);
    Samples samples;
    samples.seq_len = calibration.seq_len;
    for (int64_t i = 0; i < calibration.num_samples; ++i) {
      std::vector<int32_t>& tokens = samples.tokens.emplace_back();
      for (int64_t t = 0; t < calibration.seq_len; ++t) {
        tokens.push_back(
            static_cast<int32_t>(random.Below(static_cast<uint64_t>(config.vocab_size))));
      }
    }
    return samples;
  };
}

}  // namespace

BenchReport BenchCalibration(const BenchOptions& options,
                             const CalibrationBenchOptions& calibration) {
  internal::CheckOptions(options);
  const bool is_synthetic = calibration.model.empty();
  const std::shared_ptr<const Model> model =
      is_synthetic ? MakeModel(options, calibration) : LoadModel(options, calibration);
  const DrawFunction draw = is_synthetic ? RandomTokens(calibration, model->config())
                                         : TokensOfDataset(calibration, model->config());

  StepTimes times;
  int64_t num_tokens = 0;
  Ceilings ceilings(options.num_threads);
  if (options.progress != nullptr) options.progress->Begin("calibrate", options.repeat, 0);
  for (int i = 0; i < options.repeat; ++i) {
    ceilings.Measure();
    num_tokens = RunSteps(options, draw, calibration.seq_len, *model, times);
    if (options.progress != nullptr) options.progress->Advance(1);
  }
  if (options.progress != nullptr) options.progress->End();

  BenchReport report;
  report.facts.Add("bench", std::string("calibrate"));
  report.facts.Add("model", is_synthetic ? options.shape : calibration.model, "model");
  if (calibration.device.device != Device::kCpu) {
    report.facts.Add("device", Query(calibration.device).name, "device");
  }
  report.facts.Add("samples", calibration.num_samples, "samples");
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
