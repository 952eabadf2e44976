// Whether a cache method can be compared at a budget.
#pragma once

#include <cstdint>

#include "pmkvq/kv/spec/kv_options.h"

namespace pmkvq {

struct BudgetFit {
  bool starts = false;       // Holds a token at all: a cache can be made.
  bool holds = false;        // Holds the longest sequence.
  int64_t needed_bytes = 0;  // Smallest --kv-budget that does; 0 where this one does.
};

// Whether options.budget_bytes (> 0) holds `num_tokens` tokens at the method's narrowest widths.
// Throws InvalidInput for options that are wrong with every budget (ResolveKvBudget).
BudgetFit FitBudget(const KvOptions& options, const KvRequirements& requirements,
                    int64_t num_tokens);

}  // namespace pmkvq
