// pmkvq fit: what of a model, its cache and its working memory fits into a memory.
#include "pmkvq/engine/fit.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>

#include "commands.h"
#include "common_options.h"
#include "file_options.h"
#include "help_format.h"
#include "option_values.h"
#include "pmkvq/base/byte_size.h"
#include "pmkvq/io/checkpoint.h"
#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/model/model_size.h"
#include "pmkvq/model/ranks/rank_size.h"
#include "terminal.h"
#include "weight_options.h"

namespace pmkvq::cli {
namespace {

struct Options {
  std::string model;
  std::string memory;
  std::string kv_dtype = "f16";
  std::string json;
  FitOptions fit;
  WeightCommandOptions weights;
  int threads = 0;
  int64_t ranks = 1;
  std::string device = "cpu";
};

struct Source {
  FitModel model;  // Of one rank, where there are several.
  ModelConfig whole;
  std::optional<RankSize> rank;
  std::string types;   // Of the matrices, as files have them.
  std::string remark;  // On the weights, for the table.
};

// What a rank has of the model.
void TakeRank(const Options& options, const WeightSource* weights, WeightFormat stored,
              Source& source) {
  source.whole = source.model.config;
  if (options.ranks == 1) return;
  source.rank = LargestRankOf(source.whole, weights, stored, options.weights.mode(),
                              static_cast<int>(options.ranks), options.device != "cpu");
  source.model.config = source.rank->config;
  source.model.weight_bytes = source.rank->weight_bytes;
}

WeightFormat FormatOf(DType dtype) { return *WeightFormatNamed(NameOf(dtype)); }

// Of the files where they are there, else of the type that the config announces.
Source ReadSource(const Options& options) {
  const std::filesystem::path path(options.model);
  const bool is_folder = std::filesystem::is_directory(path);
  bool has_weights = false;
  if (is_folder) {
    for (const auto& entry : std::filesystem::directory_iterator(path)) {
      has_weights |= entry.path().extension() == ".safetensors";
    }
  }
  Source source;
  if (has_weights || !FindGgufFile(options.model).empty()) {
    const Checkpoint checkpoint = Checkpoint::Open(options.model);
    source.model.config = checkpoint.config();
    std::set<std::string> types;
    for (const StoredWeight& stored : checkpoint.weights().tensors()) {
      if (stored.shape.size() == 2) types.insert(stored.type);
    }
    source.types = fmt::format("{}", fmt::join(types, ", "));
    source.model.weight_bytes = WeightBytesOf(checkpoint, options.weights.mode());
    TakeRank(options, &checkpoint.weights(), WeightFormat::kBF16, source);
    return source;
  }
  source.model.config = is_folder ? LoadModelConfig(options.model)
                                  : ParseModelConfig(JsonValue::ParseFile(options.model));
  const std::optional<DType> type = source.model.config.weight_type;
  const WeightFormat stored = type ? FormatOf(*type) : WeightFormat::kBF16;
  source.types = NameOf(stored);
  source.remark = type ? ", as the config says" : ", assumed: the config has no dtype";
  source.model.weight_bytes = WeightBytesOf(source.model.config, stored, options.weights.mode());
  TakeRank(options, nullptr, stored, source);
  return source;
}

std::string WithSeparators(int64_t value) {
  std::string text = fmt::format("{}", value);
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > 0; at -= 3) {
    text.insert(static_cast<size_t>(at), ",");
  }
  return text;
}

std::string CountOr(int64_t count, int64_t most, const char* none) {
  if (count == 0) return none;
  return (count >= most ? ">= " : "") + WithSeparators(count);
}

std::string NameOfMade(const Options& options) {
  return options.weights.mode() == WeightMode::kQ8 ? "Q8" : "Q4";
}

// What a rank has, and what it exchanges.
void PrintRank(const Options& options, const Source& source) {
  const ModelConfig& whole = source.whole;
  const RankSize& rank = *source.rank;
  const auto of = [](int64_t part, int64_t all) {
    return fmt::format("{} of {}", WithSeparators(part), WithSeparators(all));
  };
  Print(
      fmt::format("each of {} ranks has {} heads, {} KV heads{}, {} inner values; a token takes "
                  "{} sums, of which it receives {}, and rank 0 {} of logits\n",
                  options.ranks, of(rank.config.num_heads, whole.num_heads),
                  of(rank.config.num_kv_heads, whole.num_kv_heads),
                  rank.kv_copies > 1 ? fmt::format(" ({} copies of each)", rank.kv_copies) : "",
                  of(rank.config.intermediate_size, whole.intermediate_size), rank.sums,
                  FormatByteSize(rank.sum_bytes), FormatByteSize(rank.logit_bytes)));
  Print("below: memory, weights and cache of one rank; --kv-budget is that of all\n");
}

void PrintTable(const Options& options, const Source& source, const Fit& fit) {
  const ModelConfig& config = source.whole;
  const bool is_made = options.weights.mode() != WeightMode::kAsStored;
  const auto billions = [](int64_t count) { return static_cast<double>(count) / 1e9; };
  Print(fmt::format(
      "{}: {}, {:.2f} B parameters{}\n", options.model, config.architecture,
      billions(NumMatrixWeights(config)),
      config.moe ? fmt::format(", {:.2f} B of them per token", billions(NumActiveWeights(config)))
                 : ""));
  if (source.rank) PrintRank(options, source);
  const auto line = [](const char* name, int64_t bytes, const std::string& remark) {
    Print(fmt::format("{:<16} {:>11}  {}\n", name, FormatByteSize(bytes), remark));
  };
  line("memory", options.fit.memory_bytes, "--memory " + options.memory);
  line("weights", fit.weight_bytes,
       is_made ? NameOfMade(options) + ", made while loading" : source.types + source.remark);
  line(
      "working memory", fit.working_bytes,
      fmt::format("{}, chunks of {} tokens",
                  options.fit.sequences == 1 ? std::string("one sequence")
                                             : WithSeparators(options.fit.sequences) + " sequences",
                  WithSeparators(std::min(options.fit.chunk, fit.max_len))));
  if (fit.cache_bytes <= 0) {
    line("missing", -fit.cache_bytes, "nothing is left for a cache");
    return;
  }
  line("cache", fit.cache_bytes, "memory without the two above");
  const std::string tokens = WithSeparators(fit.max_len);
  const std::string count = WithSeparators(options.fit.sequences);
  Print(fmt::format("\nsequences of {} tokens, {} at a time\n", tokens, count));
  Print(fmt::format("{:<9} {:>12} {:>12} {:>5} {:>15} {:>14}\n", "cache", "one takes", "all take",
                    "fit", "most sequences", "longest"));
  for (const FitMethod& method : fit.methods) {
    Print(fmt::format("{:<9} {:>12} {:>12} {:>5} {:>15} {:>14}\n", method.spec,
                      method.sequence_bytes == 0 ? "-" : FormatByteSize(method.sequence_bytes),
                      method.arena_bytes == 0 ? "-" : FormatByteSize(method.arena_bytes),
                      method.fits ? "yes" : "no",
                      CountOr(method.most_sequences, kMostFitSequences, "none"),
                      method.longest == 0 ? "none" : WithSeparators(method.longest)));
  }
  if (fit.methods.back().sequence_bytes == 0) return;
  Print(fmt::format("\npm-kvq --kv-budget {}: with {} sequences each stays\n",
                    fit.methods.back().sequence_bytes * (source.rank ? source.rank->kv_parts : 1),
                    count));
  for (const int bits : kWidths) {
    const int64_t longest = fit.longest_at_width[WidthIndex(bits)];
    Print(fmt::format("  at {:>2} bits{} up to {:>9} tokens{}\n", bits,
                      bits == 16 ? "        " : " or more", WithSeparators(longest),
                      longest >= config.max_position_embeddings ? " (all of its positions)" : ""));
    if (longest >= config.max_position_embeddings) break;
  }
}

void WriteFit(const Options& options, const Source& source, const Fit& fit) {
  JsonWriter json;
  json.BeginObject();
  json.Key("kind").String("fit");
  json.Key("architecture").String(source.whole.architecture);
  json.Key("parameters").Int(NumMatrixWeights(source.whole));
  if (source.whole.moe) {
    json.Key("parameters_active_per_token").Int(NumActiveWeights(source.whole));
  }
  if (source.rank) {
    json.Key("ranks").Int(options.ranks);
    json.Key("kv_parts").Int(source.rank->kv_parts);
    json.Key("kv_copies").Int(source.rank->kv_copies);
    json.Key("sums_per_token").Int(source.rank->sums);
    json.Key("sum_bytes_per_token").Int(source.rank->sum_bytes);
  }
  json.Key("memory_bytes").Int(options.fit.memory_bytes);
  json.Key("weights").String(options.weights.mode() == WeightMode::kAsStored ? source.types
                                                                             : NameOfMade(options));
  json.Key("weight_bytes").Int(fit.weight_bytes);
  json.Key("working_bytes").Int(fit.working_bytes);
  json.Key("cache_bytes").Int(fit.cache_bytes);
  json.Key("len").Int(fit.max_len);
  json.Key("sequences").Int(options.fit.sequences);
  json.Key("methods").BeginArray();
  for (const FitMethod& method : fit.methods) {
    json.BeginObject();
    json.Key("kv").String(method.spec);
    json.Key("sequence_bytes").Int(method.sequence_bytes);
    json.Key("all_bytes").Int(method.arena_bytes);
    json.Key("fits").Bool(method.fits);
    json.Key("most_sequences").Int(method.most_sequences);
    json.Key("longest").Int(method.longest);
    json.EndObject();
  }
  json.EndArray();
  json.Key("pm_kvq_longest_at_bits").BeginObject();
  for (const int bits : kWidths) {
    json.Key(fmt::format("{}", bits)).Int(fit.longest_at_width[WidthIndex(bits)]);
  }
  json.EndObject().EndObject();
  WriteJson(options.json, json.text());
}

void RunFit(Options& options) {
  options.fit.memory_bytes = ParseByteSize(options.memory, "--memory");
  options.fit.cache.kv_dtype = ParseKvDtype(options.kv_dtype);
  options.fit.num_threads = ResolveThreads(options.threads);
  const Source source = ReadSource(options);
  options.fit.chunk = std::min(options.fit.chunk, source.model.config.max_position_embeddings);
  const Fit fit = FitInto(source.model, options.fit);
  WriteFit(options, source, fit);
  if (options.json != "-") PrintTable(options, source, fit);
}

}  // namespace

