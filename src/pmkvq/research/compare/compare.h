// Comparison of cache methods on the same problems and seeds: pairs of outcomes, intervals, tests.
// Independent of models; runs come from research/eval/evaluation.h or from files.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/kv/kv_types.h"
#include "pmkvq/research/eval/evaluation.h"
#include "pmkvq/research/statistics/statistics.h"

namespace pmkvq {

// The part of one response that comparisons use.
struct Outcome {
  std::string id;  // Of the problem.
  int64_t response = 0;
  int64_t level = 0;
  bool correct = false;
  std::string finish_reason;  // "stop", "length", "kv_budget", "error"
  int64_t output_tokens = 0;
  int64_t peak_bytes = 0;
  double decode_seconds = 0;  // 0: unknown.
  double kept_share = 1;      // Response::kept_share
};
std::vector<Outcome> OutcomesOf(const std::vector<Response>& responses);

enum class MethodStatus : uint8_t {
  kDone,
  kDoesNotFit,   // The budget does not hold the longest sequence; not run.
  kInterrupted,  // Ctrl-C; some outcomes are missing.
};
std::string_view NameOf(MethodStatus status);  // "done", "does_not_fit", "interrupted"

// One method on one set of responses.
struct MethodRun {
  std::string method;         // SPEC
  bool is_simulated = false;  // Its speed is not the method's.
  MethodStatus status = MethodStatus::kDone;
  // Smallest budget that holds `needed_tokens` tokens, where the given budget does not; else 0. A
  // method that was run in spite of that (--allow-partial) is kDone.
  int64_t needed_bytes = 0;
  int64_t needed_tokens = 0;
  int64_t num_expected = 0;  // Responses asked for.
  std::vector<Outcome> outcomes;
};

// Outcomes of one method and another one for the same responses.
struct PairedResult {
  int64_t both = 0;
  int64_t only_other = 0;
  int64_t only_method = 0;
  int64_t neither = 0;
  double difference = 0;  // Share of the method minus that of the other, in [-1, 1].
  Interval interval;      // Of the difference, 95 %: ClusteredDifferenceInterval.
  double p_value = 1;     // ClusteredMcNemar.
};
// One response to each problem.
PairedResult MakePairedResult(int64_t both, int64_t only_other, int64_t only_method,
                              int64_t neither);

// Right answers of one method.
struct Score {
  int64_t num_responses = 0;
  int64_t num_correct = 0;
  Interval interval;                     // Of the share, 95 %: ClusteredShareInterval.
  std::optional<PairedResult> baseline;  // Against the baseline; none for itself.
  std::optional<PairedResult> against;   // Against a second method, where there is one.
  double share() const;                  // pass@1; 0 for no responses.
};

struct MethodResult {
  std::string method;
  bool is_simulated = false;
  MethodStatus status = MethodStatus::kDone;
  int64_t needed_bytes = 0;
  int64_t needed_tokens = 0;
  int64_t num_expected = 0;
  Score total;
  std::map<int64_t, Score> levels;
  int64_t output_tokens = 0;
  int64_t num_cut_by_length = 0;
  int64_t num_cut_by_budget = 0;
  int64_t num_prompts_too_long = 0;   // Of those cut, without room for a token behind the prompt.
  int64_t peak_bytes = 0;             // Largest of any sequence.
  double kept_share = 1;              // Mean over responses. Less than 1: the method evicts.
  double tokens_per_second = 0;       // Of one sequence while it is decoded; 0: unknown.
  double mean_output_tokens() const;  // 0 for no responses.
};

// Results in the order of `runs`. `baseline` and `against` are indices; runs that are not kDone
// have no scores, and where the baseline or `against` is not, nothing is paired with it.
//
// Pairs are (problem, response); the responses to one problem are a cluster. Throws InvalidInput
// when a run lacks responses that another has, or has one twice: names both methods and the first
// few.
std::vector<MethodResult> CompareMethods(const std::vector<MethodRun>& runs, size_t baseline,
                                         std::optional<size_t> against);

// All methods at one budget.
struct ComparisonTable {
  int64_t budget_bytes = 0;  // Of one sequence; 0: each method has the bytes that it needs.
  std::vector<MethodResult> methods;
};

struct Comparison {
  std::string benchmark;
  std::string model;      // Identity; "" when unknown.
  std::string baseline;   // SPEC of the method that all others are compared with.
  std::string against;    // SPEC of the second one, or "".
  int64_t num_ranks = 1;  // Processes that computed it together.
  int64_t num_problems = 0;
  int64_t num_responses = 0;     // To each problem.
  int64_t max_len = 0;           // 0: unknown, and then no effective bits.
  int64_t values_per_token = 0;  // KvGeometry::values; likewise.
  std::vector<std::pair<std::string, std::string>> settings;  // (option, value), of all methods.
  std::vector<ComparisonTable> tables;
};

// Some run lacks responses: it was interrupted, or other parts of a job array make them.
bool IsIncomplete(const Comparison& comparison);

// Bits per stored value when one sequence of max_len tokens takes `bytes`; 0 when unknown.
double EffectiveBitsOf(const Comparison& comparison, int64_t bytes);

}  // namespace pmkvq
