// The option group of everything that solves a benchmark: eval and compare.
#pragma once

#include <CLI/CLI.hpp>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "chat_template_options.h"
#include "pmkvq/research/benchmarks/benchmark.h"
#include "pmkvq/research/eval/evaluation.h"
#include "sampling_options.h"
#include "terminal.h"
#include "tokenizer_options.h"

namespace pmkvq::cli {

// --model, --benchmark, --data, --batch, --replicas, --chat-template, --tokenizer, --start, --end,
// --per-cell,
// --min-level,
// --max-level, --n-responses, --max-tokens, and those of SamplingCommandOptions.
struct BenchmarkCommandOptions {
  std::string model;
  std::string benchmark = "longcot";
  std::string data;
  ChatTemplateCommandOptions chat_template;
  TokenizerCommandOptions tokenizer;
  ProblemSelection selection;
  int64_t batch = 16;
  int64_t replicas = 0;                  // 0: chosen.
  std::optional<int64_t> num_responses;  // Empty: as the benchmark has it.
  std::optional<int64_t> max_tokens;
  SamplingCommandOptions sampling;

  void Register(CLI::App& command);
  // The whole benchmark; SelectProblems takes the part that was asked for. Throws
  // CLI::ValidationError without --data where it is needed, and what LoadBenchmark throws.
  Benchmark Load() const;
  // The evaluation of one cache. Says on stderr where options do not go together. Throws what
  // ResolveChatTemplate throws, and CLI::ValidationError for more replicas than --batch.
  EvaluationOptions Resolve(const SpecEngineOptions& engine, const Model& loaded) const;
};

// Shows solved responses and the speed of this run beside the bar.
class EvalProgress : public EngineObserver {
 public:
  EvalProgress(const std::string& title, int64_t total, const std::vector<Response>& present);

  void OnToken(RequestId id, int32_t token, const std::string& text) override;

  void Add(const Response& response);
  void End() { bar_.End(); }

  int64_t num_tokens() const { return num_tokens_; }

 private:
  using Clock = std::chrono::steady_clock;

  void Update(int64_t units);

  ProgressBar bar_;
  int64_t num_done_ = 0;
  int64_t num_correct_ = 0;
  int64_t num_tokens_ = 0;
  Clock::time_point start_ = Clock::now();
};

}  // namespace pmkvq::cli
