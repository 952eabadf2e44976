// DIR/comparison.json: the runs and responses that `pmkvq compare --out DIR` compared
// (docs/formats.md). With it the table can be made again from DIR alone.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/kv/kv_types.h"

namespace pmkvq {

struct ListedRun {
  std::string method;        // SPEC
  int64_t budget_bytes = 0;  // 0: the baseline.
  bool is_run = true;        // False: the budget does not hold max_len tokens.
  int64_t needed_bytes = 0;  // As in MethodRun.
  int64_t needed_tokens = 0;
};
struct ComparisonList {
  std::string benchmark;
  std::string model;                  // Identity.
  std::vector<std::string> problems;  // Ids.
  int64_t num_responses = 1;          // To each problem.
  std::string against;                // SPEC or "".
  int64_t values_per_token = 0;       // That the cache holds: KvGeometry::values.
  std::vector<ListedRun> runs;        // In the order of the tables, the baseline first.
};
std::string ComparisonListJson(const ComparisonList& list);
// Throws InvalidInput naming `source` and the field.
ComparisonList ParseComparisonList(std::string_view text, const std::string& source);
// `list` with additional runs at its end: those of `earlier` that `list` lacks. Where the two do
// not compare the same responses: `list` alone.
ComparisonList MergeLists(const ComparisonList& list, const ComparisonList& earlier);

}  // namespace pmkvq
