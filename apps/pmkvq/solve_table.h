// The table that eval and demo print: one row per method.
#pragma once

#include <string>
#include <vector>

#include "pmkvq/eval/solve.h"

namespace pmkvq::cli {

struct SolveRow {
  std::string method;
  SolveSummary summary;
};

// Columns: method, share of pages at each width when the sequences ended, largest peak and budget
// of one sequence, problems solved, tokens per second of the whole batch.
std::string FormatSolveTable(const std::vector<SolveRow>& rows);

}  // namespace pmkvq::cli
