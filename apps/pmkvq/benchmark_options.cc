#include "benchmark_options.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "common_options.h"
#include "file_options.h"
#include "option_values.h"

namespace pmkvq::cli {
namespace {

// Long chains finish rarely; the bar moves on with their tokens.
constexpr int64_t kTokensPerUpdate = 16;

std::vector<std::string> BenchmarkNames() {
  std::vector<std::string> names;
  for (const BenchmarkInfo& info : ListBenchmarks()) names.push_back(info.name);
  return names;
}

void RegisterSelection(CLI::App& command, ProblemSelection& selection) {
  const std::string group = "Problems";
  command.add_option("--start", selection.start, "first problem, counted from 0")
      ->transform(WholeNumber(0))
      ->capture_default_str()
      ->group(group);
  command.add_option("--end", selection.end, "one past the last problem")
      ->transform(WholeNumber(0))
      ->default_str("all")
      ->group(group);
  command
      .add_option("--per-cell", selection.per_cell,
                  "only so many of each task and level (0: all); --start and --end count these")
      ->transform(WholeNumber(0))
      ->capture_default_str()
      ->group(group);
  command.add_option("--min-level", selection.min_level, "least level")
      ->capture_default_str()
      ->group(group);
  command.add_option("--max-level", selection.max_level, "greatest level")
      ->capture_default_str()
      ->group(group);
}

}  // namespace

void BenchmarkCommandOptions::Register(CLI::App& command) {
  NamesFile(command.add_option("--model", model, "model folder or .gguf file"), FileKind::kModel);
  const std::vector<std::string> names = BenchmarkNames();
  command
      .add_option("--benchmark", benchmark,
                  fmt::format("what to solve: {} (docs/formats.md)", fmt::join(names, ", ")))
      ->type_name("NAME")
      ->transform(OneOf(names).description(""))
      ->capture_default_str();
  NamesFile(command.add_option("--data", data, "file or folder of the benchmark"),
            FileKind::kInputs);
  command.add_option("--batch", batch, "responses decoded together")
      ->transform(WholeNumber(1, kMostBatch))
      ->capture_default_str();
  command
      .add_option("--replicas", replicas,
                  "engines side by side over one set of weights, which share --batch and --threads "
                  "(0: chosen by both and the model); texts do not depend on it")
      ->transform(WholeNumber(0, kMostBatch))
      ->capture_default_str();
  chat_template.Register(command);
  tokenizer.Register(command);
  RegisterSelection(command, selection);
  const std::string group = "Sampling";
  command.add_option("--n-responses", num_responses, "responses to each problem")
      ->transform(WholeNumber(1, kMostBatch))
      ->default_str("16; longcot, jsonl: 1")
      ->group(group);
  command
      .add_option("--max-tokens", max_tokens,
                  "output tokens (0: by the reference chain, or as many as fit)")
      ->transform(WholeNumber(0, kMostTokens))
      ->default_str("32768; longcot, jsonl: 0")
      ->group(group);
  sampling.Register(command, "0.6; longcot, jsonl: 0", "0.95; longcot, jsonl: 1",
                    "each problem and response draws from a stream of its own");
}

Benchmark BenchmarkCommandOptions::Load() const {
  FindBenchmark(benchmark);
  if (data.empty() && benchmark != "longcot") {
    throw CLI::ValidationError(
        "--data", "found none, expected the file or folder of --benchmark " + benchmark);
  }
  return LoadBenchmark(benchmark, data.empty() ? model : data);
}

EvaluationOptions BenchmarkCommandOptions::Resolve(const SpecEngineOptions& engine,
                                                   const Model& loaded) const {
  const BenchmarkInfo protocol = FindBenchmark(benchmark);
  EvaluationOptions evaluation;
  if (replicas > batch) {
    throw CLI::ValidationError(
        "--replicas", fmt::format("found {}, expected at most the {} of --batch", replicas, batch));
  }
  evaluation.engine = engine;
  evaluation.replicas = replicas;
  evaluation.chat_template = ResolveChatTemplate(chat_template, model);
  evaluation.sampling = sampling.Resolve(protocol.temperature, protocol.top_p);
  sampling.WarnOfUnused(protocol.temperature);
  evaluation.seed = sampling.seed;
  evaluation.num_responses = num_responses.value_or(protocol.num_responses);
  evaluation.max_tokens = max_tokens.value_or(protocol.max_tokens);
  const int64_t max_len =
      engine.max_len > 0 ? engine.max_len : loaded.config().max_position_embeddings;
  if (evaluation.max_tokens >= max_len) {
    PrintError(fmt::format(
        "--max-tokens {} is more than there is room for: prompt and output "
        "together end at {} tokens ({})",
        evaluation.max_tokens, max_len, engine.max_len > 0 ? "--max-len" : "the model's maximum"));
  }
  if (evaluation.num_responses > 1 && evaluation.sampling.temperature == 0) {
    PrintError(fmt::format("warning: --temperature 0 gives {} equal responses to each problem",
                           evaluation.num_responses));
  }
  return evaluation;
}

EvalProgress::EvalProgress(const std::string& title, int64_t total,
                           const std::vector<Response>& present)
    : num_done_(static_cast<int64_t>(present.size())) {
  for (const Response& response : present) num_correct_ += response.correct ? 1 : 0;
  bar_.Begin(title, total, num_done_);
}

void EvalProgress::OnToken(RequestId, int32_t, const std::string&) {
  ++num_tokens_;
  if (num_tokens_ % kTokensPerUpdate == 0) Update(0);
}

void EvalProgress::Add(const Response& response) {
  ++num_done_;
  num_correct_ += response.correct ? 1 : 0;
  if (!response.error.empty())
    PrintError(fmt::format("problem {}: {}", response.id, response.error));
  Update(1);
}

void EvalProgress::Update(int64_t units) {
  const double seconds = std::chrono::duration<double>(Clock::now() - start_).count();
  const std::string solved =
      num_done_ > 0 ? fmt::format("solved {} of {}", num_correct_, num_done_) : "none finished yet";
  bar_.SetNote(fmt::format("{}  {:.0f} tok/s", solved, static_cast<double>(num_tokens_) / seconds));
  bar_.Advance(units);
}

}  // namespace pmkvq::cli
