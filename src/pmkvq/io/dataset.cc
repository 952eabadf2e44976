#include "pmkvq/io/dataset.h"

#include <fmt/format.h>

#include <limits>
#include <set>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/io/json_lines.h"
#include "pmkvq/io/utf8.h"

namespace pmkvq {
namespace {

bool EndsWith(const std::string& text, std::string_view suffix) {
  return text.size() >= suffix.size() &&
         text.compare(text.size() - suffix.size(), suffix.size(), suffix) == 0;
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
  row.text = ReadFile(path);
  const size_t valid = ValidUtf8Prefix(row.text);
  if (valid != row.text.size()) {
    throw InvalidInput(path, fmt::format("byte {}: found 0x{:02x}, expected UTF-8 text", valid,
                                         static_cast<unsigned char>(row.text[valid])));
  }
  if (row.text.empty()) throw InvalidInput(path, "text: found an empty file, expected some text");
  return row;
}

// A string, or a number as it is spelled in JSON.
std::string TextOrNumber(const JsonValue& value) {
  if (value.IsString()) return value.AsString();
  if (!value.IsNumber()) value.Fail("a string or a number");
  return value.Dump();
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
    row.input_ids.reserve(ids.size());
    for (size_t i = 0; i < ids.size(); ++i) {
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

std::vector<TextRow> LoadTextRows(const std::string& path) {
  if (EndsWith(path, ".txt")) return {WholeFile(path)};
  if (!EndsWith(path, ".jsonl")) {
    throw InvalidInput(path, "file name: found another suffix, expected .jsonl or .txt");
  }
  std::vector<TextRow> rows;
  ForEachRow(path, [&](std::string_view line, const std::string& source, int64_t) {
    rows.push_back(ParseTextRow(line, source));
  });
  return rows;
}

ProblemRow ParseProblemRow(std::string_view line, const std::string& source) {
  const JsonValue json = JsonValue::Parse(line, source);
  if (!json.IsObject()) json.Fail("an object with \"problem\" and \"answer\"");
  ProblemRow row;
  if (json.Has("id")) row.id = TextOrNumber(json.At("id"));
  row.task = OptionalText(json, "task");
  if (json.Has("level")) row.level = json.At("level").AsInt();
  const JsonValue problem = json.Find("problem");
  row.problem = problem.AsString();
  if (row.problem.empty()) problem.Fail("a string that is not empty");
  row.answer = TextOrNumber(json.Find("answer"));
  row.reference_chain = OptionalText(json, "reference_chain");
  return row;
}

std::vector<ProblemRow> LoadProblems(const std::string& path) {
  std::vector<ProblemRow> rows;
  std::set<std::string> ids;
  ForEachRow(path, [&](std::string_view line, const std::string& source, int64_t number) {
    ProblemRow row = ParseProblemRow(line, source);
    if (row.id.empty()) row.id = std::to_string(number);
    if (!ids.insert(row.id).second) {
      throw InvalidInput(source,
                         fmt::format("id: found '{}' again, expected every id once", row.id));
    }
    rows.push_back(std::move(row));
  });
  return rows;
}

}  // namespace pmkvq
