// Data sets: calibration texts and problems with answers.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/limits.h"

namespace pmkvq {

// One calibration row: a text to tokenise, or token ids used as they are.
struct TextRow {
  std::string text;
  std::vector<int32_t> input_ids;  // Not empty: the row has ids, and text is empty.
};

// One problem with its answer.
struct ProblemRow {
  std::string id;
  std::string task;  // "" when the file has none.
  int64_t level = 0;
  std::string problem;
  std::string answer;
  std::string reference_chain;  // "" when the file has none.
};

// .jsonl: one object a line with "text" or "input_ids"; blank lines skipped; other fields ignored.
// .txt: the whole file is one row, read as PlainTextFile does. At most `max_rows` rows, of
// limits::kRowTokens ids each. Throws InvalidInput naming file, line and field; IoError.
std::vector<TextRow> LoadTextRows(const std::string& path, int64_t max_rows = limits::kTextRows);
TextRow ParseTextRow(std::string_view line, const std::string& source);  // Fuzz entry point.

// .jsonl with "problem" and "answer" (string, or number: as it is spelled), optional "id" (the
// same), "task", "level". Ids (default: the line number) must differ. At most `max_rows` rows.
std::vector<ProblemRow> LoadProblems(const std::string& path,
                                     int64_t max_rows = limits::kProblemRows);
// `source` names file and line in errors. A row without "id" gets an empty one.
ProblemRow ParseProblemRow(std::string_view line, const std::string& source);

}  // namespace pmkvq
