#include "pmkvq/research/compare/compare.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/kv/cache_config.h"

namespace pmkvq {
namespace {

using Key = std::pair<std::string, int64_t>;
using Outcomes = std::map<Key, const Outcome*>;

Outcomes Index(const MethodRun& run) {
  Outcomes outcomes;
  for (const Outcome& outcome : run.outcomes) {
    if (!outcomes.emplace(Key{outcome.id, outcome.response}, &outcome).second) {
      throw InvalidInput(run.method, fmt::format("response {} to problem '{}' is there twice, "
                                                 "expected every response once",
                                                 outcome.response, outcome.id));
    }
  }
  return outcomes;
}

// Throws when `run` lacks a response that `other` has: pairs need both.
void CheckNoneMissing(const std::string& run, const Outcomes& outcomes, const std::string& other,
                      const Outcomes& expected) {
  constexpr size_t kNamed = 3;
  size_t missing = 0;
  std::string names;
  for (const auto& [key, unused] : expected) {
    if (outcomes.contains(key)) continue;
    if (++missing <= kNamed) {
      names +=
          fmt::format("{}problem '{}' response {}", missing > 1 ? ", " : "", key.first, key.second);
    }
  }
  if (missing == 0) return;
  throw InvalidInput(
      run, fmt::format("{} of the {} responses that '{}' has are missing: {}{}; expected the same "
                       "problems and responses of every method (finish the run first)",
                       missing, expected.size(), other, names, missing > kNamed ? ", ..." : ""));
}

PairedResult PairedResultOf(const std::vector<PairCluster>& problems) {
  PairedResult result;
  for (const PairCluster& problem : problems) {
    result.both += problem.both;
    result.only_method += problem.only_a;
    result.only_other += problem.only_b;
    result.neither += problem.neither;
  }
  const int64_t pairs = result.both + result.only_other + result.only_method + result.neither;
  if (pairs > 0) {
    result.difference =
        static_cast<double>(result.only_method - result.only_other) / static_cast<double>(pairs);
  }
  result.interval = ClusteredDifferenceInterval(problems);
  result.p_value = ClusteredMcNemar(problems);
  return result;
}

template <class Value>
std::vector<Value> ValuesOf(const std::map<std::string, Value>& by_problem) {
  std::vector<Value> values;
  for (const auto& [id, value] : by_problem) values.push_back(value);
  return values;
}

void AddPair(bool method, bool other, PairCluster& pairs) {
  (method ? (other ? pairs.both : pairs.only_a) : (other ? pairs.only_b : pairs.neither)) += 1;
}

// One score being counted, problem by problem.
struct Tally {
  std::map<std::string, ResponseCluster> responses;
  std::map<std::string, PairCluster> baseline;
  std::map<std::string, PairCluster> against;

