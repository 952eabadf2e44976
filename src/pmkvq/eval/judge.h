// Grading the responses of one or more evaluation runs.
//
// Input: JSON lines, one response each, as `pmkvq eval --out` writes them (docs/formats.md):
// {"id","answer","text"} and optionally "response" (its index among those of the problem),
// "finish_reason" and "output_tokens"; other fields are ignored. The text is graded anew, whatever
// "extracted" and "correct" say.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

struct JudgedText {
  std::string extracted;  // ExtractAnswer, "" when there is none.
  bool correct = false;   // EquivalentAnswers(extracted, ExtractGold(gold))
};
JudgedText JudgeText(std::string_view response, std::string_view gold);

// One row of a response file.
struct ResponseRow {
  std::string id;
  std::string answer;
  std::string text;
  std::optional<int64_t> response;  // From 0.
  std::string finish_reason;        // "" when the row has none.
  int64_t output_tokens = 0;
};
// `source` names file and line in errors. Throws InvalidInput.
ResponseRow ParseResponseRow(std::string_view line, const std::string& source);

// The rows of a file, or of all *.jsonl files of a folder in the order of their names. Rows without
// an index are numbered per problem in the order they come. Throws InvalidInput naming file, line
// and field (also for one response given twice, and for two answers to one problem), IoError.
std::vector<ResponseRow> LoadResponses(const std::string& path);

struct JudgeSummary {
  int64_t num_problems = 0;
  int64_t num_responses = 0;
  // Shares in [0, 1].
  double pass_at_1 = 0;  // Of all responses.
  // Between responses: the population standard deviation of the accuracy of response 0 of all
  // problems, of response 1, and so on. The paper's "+-" is this: its values (LiveCodeBench, 4
  // responses to 175 problems) are reachable with n, not with n - 1, below the root.
  double standard_deviation = 0;
  // Problems whose most frequent answer is right. Equivalent answers count as one; of equally
  // frequent ones the first given wins; a response without an answer has no vote.
  double voting = 0;
  double mean_output_tokens = 0;
  double cut_by_length = 0;  // Finish reason "length".
  double cut_by_budget = 0;  // Finish reason "kv_budget".
};
// Every row needs its index (LoadResponses). Throws nothing; no rows give all zeros.
JudgeSummary JudgeResponses(const std::vector<ResponseRow>& rows);

// One row {"response","gold"} of `pmkvq judge --cases`.
struct JudgeCase {
  std::string response;
  std::string gold;
};
// Throws InvalidInput naming file, line and field; IoError.
std::vector<JudgeCase> LoadJudgeCases(const std::string& path);

}  // namespace pmkvq
