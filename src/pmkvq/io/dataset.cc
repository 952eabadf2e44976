#include "pmkvq/io/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_lines.h"

namespace pmkvq {
namespace {

// The shortest rows that there can be: {"text":""} and {"problem":"a","answer":""}, each with LF.
constexpr size_t kMinTextRowBytes = 12;
constexpr size_t kMinProblemRowBytes = 28;

void CheckRowCount(size_t num_rows, int64_t max_rows, const std::string& source) {
  if (static_cast<int64_t>(num_rows) < max_rows) return;
  throw InvalidInput(
      source,
      fmt::format("rows: found more than {}, expected at most that: split the file", max_rows));
}

// Calls parse(line, "path:number", number) for every line that is not blank; there must be one.
template <class Parse>
void ForEachRow(const std::string& path, Parse parse) {
  if (ForEachLine(path, parse) == 0) {
    throw InvalidInput(path, "rows: found none, expected at least one JSON line");
  }
}

TextRow WholeFile(const std::string& path) {
  TextRow row;
  row.text = PlainTextFile(path);
  if (row.text.empty()) throw InvalidInput(path, "text: found an empty file, expected some text");
  return row;
}

std::string OptionalText(const JsonValue& json, const std::string& key) {
  return json.Has(key) ? json.At(key).AsString() : "";
}

}  // namespace

TextRow ParseTextRow(std::string_view line, const std::string& source) {
  const JsonValue json = JsonValue::Parse(line, source);
  if (!json.IsObject()) json.Fail("an object with \"text\" or \"input_ids\"");
  TextRow row;
  if (json.Has("input_ids")) {
    const JsonValue ids = json.At("input_ids");
    if (!ids.IsArray() || ids.size() == 0) ids.Fail("a non-empty array of token ids");
    const size_t count = ids.size();
    if (count > limits::kRowTokens) ids.Fail(fmt::format("at most {} ids", limits::kRowTokens));
    row.input_ids.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      const int64_t id = ids.At(i).AsInt(0, std::numeric_limits<int32_t>::max());
      row.input_ids.push_back(static_cast<int32_t>(id));
    }
    return row;
  }
  const JsonValue text = json.Find("text");
  if (!text.IsString()) text.Fail("a string (or an array \"input_ids\")");
  row.text = text.AsString();
  return row;
}

std::vector<TextRow> LoadTextRows(const std::string& path, int64_t max_rows) {
  if (path.ends_with(".txt")) return {WholeFile(path)};
  if (!path.ends_with(".jsonl")) {
    throw InvalidInput(path, "file name: found another suffix, expected .jsonl or .txt");
  }
  std::vector<TextRow> rows;
  rows.reserve(std::min(CountLines(path, kMinTextRowBytes), static_cast<size_t>(max_rows)));
  ForEachRow(path, [&](std::string_view line, const std::string& source, int64_t) {
    CheckRowCount(rows.size(), max_rows, source);
    rows.push_back(ParseTextRow(line, source));
  });
  return rows;
}

ProblemRow ParseProblemRow(std::string_view line, const std::string& source) {
  const JsonValue json = JsonValue::Parse(line, source);
  if (!json.IsObject()) json.Fail("an object with \"problem\" and \"answer\"");
  ProblemRow row;
  if (json.Has("id")) row.id = json.At("id").AsTextOrNumber();
  row.task = OptionalText(json, "task");
  if (json.Has("level")) row.level = json.At("level").AsInt();
  const JsonValue problem = json.Find("problem");
  row.problem = problem.AsString();
  if (row.problem.empty()) problem.Fail("a string that is not empty");
  row.answer = json.Find("answer").AsTextOrNumber();
  row.reference_chain = OptionalText(json, "reference_chain");
  return row;
}

namespace {

// Throws InvalidInput for the second row of an id; lines[i] is the line of rows[i].
void CheckIdsDiffer(const std::vector<ProblemRow>& rows, const std::vector<int64_t>& lines,
                    const std::string& path) {
  std::vector<uint32_t> order(rows.size());
  std::iota(order.begin(), order.end(), 0u);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return rows[a].id < rows[b].id; });
  const auto same = std::adjacent_find(
      order.begin(), order.end(), [&](uint32_t a, uint32_t b) { return rows[a].id == rows[b].id; });
  if (same == order.end()) return;
  throw InvalidInput(fmt::format("{}:{}", path, lines[*(same + 1)]),
                     fmt::format("id: found '{}' again, expected every id once", rows[*same].id));
}

}  // namespace

std::vector<ProblemRow> LoadProblems(const std::string& path, int64_t max_rows) {
  std::vector<ProblemRow> rows;
  std::vector<int64_t> lines;
  const size_t count =
      std::min(CountLines(path, kMinProblemRowBytes), static_cast<size_t>(max_rows));
  rows.reserve(count);
  lines.reserve(count);
  ForEachRow(path, [&](std::string_view line, const std::string& source, int64_t number) {
    CheckRowCount(rows.size(), max_rows, source);
    ProblemRow row = ParseProblemRow(line, source);
    if (row.id.empty()) row.id = std::to_string(number);
    rows.push_back(std::move(row));
    lines.push_back(number);
  });
  CheckIdsDiffer(rows, lines, path);
  return rows;
}

}  // namespace pmkvq
