#include "pmkvq/research/compare/compare_fit.h"

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq {

BudgetFit FitBudget(const KvOptions& options, const KvRequirements& requirements,
                    int64_t num_tokens) {
  PMKVQ_CHECK(options.budget_bytes > 0 && num_tokens > 0);
  // A budget that does not hold the first page throws, so the bytes that are needed are asked of a
  // budget that is large enough for any method. One sequence: budgets are per sequence.
  constexpr int64_t kPlentyBytes = int64_t{1} << 43;
  KvRequirements one = requirements;
  one.max_sequences = 1;
  KvOptions roomy = options;
  roomy.budget_bytes = std::max(kPlentyBytes, options.budget_bytes);
  const KvBudget plenty = ResolveKvBudget(roomy, one);
  const int64_t first_page = plenty.packed() != nullptr ? plenty.packed()->sink_tokens + 1 : 1;
  BudgetFit fit;
  fit.starts = options.budget_bytes >= plenty.SmallestThatHolds(first_page);
  if (!fit.starts) {
    fit.needed_bytes = plenty.SmallestThatHolds(num_tokens);
    return fit;
  }
  const KvBudget budget = ResolveKvBudget(options, one);
  fit.holds = budget.Holds(num_tokens);
  if (!fit.holds) fit.needed_bytes = budget.SmallestThatHolds(num_tokens);
  return fit;
}

}  // namespace pmkvq
