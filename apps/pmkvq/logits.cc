// pmkvq logits: all logits of a prompt, for comparison with other implementations.
#include <fmt/format.h>

#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "pmkvq/io/safetensors.h"
#include "pmkvq/research/methods/registry.h"
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
  const auto num_tokens = static_cast<int64_t>(ids.size());
  CheckPrompt(ids, model->config(), "--prompt-ids");
  CheckPlan(engine, *model);
  const KvRequirements requirements{
      model->kv_geometry(),
      1,
      std::max(engine.max_len, num_tokens),
      engine.num_threads,
      &model->rope(),
      &model->checkpoint(),
      engine.chunk,
      engine.kv.kv_dtype == DType::kF16 ? model->device() : DeviceId{}};
  const std::unique_ptr<KvStore> store = MakeKvStore(engine.kv, requirements);
  const SequenceId seq = store->Open().value();
  Tensor logits(DType::kF32, {num_tokens, model->config().vocab_size});
  ForwardWorkspace workspace;
  for (int64_t start = 0; start < num_tokens; start += engine.chunk) {
    ExitIfInterrupted("logits");
    const int64_t count = std::min(engine.chunk, num_tokens - start);
    const ReserveResult reserved = store->Reserve(seq, count);
    if (reserved == ReserveResult::kFailed) ThrowIfFailed({{0, *store->FailureOf(seq)}});
    if (reserved == ReserveResult::kBudgetExhausted) {
      const KvBudget limits = ResolveKvBudget(engine.kv, requirements);
      throw InvalidInput(
          "--kv-budget",
          fmt::format(
              "{} bytes are too few for a prompt of {} tokens; the smallest that works is {}",
              limits.total_bytes(), num_tokens, limits.SmallestThatHolds(num_tokens)));
    }
    const ForwardChunk chunk{
        seq, std::span(ids).subspan(static_cast<size_t>(start), static_cast<size_t>(count)), start,
        ForwardChunk::Logits::kAll};
    ThrowIfFailed(model->Forward({&chunk, 1}, *store, workspace, engine.num_threads));
    ThrowIfFailed(model->FailuresOfLogits({&chunk, 1}, workspace));
    std::copy_n(workspace.logits.begin(), count * model->config().vocab_size,
                logits.As<float>() + start * model->config().vocab_size);
  }
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
  options->weights.Register(*command);
  options->kv.Register(*command);
  AddExamples(
      *command,
      {"pmkvq logits --model models/longcot-10m --prompt-ids 39,68,508 --out logits.safetensors",
       "pmkvq logits --model MODEL --prompt-ids 1,2,3 --kv static-4 --out logits.safetensors"});
  command->callback([options] { ComputeLogits(*options); });
}

}  // namespace pmkvq::cli
