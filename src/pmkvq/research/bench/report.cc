#include "pmkvq/research/bench/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "pmkvq/io/json.h"

namespace pmkvq {
namespace {

std::string Text(const BenchField& field) {
  if (const auto* number = std::get_if<double>(&field.value)) {
    return fmt::format("{:.{}f}", *number, field.digits);
  }
  if (const auto* integer = std::get_if<int64_t>(&field.value)) {
    return fmt::format("{}", *integer);
  }
  return std::get<std::string>(field.value);
}

void WriteField(const BenchField& field, JsonWriter& json) {
  if (field.name.empty()) return;
  json.Key(field.name);
  if (const auto* number = std::get_if<double>(&field.value)) {
    json.Number(*number);
  } else if (const auto* integer = std::get_if<int64_t>(&field.value)) {
    json.Int(*integer);
  } else {
    json.String(std::get<std::string>(field.value));
  }
}

std::string FormatTable(const BenchTable& table) {
  std::string text = table.title.empty() ? "" : table.title + "\n";
  if (table.rows.empty()) return text;
  std::vector<std::string> lines(table.rows.size() + 1);
  for (size_t column = 0; column < table.rows[0].fields().size(); ++column) {
    const std::string& heading = table.rows[0].fields()[column].heading;
    if (heading.empty()) continue;
    size_t width = heading.size();
    for (const BenchFields& row : table.rows) {
      width = std::max(width, Text(row.fields()[column]).size());
    }
    const std::string gap = lines[0].empty() ? "" : "  ";
    lines[0] += gap + fmt::format("{:>{}}", heading, width);
    for (size_t row = 0; row < table.rows.size(); ++row) {
      lines[row + 1] += gap + fmt::format("{:>{}}", Text(table.rows[row].fields()[column]), width);
    }
  }
  for (const std::string& line : lines) text += line + "\n";
  return text;
}

}  // namespace

BenchFields& BenchFields::Add(const std::string& name, BenchValue value, const std::string& heading,
                              int digits) {
  fields_.push_back({name, std::move(value), heading, digits});
  return *this;
}

BenchFields& BenchFields::AddSpread(const std::string& name, const Spread& spread,
                                    const std::string& heading, int digits) {
  const auto bound = [&](const char* which) { return heading.empty() ? "" : which; };
  Add(name, spread.median, heading, digits);
  Add(name + "_p10", spread.p10, bound("p10"), digits);
  Add(name + "_p90", spread.p90, bound("p90"), digits);
  return *this;
}

std::string ToJson(const BenchReport& report) {
  JsonWriter json;
  json.BeginObject();
  std::set<std::string> names;
  for (const BenchField& field : report.facts.fields()) {
    names.insert(field.name);
    WriteField(field, json);
  }
  if (!report.tables.empty() && report.tables[0].rows.size() == 1) {
    for (const BenchField& field : report.tables[0].rows[0].fields()) {
      if (names.insert(field.name).second) WriteField(field, json);
    }
  }
  for (const BenchTable& table : report.tables) {
    json.Key(table.name).BeginArray();
    for (const BenchFields& row : table.rows) {
      json.BeginObject();
      for (const BenchField& field : row.fields()) WriteField(field, json);
      json.EndObject();
    }
    json.EndArray();
  }
  json.EndObject();
  return json.text();
}

std::string FormatReport(const BenchReport& report) {
  std::string text;
  for (const BenchField& field : report.facts.fields()) {
    if (!field.heading.empty()) text += fmt::format("{:<22}{}\n", field.heading, Text(field));
  }
  for (const BenchTable& table : report.tables) text += "\n" + FormatTable(table);
  if (!report.notes.empty()) text += "\n";
  for (const std::string& note : report.notes) text += note + "\n";
  return text;
}

}  // namespace pmkvq
