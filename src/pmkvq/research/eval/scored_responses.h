// Grading the responses of one or more evaluation runs.
//
// Input: JSON lines, one response each, as `pmkvq eval --out` writes them (docs/formats.md):
// {"id","answer","text"} and optionally "response" (its index among those of the problem),
// "finish_reason" and "output_tokens"; other fields are ignored. The text is graded again;
// "extracted" and "correct" are ignored. Rows with "grading":"code" are the exception: they do not
// hold the tests, so their "correct" counts.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/research/statistics/statistics.h"

namespace pmkvq {

// Finish reason of a response that ended with an error of model or cache: never right.
inline constexpr std::string_view kErrorReason = "error";

// One row of a response file.
struct ResponseRow {
  std::string id;
  std::string answer;
  std::string text;
  bool is_code = false;  // Graded when it was made; these two say how.
  bool correct = false;
  std::string extracted;
  std::optional<int64_t> response;  // From 0.
  std::string finish_reason;        // "" when the row has none. "error": unsolved, not graded.
  int64_t output_tokens = 0;
};
// `source` names file and line in errors. Throws InvalidInput.
ResponseRow ParseResponseRow(std::string_view line, const std::string& source);

// The rows of a file, or of all *.jsonl files of a folder in the order of their names. In a folder
// that eval made (run.json), unfinished.jsonl is left out, and a last line without its end is
// skipped: it is being written, or was cut short by a kill. Rows without an index are numbered per
// problem in their order. Throws InvalidInput naming file, line and field (also for one
// response given twice, and for two answers to one problem), IoError.
std::vector<ResponseRow> LoadResponses(const std::string& path);

struct JudgeSummary {
  int64_t num_problems = 0;
  int64_t num_responses = 0;
  // Shares in [0, 1].
  double pass_at_1 = 0;  // Of all responses.
  Interval interval;     // Of pass_at_1, 95 %: ClusteredShareInterval.
  // Between responses: the population standard deviation of the accuracy of response 0 of all
  // problems, of response 1, and so on. This is the paper's "+-": its values (LiveCodeBench, 4
  // responses to 175 problems) are possible with n, and impossible with n - 1, below the root.
  double standard_deviation = 0;
  // Problems whose most frequent answer is right. Equivalent answers count as one; of equally
  // frequent ones the first given wins; a response without an answer has no vote.
  double voting = 0;
  double mean_output_tokens = 0;
  double cut_by_length = 0;  // Finish reason "length".
  double cut_by_budget = 0;  // Finish reason "kv_budget".
};
// One response with its grade.
struct GradedResponse {
  std::string id;
  int64_t response = 0;
  bool is_code = false;  // Equal votes are equal texts then, not equal values.
  std::string extracted;
  bool correct = false;
  std::string finish_reason;
  int64_t output_tokens = 0;
};
// Throws nothing; no responses give all zeros and the interval [0, 1].
JudgeSummary SummarizeGraded(const std::vector<GradedResponse>& responses);
// Grades and summarises. Every row needs its index (LoadResponses).
JudgeSummary JudgeResponses(const std::vector<ResponseRow>& rows);

// One row {"response","gold"} of `pmkvq judge --cases`.
struct JudgeCase {
  std::string response;
  std::string gold;
};
// Throws InvalidInput naming file, line and field; IoError.
std::vector<JudgeCase> LoadJudgeCases(const std::string& path);

}  // namespace pmkvq