  void Add(const Outcome& outcome, const Outcome* of_baseline, const Outcome* of_against) {
    ResponseCluster& problem = responses[outcome.id];
    ++problem.responses;
    problem.correct += outcome.correct ? 1 : 0;
    if (of_baseline != nullptr) {
      AddPair(outcome.correct, of_baseline->correct, baseline[outcome.id]);
    }
    if (of_against != nullptr) AddPair(outcome.correct, of_against->correct, against[outcome.id]);
  }
  Score Result(bool has_baseline, bool has_against) const {
    Score score;
    for (const auto& [id, problem] : responses) {
      score.num_responses += problem.responses;
      score.num_correct += problem.correct;
    }
    score.interval = ClusteredShareInterval(ValuesOf(responses));
    if (has_baseline) score.baseline = PairedResultOf(ValuesOf(baseline));
    if (has_against) score.against = PairedResultOf(ValuesOf(against));
    return score;
  }
};

// `baseline` and `against`: null where there is nothing to pair with.
void Count(const MethodRun& run, const Outcomes* baseline, const Outcomes* against,
           MethodResult& result) {
  Tally total;
  std::map<int64_t, Tally> levels;
  double seconds = 0;
  int64_t timed_tokens = 0;
  double evicted_shares = 0;
  for (const Outcome& outcome : run.outcomes) {
    const Key key = {outcome.id, outcome.response};
    const Outcome* of_baseline = baseline != nullptr ? baseline->at(key) : nullptr;
    const Outcome* of_against = against != nullptr ? against->at(key) : nullptr;
    total.Add(outcome, of_baseline, of_against);
    levels[outcome.level].Add(outcome, of_baseline, of_against);
    result.output_tokens += outcome.output_tokens;
    result.num_cut_by_length += outcome.finish_reason == "length" ? 1 : 0;
    result.num_cut_by_budget += outcome.finish_reason == "kv_budget" ? 1 : 0;
    const bool is_cut = outcome.finish_reason == "length" || outcome.finish_reason == "kv_budget";
    result.num_prompts_too_long += is_cut && outcome.output_tokens == 0 ? 1 : 0;
    result.peak_bytes = std::max(result.peak_bytes, outcome.peak_bytes);
    evicted_shares += 1 - outcome.kept_share;
    if (outcome.decode_seconds > 0) {
      seconds += outcome.decode_seconds;
      timed_tokens += outcome.output_tokens;
    }
  }
  result.total = total.Result(baseline != nullptr, against != nullptr);
  for (const auto& [level, tally] : levels) {
    result.levels[level] = tally.Result(baseline != nullptr, against != nullptr);
  }
  if (!run.outcomes.empty()) {
    result.kept_share = 1 - evicted_shares / static_cast<double>(run.outcomes.size());
  }
  if (seconds > 0) result.tokens_per_second = static_cast<double>(timed_tokens) / seconds;
}

}  // namespace

std::vector<Outcome> OutcomesOf(const std::vector<Response>& responses) {
  std::vector<Outcome> outcomes;
  outcomes.reserve(responses.size());
  for (const Response& row : responses) {
    outcomes.push_back({row.id, row.response, row.level, row.correct, row.finish_reason,
                        row.output_tokens, row.peak_bytes, row.decode_seconds, row.kept_share});
  }
  return outcomes;
}

std::string_view NameOf(MethodStatus status) {
  switch (status) {
    case MethodStatus::kDone:
      return "done";
    case MethodStatus::kDoesNotFit:
      return "does_not_fit";
    case MethodStatus::kInterrupted:
      return "interrupted";
  }
  PMKVQ_CHECK(false);
  return "";
}

PairedResult MakePairedResult(int64_t both, int64_t only_other, int64_t only_method,
                              int64_t neither) {
  PairedResult result = {both, only_other, only_method, neither, 0, {}, 1};
  const int64_t pairs = both + only_other + only_method + neither;
  if (pairs > 0) {
    result.difference = static_cast<double>(only_method - only_other) / static_cast<double>(pairs);
  }
  result.interval = PairedDifferenceInterval(both, only_method, only_other, neither);
  result.p_value = McNemarExact(only_other, only_method);
  return result;
}

double Score::share() const {
  return num_responses > 0 ? static_cast<double>(num_correct) / static_cast<double>(num_responses)
                           : 0;
}

double MethodResult::mean_output_tokens() const {
  return total.num_responses > 0
             ? static_cast<double>(output_tokens) / static_cast<double>(total.num_responses)
             : 0;
}

std::vector<MethodResult> CompareMethods(const std::vector<MethodRun>& runs, size_t baseline,
                                         std::optional<size_t> against) {
  PMKVQ_CHECK(baseline < runs.size() && (!against || *against < runs.size()));
  std::vector<Outcomes> outcomes(runs.size());
  std::optional<size_t> first;
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].status != MethodStatus::kDone) continue;
    outcomes[i] = Index(runs[i]);
    if (!first) first = i;
    CheckNoneMissing(runs[i].method, outcomes[i], runs[*first].method, outcomes[*first]);
    CheckNoneMissing(runs[*first].method, outcomes[*first], runs[i].method, outcomes[i]);
  }
  const auto other = [&](std::optional<size_t> index, size_t i) -> const Outcomes* {
    if (!index || *index == i || runs[*index].status != MethodStatus::kDone) return nullptr;
    return &outcomes[*index];
  };
  std::vector<MethodResult> results;
  for (size_t i = 0; i < runs.size(); ++i) {
    const MethodRun& run = runs[i];
    MethodResult result;
    result.method = run.method;
    result.is_simulated = run.is_simulated;
    result.status = run.status;
    result.needed_bytes = run.needed_bytes;
    result.needed_tokens = run.needed_tokens;
    result.num_expected = run.num_expected;
    result.total.num_responses = static_cast<int64_t>(run.outcomes.size());
    if (run.status == MethodStatus::kDone) {
      Count(run, other(baseline, i), other(against, i), result);
    }
    results.push_back(std::move(result));
  }
  return results;
}

bool IsIncomplete(const Comparison& comparison) {
  return std::any_of(comparison.tables.begin(), comparison.tables.end(), [](const auto& table) {
    return std::any_of(table.methods.begin(), table.methods.end(), [](const MethodResult& method) {
      return method.status == MethodStatus::kInterrupted;
    });
  });
}

double EffectiveBitsOf(const Comparison& comparison, int64_t bytes) {
  if (comparison.values_per_token <= 0 || comparison.max_len <= 0 || bytes <= 0) return 0;
  return EffectiveBits(comparison.values_per_token, bytes, comparison.max_len);
}

}  // namespace pmkvq