void AddFit(CLI::App& app) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand(
      "fit", "what fits into a memory: weights, working memory and cache, at every width");
  NamesFile(
      command
          ->add_option("model,--model", options->model,
                       "model folder, GGUF file, or a config.json alone: ask before downloading")
          ->required(),
      FileKind::kInputs);
  command->add_option("--memory", options->memory, "memory to fit into: 24GB, 16GiB")
      ->check(MemorySize())
      ->required();
  const auto add_len = [&](const char* name) {
    return command
        ->add_option(name, options->fit.max_len,
                     "tokens of each sequence (0: the model's positions)")
        ->transform(WholeNumber(0, kMostTokens))
        ->capture_default_str();
  };
  const auto add_sequences = [&](const char* name) {
    return command->add_option(name, options->fit.sequences, "sequences decoded together")
        ->transform(WholeNumber(1, kMostFitSequences))
        ->capture_default_str();
  };
  // The names of other commands are understood as well, without a line in the help.
  add_len("--len");
  add_len("--max-len")->group("");
  add_sequences("--sequences");
  add_sequences("--batch")->group("");
  options->weights.RegisterWeights(*command);
  command
      ->add_option("--ranks", options->ranks,
                   "ranks of mpirun that share the model: --memory and figures are then of one")
      ->transform(WholeNumber(1, 64))
      ->capture_default_str();
  RegisterDevice(*command, options->device);
  command->add_option("--chunk", options->fit.chunk, "prompt tokens per prefill step")
      ->transform(WholeNumber(1, kMostTokens))
      ->capture_default_str();
  command->add_option("--kv-dtype", options->kv_dtype, "float type of the cache")
      ->transform(OneOf({"f16", "bf16", "f32"}))
      ->capture_default_str();
  AddThreads(*command, options->threads);
  AddJson(*command, options->json, "write the figures as JSON");
  AddExamples(*command, {"pmkvq fit models/longcot-10m --memory 64MiB --len 4096 --sequences 4",
                         "pmkvq fit config.json --memory 24GB --len 32768 --sequences 16",
                         "pmkvq fit llama-70b.json --memory 141GB --ranks 8 --device cuda"});
  command->callback([options] { RunFit(*options); });
}

}  // namespace pmkvq::cli
