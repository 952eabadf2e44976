// The table that eval and demo print: one row per method.
#pragma once

#include <string>
#include <vector>

#include "pmkvq/research/eval/evaluation.h"

namespace pmkvq::cli {

struct SolveRow {
  std::string method;
  ResponseSummary summary;
  double tokens_per_second = 0;  // 0: nothing was generated.
};

// Columns: method, share of pages at each width when the sequences ended, largest peak and budget
// of one sequence, responses solved, tokens per second of the whole batch. At most 78 columns; a
// method whose name is longer than its column has a line for the name.
std::string FormatSolveTable(const std::vector<SolveRow>& rows);

}  // namespace pmkvq::cli
