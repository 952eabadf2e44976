// pmkvq sensitivity, max-keys, rep-scales: the measuring steps of calibration one by one.
#include <fmt/format.h>

#include <filesystem>

#include "calibration_run.h"
#include "commands.h"
#include "common_options.h"
#include "fan_out_options.h"
#include "file_options.h"
#include "help_format.h"
#include "leaders.h"
#include "option_values.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/calib/calibrate.h"
#include "pmkvq/research/calib/calibration.h"
#include "pmkvq/research/calib/scale_files.h"
#include "pmkvq/research/calib/sensitivity_file.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

// What the three commands share.
struct StepOptions {
  std::string model;
  WeightCommandOptions weights;
  SampleCommandOptions data;
  std::string checkpoint;
  int threads = 0;
  FanOutCommandOptions fan_out;

  void Register(CLI::App& command) {
    NamesFile(command.add_option("--model", model, "model folder or .gguf file")->required(),
              FileKind::kModel);
    NamesFile(
        command.add_option("--checkpoint", checkpoint,
                           "file for partial results; a rerun after an interrupt resumes from it"),
        FileKind::kOutput);
    fan_out.Register(command, "samples", "--checkpoint");
    AddThreads(command, threads);
    data.Register(command);
    weights.Register(command);
  }
  // A checkpoint belongs to its samples and weights; no other option has to agree.
  CalibrationRunOptions Resolve() const {
    Communicator* const ranks = fan_out.Open(!checkpoint.empty());
    std::error_code error;
    if (std::filesystem::exists(checkpoint, error) &&
        !std::filesystem::is_regular_file(checkpoint, error)) {
      throw InvalidInput("--checkpoint", "found '" + checkpoint +
                                             "', expected a file: it is replaced, and removed at "
                                             "the end of the step");
    }
    return {.model = model,
            .weights = weights.mode(),
            .samples = data.Resolve(),
            .tokenizer = data.tokenizer,
            .threads = threads,
            .device = weights.device,
            .checkpoint = checkpoint,
            .fingerprint = "",
            .sharing = {fan_out.shard, ranks}};
  }
};

struct SensitivityOptions {
  StepOptions step;
  std::string json;
};

void RunSensitivity(const SensitivityOptions& options) {
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
  const CalibrationRun run(options.step.Resolve());
  const std::vector<Tensor> max_keys = MeasureMaxKeys(run.context());
  if (!IsFirstLeader()) return;
  WriteScaleFile(ScaleFileKind::kMaxKeys, max_keys, run.model().checkpoint().Identity(),
                 options.out);
  PrintError("wrote " + options.out);
}

struct RepScalesOptions {
  StepOptions step;
  RepScaleOptions search;
  std::string max_keys;
  std::string out;
  std::string json;
};

void RunRepScales(const RepScalesOptions& options) {
  const CalibrationRun run(options.step.Resolve());
  const std::vector<Tensor> max_keys =
      ReadScaleFile(ScaleFileKind::kMaxKeys, run.model().kv_geometry(),
                    run.model().checkpoint().Identity(), options.max_keys);
  const RepScales result = SearchRepScales(run.context(), max_keys, options.search);
  if (!IsFirstLeader()) return;
  if (!options.out.empty()) {
    WriteScaleFile(ScaleFileKind::kRepScales, result.scales, run.model().checkpoint().Identity(),
                   options.out);
    PrintError("wrote " + options.out);
  }
  JsonWriter json;
  json.BeginObject();
  json.Key("alpha").Array(result.alpha);
  json.Key("loss").BeginArray();
  for (const std::vector<double>& losses : result.loss) json.Array(losses);
  json.EndArray();
  if (!result.rope_alpha.empty()) {
    json.Key("rope_alpha").Array(result.rope_alpha);
    json.Key("rope_loss").BeginArray();
    for (const std::vector<double>& losses : result.rope_loss) json.Array(losses);
    json.EndArray();
  }
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
  AddJson(*command, options->json, "output file")->required();
  AddExamples(*command, {"pmkvq sensitivity --model models/longcot-10m --n-samples 2 --seq-len 256 "
                         "--dataset models/longcot-10m/calibration.jsonl --json s.json",
                         "pmkvq sensitivity --model MODEL --dataset texts.jsonl --n-samples 32 "
                         "--seq-len 2048 --checkpoint s.partial --json s.json"});
  command->callback([options] { RunAsPart([&] { RunSensitivity(*options); }); });
}

void AddMaxKeys(CLI::App& app) {
  auto options = std::make_shared<MaxKeysOptions>();
  CLI::App* command =
      app.add_subcommand("max-keys", "largest key magnitude per block, KV head and channel pair");
  options->step.Register(*command);
  NamesFile(
      command->add_option("--out", options->out, "safetensors file: max_keys.{block}")->required(),
      FileKind::kOutput);
  AddExamples(*command,
              {"pmkvq max-keys --model models/longcot-10m --n-samples 2 --seq-len 256 "
               "--dataset models/longcot-10m/calibration.jsonl --out max_keys.safetensors",
               "pmkvq max-keys --model MODEL --dataset texts.jsonl --effective-len 8192 "
               "--out max_keys.safetensors"});
  command->callback([options] { RunAsPart([&] { RunMaxKeys(*options); }); });
}

void AddRepScales(CLI::App& app) {
  auto options = std::make_shared<RepScalesOptions>();
  CLI::App* command =
      app.add_subcommand("rep-scales", "search the key reparameterisation exponent of every block");
  options->step.Register(*command);
  NamesFile(command->add_option("--max-keys", options->max_keys, "file made by pmkvq max-keys")
                ->required(),
            FileKind::kInput);
  command->add_option("--k-bits", options->search.k_bits, "width of keys in the search")
      ->transform(OneOf({"8", "4", "2"}))
      ->capture_default_str();
  command->add_option("--v-bits", options->search.v_bits, "width of values in the search")
      ->transform(OneOf({"8", "4", "2"}))
      ->capture_default_str();
  command->add_option("--grid", options->search.grid, "grid points: alpha = 1 - n / grid")
      ->transform(WholeNumber(1, 1000))
      ->capture_default_str();
  NamesFile(command->add_option("--out", options->out, "safetensors file: rep_scales.{block}"),
            FileKind::kOutput);
  AddJson(*command, options->json, "alpha and losses as JSON");
  AddExamples(*command, {"pmkvq rep-scales --model models/longcot-10m --n-samples 2 --seq-len 256 "
                         "--dataset models/longcot-10m/calibration.jsonl "
                         "--max-keys max_keys.safetensors --out scales.safetensors",
                         "pmkvq rep-scales --model MODEL --dataset texts.jsonl --grid 10 "
                         "--max-keys max_keys.safetensors --json -"});
  command->parse_complete_callback([options] {
    if (options->out.empty() && options->json.empty()) {
      throw CLI::RequiredError("--out or --json");
    }
  });
  command->callback([options] { RunAsPart([&] { RunRepScales(*options); }); });
}

}  // namespace pmkvq::cli
