// pmkvq sensitivity, max-keys, rep-scales: the measuring steps of calibration one by one.
#include <fmt/format.h>

#include "calibration_run.h"
#include "commands.h"
#include "common_options.h"
#include "pmkvq/calib/calibrate.h"
#include "pmkvq/calib/calibration.h"
#include "pmkvq/calib/scale_files.h"
#include "pmkvq/calib/sensitivity_file.h"
#include "pmkvq/io/json.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

// What the three commands share.
struct StepOptions {
  std::string model;
  SampleCommandOptions data;
  std::string checkpoint;
  int threads = 0;

  void Register(CLI::App& command) {
    command.add_option("--model", model, "model folder")->required();
    command.add_option("--checkpoint", checkpoint,
                       "file for partial results; a rerun after an interrupt resumes from it");
    command.add_option("--threads", threads, "worker threads (0: all processors)")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    data.Register(command);
    RefuseQuantizedWeights(command);
  }
  // The samples decide what a checkpoint belongs to; nothing else has to.
  CalibrationRunOptions Resolve() const {
    return {model, data.Resolve(), threads, checkpoint, /*fingerprint=*/""};
  }
};

struct SensitivityOptions {
  StepOptions step;
  std::string json;
};

void RunSensitivity(const SensitivityOptions& options) {
  CheckWritable(options.json);
  const CalibrationRun run(options.step.Resolve());
  SensitivityFile file;
  file.sensitivity = MeasureSensitivity(run.context());
  file.num_blocks = run.model().config().num_layers;
  file.model_identity = run.model().checkpoint().Identity();
  file.record = run.Record();
  std::string text = SensitivityJson(file);
  text.pop_back();  // WriteJson ends the text with a newline itself.
  WriteJson(options.json, text);
}

struct MaxKeysOptions {
  StepOptions step;
  std::string out;
};

void RunMaxKeys(const MaxKeysOptions& options) {
  CheckWritable(options.out);
  const CalibrationRun run(options.step.Resolve());
  WriteScaleFile(ScaleFileKind::kMaxKeys, MeasureMaxKeys(run.context()),
                 run.model().checkpoint().Identity(), options.out);
}

struct RepScalesOptions {
  StepOptions step;
  RepScaleOptions search;
  std::string max_keys;
  std::string out;
  std::string json;
};

void RunRepScales(const RepScalesOptions& options) {
  CheckWritable(options.out);
  CheckWritable(options.json);
  const CalibrationRun run(options.step.Resolve());
  const std::vector<Tensor> max_keys =
      ReadScaleFile(ScaleFileKind::kMaxKeys, run.model().kv_geometry(),
                    run.model().checkpoint().Identity(), options.max_keys);
  const RepScales result = SearchRepScales(run.context(), max_keys, options.search);
  if (!options.out.empty()) {
    WriteScaleFile(ScaleFileKind::kRepScales, result.scales, run.model().checkpoint().Identity(),
                   options.out);
  }
  JsonWriter json;
  json.BeginObject();
  json.Key("alpha").Array(result.alpha);
  json.Key("loss").BeginArray();
  for (const std::vector<double>& losses : result.loss) json.Array(losses);
  json.EndArray();
  json.Key("k_bits").Int(options.search.k_bits);
  json.Key("v_bits").Int(options.search.v_bits);
  json.EndObject();
  WriteJson(options.json, json.text());
}

}  // namespace

void AddSensitivity(CLI::App& app) {
  auto options = std::make_shared<SensitivityOptions>();
  CLI::App* command = app.add_subcommand(
      "sensitivity",
      "first-order sensitivity of the loss to K and V quantisation, per block and width");
  options->step.Register(*command);
  command->add_option("--json", options->json, "output file (- for stdout)")->required();
  command->callback([options] { RunSensitivity(*options); });
}

void AddMaxKeys(CLI::App& app) {
  auto options = std::make_shared<MaxKeysOptions>();
  CLI::App* command =
      app.add_subcommand("max-keys", "largest key magnitude per block, KV head and channel pair");
  options->step.Register(*command);
  command->add_option("--out", options->out, "safetensors file: max_keys.{block}")->required();
  command->callback([options] { RunMaxKeys(*options); });
}

void AddRepScales(CLI::App& app) {
  auto options = std::make_shared<RepScalesOptions>();
  CLI::App* command =
      app.add_subcommand("rep-scales", "search the key reparameterisation exponent of every block");
  options->step.Register(*command);
  command->add_option("--max-keys", options->max_keys, "file made by pmkvq max-keys")->required();
  command->add_option("--k-bits", options->search.k_bits, "width of keys in the search")
      ->check(CLI::IsMember({8, 4, 2}))
      ->capture_default_str();
  command->add_option("--v-bits", options->search.v_bits, "width of values in the search")
      ->check(CLI::IsMember({8, 4, 2}))
      ->capture_default_str();
  command->add_option("--grid", options->search.grid, "grid points: alpha = 1 - n / grid")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("--out", options->out, "safetensors file: rep_scales.{block}");
  command->add_option("--json", options->json, "alpha and losses as JSON (- for stdout)");
  command->callback([options] {
    if (options->out.empty() && options->json.empty()) {
      throw CLI::RequiredError("--out or --json");
    }
    RunRepScales(*options);
  });
}

}  // namespace pmkvq::cli
