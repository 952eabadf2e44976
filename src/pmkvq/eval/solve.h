// Solving a set of problems with one engine and checking the boxed answers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/base/sinks.h"
#include "pmkvq/engine/engine.h"
#include "pmkvq/io/dataset.h"
#include "pmkvq/text/chat_template.h"

namespace pmkvq {

struct SolveOptions {
  EngineOptions engine;        // max_sequences is the batch size.
  ChatTemplate chat_template;  // Renders each problem as one user turn.
  SamplingParams sampling;     // Greedy by default.
  uint64_t seed = 42;          // Problem i draws from StreamSeed(seed, i).
  // Output limit. 0: where a problem has a reference chain, 1.04 times its tokens + 48; otherwise
  // whatever fits engine.max_len.
  int64_t max_tokens = 0;
};

struct SolvedProblem {
  ProblemRow problem;
  Completion completion;
  std::string extracted;  // The boxed answer, "" when there is none.
  bool correct = false;   // extracted == problem.answer
};

struct SolveSummary {
  int64_t num_problems = 0;
  int64_t num_correct = 0;
  int64_t output_tokens = 0;
  int64_t peak_bytes = 0;    // Largest of any sequence.
  int64_t budget_bytes = 0;  // Of one sequence.
  int64_t num_cut_by_length = 0;
  int64_t num_cut_by_budget = 0;
  PagesPerWidth final_pages{};  // Summed over the ends of all sequences.
  double longest_pause_us = 0;
  double seconds = 0;  // Wall time of the whole set.
};
SolveSummary Summarize(const std::vector<SolvedProblem>& solved, double seconds);

// Called as problems finish, in order of finishing.
using SolvedCallback = std::function<void(const SolvedProblem&)>;

// Solves all problems and returns them in their order. With `cancel`, returns those that finished
// before. `observer` (may be null) sees tokens as they come. Throws what Engine throws.
std::vector<SolvedProblem> SolveProblems(const std::shared_ptr<Model>& model,
                                         const std::shared_ptr<const Tokenizer>& tokenizer,
                                         const std::vector<ProblemRow>& problems,
                                         const SolveOptions& options, EngineObserver* observer,
                                         const SolvedCallback& on_solved, const CancelFlag* cancel,
                                         double* seconds);

// The first `per_cell` problems of each (task, level) with level in [min_level, max_level], in
// file order; per_cell 0: all of them.
std::vector<ProblemRow> SelectProblems(const std::vector<ProblemRow>& problems, int64_t per_cell,
                                       int64_t min_level, int64_t max_level);

}  // namespace pmkvq
