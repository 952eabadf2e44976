// Comparisons on disk: the folders that `pmkvq compare --out` makes, and finished runs to compare.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/kv/kv_types.h"
#include "pmkvq/research/compare/compare.h"

namespace pmkvq {

// The folder of one method's run inside --out: "4992KiB/pm-kvq~policy=oldest-first". Budgets that
// are no whole KiB are in bytes, "5111809B"; without a budget "no-budget". In a SPEC ':' becomes
// '~', and every other character that is unsafe in file names %XX; different runs get different
// folders.
std::string RunFolder(const std::string& spec, int64_t budget_bytes);

// A run that was read from disk.
struct SavedRun {
  std::string path;
  std::string benchmark;
  std::string model;                                          // Identity; "" when unknown.
  int64_t budget_bytes = 0;                                   // --kv-budget; 0: none, or unknown.
  int64_t max_len = 0;                                        // 0: unknown.
  std::vector<std::pair<std::string, std::string>> settings;  // Of run.json.
  MethodRun run;
  // Of the list that named it; empty without one.
  std::string against;
  int64_t values_per_token = 0;
};

// Each path is a folder of eval (run.json, responses.jsonl; a last line without its end is left
// out), a folder of compare (comparison.json says which runs and responses count), another folder
// with folders of eval in it, which are taken in the order of their budgets and paths, or a file
// that eval wrote with --json. Throws InvalidInput naming file and field, IoError.
std::vector<SavedRun> LoadRuns(const std::vector<std::string>& paths);

// One table per --kv-budget in the order of the runs, the first fp16 run in each. A SPEC that
// occurs twice in a table gets its path beside it. `against`: a SPEC, or "": that of the runs'
// list. Effective bits need `values_per_token`, which the caller sets where no list has it. Throws
// InvalidInput naming the runs: no fp16, other problems, seeds or lengths, missing responses
// (CompareMethods), an unknown `against`.
Comparison CompareSavedRuns(const std::vector<SavedRun>& runs, const std::string& against);

// Tables from runs of one process: `baseline` in each, then the others. `against`: a SPEC or "".
struct BudgetRuns {
  int64_t budget_bytes = 0;
  std::vector<MethodRun> runs;  // Without the baseline.
};
std::vector<ComparisonTable> MakeTables(const MethodRun& baseline,
                                        const std::vector<BudgetRuns>& budgets,
                                        const std::string& against);

// The name of a SPEC is that of a method with simulated bytes.
bool IsSimulatedMethod(const std::string& spec);
// fp16, with any keys.
bool IsBaselineMethod(const std::string& spec);

}  // namespace pmkvq
