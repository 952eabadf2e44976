#include "pmkvq/eval/solve.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>
#include <utility>

#include "pmkvq/base/random.h"
#include "pmkvq/eval/answer.h"

namespace pmkvq {
namespace {

// Longest reply that still counts, for problems whose reference chain is known.
int64_t ReplyLimit(const Tokenizer& tokenizer, const std::string& reference_chain) {
  const auto tokens = static_cast<double>(tokenizer.Encode(reference_chain).size());
  return static_cast<int64_t>(std::ceil(tokens * 1.04)) + 48;
}

// Grades completions as they finish and passes everything on to the caller's observer.
class GradingObserver : public EngineObserver {
 public:
  GradingObserver(const std::vector<ProblemRow>& problems, EngineObserver* next,
                  const SolvedCallback& on_solved)
      : problems_(problems), next_(next), on_solved_(on_solved) {}

  void SetIndex(RequestId id, size_t index) { index_[id] = index; }

  void OnToken(RequestId id, int32_t token, const std::string& text) override {
    if (next_ != nullptr) next_->OnToken(id, token, text);
  }
  void OnHalving(RequestId id, const HalvingEvent& event) override {
    if (next_ != nullptr) next_->OnHalving(id, event);
  }
  void OnFinished(const Completion& completion) override {
    if (next_ != nullptr) next_->OnFinished(completion);
    if (completion.finish_reason == FinishReason::kCancelled) return;
    const size_t index = index_.at(completion.id);
    SolvedProblem solved;
    solved.problem = problems_[index];
    solved.completion = completion;
    solved.extracted = ExtractBoxedAnswer(completion.text).value_or("");
    solved.correct = !solved.extracted.empty() && solved.extracted == solved.problem.answer;
    if (on_solved_) on_solved_(solved);
    solved_.emplace(index, std::move(solved));
  }

  std::vector<SolvedProblem> TakeInOrder() {
    std::vector<SolvedProblem> ordered;
    for (auto& [index, solved] : solved_) ordered.push_back(std::move(solved));
    return ordered;
  }

 private:
  const std::vector<ProblemRow>& problems_;
  EngineObserver* next_;
  const SolvedCallback& on_solved_;
  std::map<RequestId, size_t> index_;
  std::map<size_t, SolvedProblem> solved_;
};

}  // namespace

std::vector<SolvedProblem> SolveProblems(const std::shared_ptr<Model>& model,
                                         const std::shared_ptr<const Tokenizer>& tokenizer,
                                         const std::vector<ProblemRow>& problems,
                                         const SolveOptions& options, EngineObserver* observer,
                                         const SolvedCallback& on_solved, const CancelFlag* cancel,
                                         double* seconds) {
  Engine engine(model, tokenizer, options.engine);
  GradingObserver grading(problems, observer, on_solved);
  const auto start = std::chrono::steady_clock::now();
  for (size_t i = 0; i < problems.size(); ++i) {
    Request request;
    request.prompt_ids =
        tokenizer->Encode(options.chat_template.Render({{"user", problems[i].problem}}, true));
    request.sampling = options.sampling;
    request.seed = StreamSeed(options.seed, i);
    request.max_tokens = options.max_tokens;
    if (request.max_tokens == 0 && !problems[i].reference_chain.empty()) {
      request.max_tokens = ReplyLimit(*tokenizer, problems[i].reference_chain);
    }
    grading.SetIndex(engine.Submit(std::move(request)), i);
  }
  while (!IsCancelled(cancel) && engine.Step(&grading)) {
  }
  if (IsCancelled(cancel)) engine.CancelAll(&grading);
  if (seconds != nullptr) {
    *seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  }
  return grading.TakeInOrder();
}

SolveSummary Summarize(const std::vector<SolvedProblem>& solved, double seconds) {
  SolveSummary summary;
  summary.seconds = seconds;
  for (const SolvedProblem& row : solved) {
    const Completion& completion = row.completion;
    ++summary.num_problems;
    summary.num_correct += row.correct ? 1 : 0;
    summary.output_tokens += static_cast<int64_t>(completion.output_ids.size());
    summary.peak_bytes = std::max(summary.peak_bytes, completion.kv.peak_bytes);
    summary.budget_bytes = std::max(summary.budget_bytes, completion.kv.budget_bytes);
    summary.num_cut_by_length += completion.finish_reason == FinishReason::kLength ? 1 : 0;
    summary.num_cut_by_budget += completion.finish_reason == FinishReason::kKvBudget ? 1 : 0;
    for (size_t i = 0; i < kWidths.size(); ++i) summary.final_pages[i] += completion.kv.pages[i];
    summary.longest_pause_us = std::max(summary.longest_pause_us, completion.longest_pause_us);
  }
  return summary;
}

std::vector<ProblemRow> SelectProblems(const std::vector<ProblemRow>& problems, int64_t per_cell,
                                       int64_t min_level, int64_t max_level) {
  std::map<std::pair<std::string, int64_t>, int64_t> seen;
  std::vector<ProblemRow> selected;
  for (const ProblemRow& problem : problems) {
    if (problem.level < min_level || problem.level > max_level) continue;
    const int64_t count = ++seen[{problem.task, problem.level}];
    if (per_cell == 0 || count <= per_cell) selected.push_back(problem);
  }
  return selected;
}

}  // namespace pmkvq
