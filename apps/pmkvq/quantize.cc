// pmkvq quantize: a model folder with weights of 4 bits.
#include <fmt/format.h>

#include "calibration_run.h"
#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/io/quantized_folder.h"
#include "pmkvq/research/calib/round_weights.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  std::string out;
  SampleCommandOptions data;
  int threads = 0;

  Options() { data.samples.num_samples = 128; }
};

std::map<std::string, std::string> RecordOf(const CalibrationRecord& record) {
  return {{"rounding", "second moments of inputs"},
          {"dataset", record.dataset},
          {"num_samples", fmt::format("{}", record.num_samples)},
          {"seq_len", fmt::format("{}", record.seq_len)}};
}

void Write(const Options& options, const Checkpoint& checkpoint, const RoundedWeights& rounded,
           const std::map<std::string, std::string>& made) {
  std::map<std::string, StoredBlocks> matrices;
  int64_t bytes = 0;
  for (const auto& [name, weight] : rounded.matrices) {
    matrices[name] = {weight.data.data(), weight.rows, weight.cols};
    bytes += std::ssize(weight.data);
  }
  WriteQuantizedFolder(checkpoint, matrices, made, options.out);
  PrintError(fmt::format(
      "wrote {}: {} matrices of 4 bits, {}{}", options.out, matrices.size(), FormatByteSize(bytes),
      rounded.num_unseen == 0
          ? ""
          : fmt::format("; {} of them, which no token of the samples met, are rounded "
                        "to the nearest: use more samples",
                        rounded.num_unseen)));
}

void Quantize(const Options& options) {
  CheckQuantizedFolder(Checkpoint::Open(options.model), options.out);
  if (options.data.samples.dataset.empty()) {
    const std::shared_ptr<const Model> model =
        LoadModel(options.model, WeightMode::kAsStored, options.threads);
    ProgressBar progress;
    CalibrationContext context;
    context.model = model.get();
    context.num_threads = ResolveThreads(options.threads);
    context.progress = &progress;
    context.cancel = InterruptFlag();
    Write(options, model->checkpoint(), RoundWeights(context), {{"rounding", "nearest"}});
    return;
  }
  CalibrationRunOptions run_options;
  run_options.model = options.model;
  run_options.samples = options.data.Resolve();
  run_options.tokenizer = options.data.tokenizer;
  run_options.threads = options.threads;
  const CalibrationRun run(run_options);
  Write(options, run.model().checkpoint(), RoundWeights(run.context()), RecordOf(run.Record()));
}

}  // namespace

void AddQuantize(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "quantize",
      "a model folder with weights of 4 bits, rounded for the inputs that a data set gives");
  NamesFile(command->add_option("--model", options->model, "model folder")->required(),
            FileKind::kModel);
  NamesFile(
      command->add_option("--out", options->out, "folder of the result; new or empty")->required(),
      FileKind::kOutputFolder);
  AddThreads(*command, options->threads);
  options->data.Register(*command);
  command->get_option("--dataset")
      ->required(false)
      ->description(
          "texts to round for: .jsonl (text or input_ids) or .txt; without it every weight is "
          "rounded "
          "to the nearest code, as --weights q4 does");
  AddExamples(*command, {"pmkvq quantize --model models/longcot-10m --out longcot-q4 --n-samples 4 "
                         "--seq-len 512 --dataset models/longcot-10m/calibration.jsonl",
                         "pmkvq quantize --model MODEL --dataset texts.jsonl --out MODEL-q4"});
  command->callback([options] { Quantize(*options); });
}

}  // namespace pmkvq::cli
