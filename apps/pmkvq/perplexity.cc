// pmkvq perplexity: teacher-forced loss of texts under any cache.
#include <fmt/format.h>

#include <cmath>

#include "commands.h"
#include "common_options.h"
#include "fan_out_options.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/io/dataset.h"
#include "pmkvq/io/hash.h"
#include "pmkvq/io/json.h"
#include "pmkvq/research/eval/evaluation.h"
#include "pmkvq/research/eval/perplexity.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  std::string dataset;
  std::string json;
  std::string reference;
  std::string checkpoint;
  int64_t num_samples = 0;
  int64_t seq_len = 0;
  TokenizerCommandOptions tokenizer;
  WeightCommandOptions weights;
  KvCommandOptions kv;
  FanOutCommandOptions fan_out;
};

// All that the sums of a sequence depend on.
std::string FingerprintOf(const Model& model, const SpecEngineOptions& engine,
                          const std::vector<std::vector<int32_t>>& sequences,
                          const Model* reference) {
  EvaluationOptions evaluation;
  evaluation.engine = engine;
  Hash128 hash;
  hash.Update(RunSettingsJson(
      MakeRunSettings({"perplexity", Grading::kAnswer, {}}, model, evaluation,
                      engine.kv.plan != nullptr ? engine.kv.plan_path : std::string())));
  if (reference != nullptr) hash.Update(reference->checkpoint().Identity());
  for (const std::vector<int32_t>& tokens : sequences) {
    hash.Update(fmt::format(" {} ", tokens.size()));
    hash.Update(tokens.data(), tokens.size() * sizeof(int32_t));
  }
  return hash.HexDigest();
}

// The first rows of the data set as token sequences, each cut at seq_len or the model's maximum.
std::vector<std::vector<int32_t>> LoadSequences(const Options& options, const ModelConfig& config) {
  const auto tokenizer = options.tokenizer.LoadIfReadable(options.model, kNoText);
  const auto limit = static_cast<size_t>(
      options.seq_len > 0 ? std::min(options.seq_len, config.max_position_embeddings)
                          : config.max_position_embeddings);
  std::vector<std::vector<int32_t>> sequences;
  for (TextRow& row : LoadTextRows(options.dataset)) {
    if (options.num_samples > 0 && std::ssize(sequences) == options.num_samples) break;
    std::vector<int32_t> ids = std::move(row.input_ids);
    if (ids.empty()) {
      if (tokenizer == nullptr) {
        throw InvalidInput(options.dataset, "a row has text, and " + options.model +
                                                " has no tokenizer; expected input_ids");
      }
      ids = tokenizer->EncodeWhole(row.text, /*parse_special=*/true);
    }
    if (ids.size() > limit) ids.resize(limit);
    if (ids.size() < 2) continue;
    CheckPrompt(ids, config, options.dataset);
    sequences.push_back(std::move(ids));
  }
  if (sequences.empty()) {
    throw InvalidInput(options.dataset, "no row has two tokens or more; expected at least one");
  }
  return sequences;
}

void Perplexity(const Options& options) {
  Communicator* const ranks = options.fan_out.Open(!options.checkpoint.empty());
  const std::shared_ptr<const Model> model =
      options.weights.Load(options.model, options.kv.threads);
  const std::vector<std::vector<int32_t>> sequences = LoadSequences(options, model->config());
  const SpecEngineOptions engine = options.kv.Resolve(1);
  CheckPlan(engine, *model);
  options.kv.PrintPlanHint(engine.kv, options.model);
  // Quantised weights are compared with the model as stored, or with the one that it was made from:
  // KL has the error of weights and cache in it.
  const std::string& reference = options.reference.empty() ? options.model : options.reference;
  const std::shared_ptr<const Model> as_stored =
      options.reference.empty() && model->weights() == WeightMode::kAsStored
          ? nullptr
          : LoadModel(reference, WeightMode::kAsStored, options.kv.threads, options.weights.device,
                      nullptr, options.weights.ranks);
  PerplexityShare share;
  share.checkpoint_path = options.checkpoint;
  share.sharing = {options.fan_out.shard, ranks};
  if (!options.checkpoint.empty()) {
    share.fingerprint = FingerprintOf(*model, engine, sequences, as_stored.get());
  }
  ProgressBar progress;
  const PerplexityResult result =
      MeasurePerplexity(model, sequences, engine.kv, engine.chunk, engine.num_threads, &progress,
                        InterruptFlag(), as_stored.get(), share);
  JsonWriter json;
  json.BeginObject();
  json.Key("tokens").Int(result.num_tokens);
  json.Key("loss").Number(result.loss);
  json.Key("kl_to_fp16").Number(result.kl_to_fp16);
  json.Key("kv").String(options.kv.spec);
  json.Key("weights").String(NameOf(model->weights()));
  if (Ranks::OfProcess().size() > 1) json.Key("ranks").Int(Ranks::OfProcess().size());
  json.EndObject();
  WriteJson(options.json, json.text());
  if (options.json != "-") {
    Print(fmt::format("{} tokens  loss {:.6f}  perplexity {:.4f}  KL to fp16 {:.3e}\n",
                      result.num_tokens, result.loss, std::exp(result.loss), result.kl_to_fp16));
  }
}

}  // namespace

void AddPerplexity(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "perplexity", "teacher-forced loss of texts under a cache, token by token, and KL to fp16");
  NamesFile(
      command->add_option("--model", options->model, "model folder or .gguf file")->required(),
      FileKind::kModel);
  NamesFile(
      command
          ->add_option("--dataset", options->dataset, "texts: .jsonl (text or input_ids) or .txt")
          ->required(),
      FileKind::kInput);
  NamesFile(command->add_option("--reference", options->reference,
                                "model that KL is measured to, with an fp16 cache; without it this "
                                "model as stored"),
            FileKind::kModel);
  command->add_option("--n-samples", options->num_samples, "rows to use (0: all)")
      ->transform(WholeNumber(0))
      ->capture_default_str();
  command->add_option("--seq-len", options->seq_len, "cut rows at this length (0: the model's)")
      ->transform(WholeNumber(0, kMostTokens))
      ->capture_default_str();
  NamesFile(command->add_option(
                "--checkpoint", options->checkpoint,
                "file for sums of finished rows; a rerun after an interrupt goes on from it"),
            FileKind::kOutput);
  options->fan_out.Register(*command, "rows", "--checkpoint");
  AddJson(*command, options->json, "write the result as JSON");
  options->tokenizer.Register(*command);
  options->weights.RegisterWithRanks(*command);
  options->kv.Register(*command);
  AddExamples(*command,
              {"pmkvq perplexity --model models/longcot-10m --kv static-4 --n-samples 4 "
               "--dataset models/longcot-10m/calibration.jsonl",
               "pmkvq perplexity --model MODEL --dataset texts.txt --kv kivi --seq-len 2048"});
  command->callback([options] { RunAsPart([&] { Perplexity(*options); }); });
}

}  // namespace pmkvq::cli
