// Values as text: Python's str() and repr(), JSON, and searches in text. Internal to text/jinja.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/text/jinja/runtime.h"
#include "pmkvq/text/jinja/value.h"

namespace pmkvq::jinja {

// str(value), with the marks of the strings in it.
void AppendText(Runtime& runtime, const Value& value, StringBuilder* builder);
Value TextOf(Runtime& runtime, const Value& value);
// repr(value)
void AppendRepr(Runtime& runtime, const Value& value, StringBuilder* builder);
// Python's text of a float: the shortest that reads back, with ".0" or an exponent.
std::string FloatText(double number);

struct JsonFormat {
  bool ensure_ascii = false;
  bool has_indent = false;
  std::string indent;  // Of one level.
  std::string item_separator = ", ";
  std::string key_separator = ": ";
  bool sort_keys = false;
};
// json.dumps(value). Throws for values that JSON cannot express.
void AppendJson(Runtime& runtime, const Value& value, const JsonFormat& format,
                StringBuilder* builder);

// Where `part` is in `text` from `from` on, or npos. Linear for all texts.
size_t FindText(std::string_view text, std::string_view part, size_t from);

// Where `part` begins last in `text`, or npos. Charges the worst cost to the step limit.
size_t FindTextFromRight(Runtime& runtime, std::string_view text, std::string_view part);

// A range from its numbers.
Value RangeOf(Runtime& runtime, std::vector<Value> numbers);

}  // namespace pmkvq::jinja
