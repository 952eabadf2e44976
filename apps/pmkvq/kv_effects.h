// What the cache options of a command line do not do, although somebody might expect it: options
// without effect, plans that are there and not used, budgets beyond the machine. One line each on
// stderr; nothing is refused.
#pragma once

#include <string>
#include <vector>

#include "common_options.h"

namespace pmkvq::cli {

// "warning: --NAME has no effect: REASON" for each of `names` that was given to `command`.
void WarnWithoutEffect(const CLI::App& command, const std::vector<std::string>& names,
                       const std::string& reason);

// Options that change nothing for any of `specs`, the methods of the command: those that are for
// other methods, and those that a key of the SPEC overrides. SPECs that are wrong say nothing here.
void WarnOfUnusedKvOptions(const CLI::App& command, const std::vector<std::string>& specs);

// --kv-budget or --plan with a method that does not step down inside it.
void WarnOfUnusedBudget(const KvCommandOptions& options);

// A budget that `max_sequences` sequences cannot all have in this machine's memory.
void WarnOfMemory(int64_t budget_bytes, int64_t max_sequences);

// Whether the budget of a sequence comes from the plan: there is a plan, no --kv-budget, and a SPEC
// whose pages step down without keys that set widths (bits, k, v).
bool PlanSetsBudget(const KvOptions& kv);

// Budgets of a plan that was made for fewer tokens than --max-len.
void WarnOfShortPlan(const SpecEngineOptions& options);

}  // namespace pmkvq::cli
