// What a benchmark found: named values in tables, shown to a person or written as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <variant>
#include <vector>

#include "pmkvq/research/bench/measurements.h"

namespace pmkvq {

using BenchValue = std::variant<int64_t, double, std::string>;

struct BenchField {
  std::string name;  // The JSON key, with the unit in it; empty: for people only.
  BenchValue value;
  std::string heading;  // Of the column or line; empty: in the JSON only.
  int digits = 2;       // Behind the decimal point, for people.
};

// The fields of one row of a table, or the fields that all rows share.
class BenchFields {
 public:
  BenchFields& Add(const std::string& name, BenchValue value, const std::string& heading = "",
                   int digits = 2);
  // The median under `name`, and NAME_p10 and NAME_p90.
  BenchFields& AddSpread(const std::string& name, const Spread& spread,
                         const std::string& heading = "", int digits = 2);
  // A line for people, nothing in the JSON.
  BenchFields& AddText(const std::string& heading, const std::string& text) {
    return Add("", text, heading);
  }
  const std::vector<BenchField>& fields() const { return fields_; }

 private:
  std::vector<BenchField> fields_;
};

struct BenchTable {
  std::string name;               // Its JSON key.
  std::string title;              // A line above it; may be empty.
  std::vector<BenchFields> rows;  // The same columns in all of them.
};

struct BenchReport {
  BenchFields facts;  // What was measured where, and the ceilings.
  std::vector<BenchTable> tables;
  std::vector<std::string> notes;  // Lines below the tables.
};

// One line: the facts, each table as an array of objects, and the fields of the first table's row
// once more at the top where it is the only one.
std::string ToJson(const BenchReport& report);

// Text for a terminal, with a newline at its end.
std::string FormatReport(const BenchReport& report);

}  // namespace pmkvq
