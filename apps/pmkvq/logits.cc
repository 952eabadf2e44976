// pmkvq logits: all logits of a prompt, for comparison with other implementations.
#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/research/methods/prompt_logits.h"
#include "terminal.h"
#include "token_ids.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  std::string prompt_ids;
  std::string out;
  WeightCommandOptions weights;
  KvCommandOptions kv;
};

void ComputeLogits(const Options& options) {
  const std::shared_ptr<const Model> model =
      options.weights.Load(options.model, options.kv.threads);
  const std::vector<int32_t> ids = ParseIds(options.prompt_ids, "--prompt-ids");
  const SpecEngineOptions engine = options.kv.Resolve(1);
  CheckPrompt(ids, model->config(), "--prompt-ids");
  CheckPlan(engine, *model);
  const Tensor logits = PromptLogits(*model, ids, engine, InterruptFlag());
  WriteSafetensors(options.out, {{"logits", logits.view()}});
  PrintError("wrote " + options.out);
}

}  // namespace

void AddLogits(CLI::App& app) {
  auto options = std::make_shared<Options>();
  options->kv.settings.kv_dtype = DType::kF32;
  CLI::App* command = app.add_subcommand("logits", "write the logits of every prompt position");
  NamesFile(
      command->add_option("--model", options->model, "model folder or .gguf file")->required(),
      FileKind::kModel);
  command->add_option("--prompt-ids", options->prompt_ids, "token ids: 1,2,3")
      ->transform(TokenIds())
      ->required();
  NamesFile(
      command->add_option("--out", options->out, "safetensors file: logits [T, V] f32")->required(),
      FileKind::kOutput);
  options->weights.RegisterWithRanks(*command);
  options->kv.Register(*command);
  AddExamples(
      *command,
      {"pmkvq logits --model models/longcot-10m --prompt-ids 39,68,508 --out logits.safetensors",
       "pmkvq logits --model MODEL --prompt-ids 1,2,3 --kv static-4 --out logits.safetensors"});
  command->callback([options] { ComputeLogits(*options); });
}

}  // namespace pmkvq::cli
