// Filters that work on single values, and the table of all filters.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "pmkvq/text/jinja/filters.h"
#include "pmkvq/text/jinja/format.h"
#include "pmkvq/text/jinja/operators.h"
#include "pmkvq/text/jinja/parameters.h"
#include "pmkvq/text/jinja/text_of.h"
#include "pmkvq/text/jinja/unicode.h"

namespace pmkvq::jinja {
namespace {

// Digits with single underscores between them, without them; empty for other texts.
std::string WithoutUnderscores(std::string_view text) {
  std::string digits;
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '_') {
      digits += text[i];
      continue;
    }
    const auto is_digit = [&](size_t at) {
      return at < text.size() && std::isalnum(static_cast<unsigned char>(text[at])) != 0;
    };
    if (i == 0 || !is_digit(i - 1) || !is_digit(i + 1)) return "";
  }
  return digits;
}

std::string_view Trimmed(std::string_view text) {
  text.remove_prefix(LeadingSpace(text));
  text.remove_suffix(TrailingSpace(text));
  return text;
}

// int(text, base) and float(text). False where Python raises ValueError.
bool ParseInteger(Interpreter& interpreter, std::string_view text, int base, int64_t* value) {
  text = Trimmed(text);
  const bool is_negative = text.starts_with('-');
  if (is_negative || text.starts_with('+')) text.remove_prefix(1);
  if (text.size() > 2 && text[0] == '0') {
    const char mark = static_cast<char>(text[1] | 0x20);
    const int marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 0;
    if (marked != 0 && (base == marked || base == 0)) {
      base = marked;
      text.remove_prefix(2);
    }
  }
  std::string digits = WithoutUnderscores(text);
  if (digits.empty() || digits.front() == '-') return false;
  if (is_negative) digits.insert(0, "-");
  const char* const end = digits.data() + digits.size();
  const auto [parsed, error] = std::from_chars(digits.data(), end, *value, base == 0 ? 10 : base);
  if (parsed != end) return false;
  if (error == std::errc::result_out_of_range) {
    interpreter.Fail("the integer does not fit 64 bits");
  }
  return error == std::errc();
}

bool ParseFloat(std::string_view text, double* value) {
  text = Trimmed(text);
  const bool is_negative = text.starts_with('-');
  if (is_negative || text.starts_with('+')) text.remove_prefix(1);
  std::string digits = WithoutUnderscores(text);
  if (digits.empty() || digits.front() == '-' || digits.front() == '+') return false;
  const char* const end = digits.data() + digits.size();
  const auto [parsed, error] = std::from_chars(digits.data(), end, *value);
  if (parsed != end) return false;
  if (error == std::errc::result_out_of_range) {
    *value = std::strtod(digits.c_str(), nullptr);
  } else if (error != std::errc()) {
    return false;
  }
  if (is_negative) *value = -*value;
  return true;
}

bool ToFloat(Interpreter& interpreter, const Value& value, double* number) {
  if (value.IsUndefined()) interpreter.FailUndefined(value);
  if (value.IsString()) return ParseFloat(value.string().view(), number);
  *number = value.as_double();
  return value.IsNumber();
}

Value IntegerOf(Interpreter& interpreter, double number) {
  if (!(std::abs(number) < 9.2e18)) interpreter.Fail("the integer does not fit 64 bits");
  return Value::Int(static_cast<int64_t>(number));
}

}  // namespace

Value FilterDefault(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "default", {"default_value", "boolean"});
  if (value.IsUndefined() || (parameters.Truth(1, false) && !IsTrue(value))) {
    return parameters.Or(0, interpreter.Text(""));
  }
  return value;
}

Value FilterAttr(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "attr", {"name"});
  const std::string name(parameters.Text(0).view());
  // Attributes only: items of dicts are none.
  if (value.IsDict()) {
    bool is_safe = true;
    if (HasMethod(value, name, &is_safe) && is_safe) return interpreter.BoundMethod(value, name);
    return interpreter.Undefined(fmt::format("'dict object' has no attribute '{}'", name));
  }
  return Attribute(interpreter, value, name);
}

Value FilterAbs(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "abs", {});
  if (value.IsUndefined()) interpreter.FailUndefined(value);
  if (!value.IsNumber()) {
    interpreter.Fail(fmt::format("bad operand type for abs(): '{}'", TypeName(value)));
  }
  if (value.Is(Kind::kFloat)) return Value::Float(std::abs(value.as_double()));
  return value.as_int() < 0 ? Negative(interpreter, value) : Value::Int(value.as_int());
}

Value FilterInt(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "int", {"default", "base"});
  const Value otherwise = parameters.Or(0, Value::Int(0));
  const int64_t base = parameters.Integer(1, 10);
  if (base != 0 && (base < 2 || base > 36)) return otherwise;
  if (value.IsUndefined()) interpreter.FailUndefined(value);
  int64_t integer = 0;
  if (value.IsString() &&
      ParseInteger(interpreter, value.string().view(), static_cast<int>(base), &integer)) {
    return Value::Int(integer);
  }
  if (value.IsInteger()) return Value::Int(value.as_int());
  double number = 0;
  if (!ToFloat(interpreter, value, &number) || std::isnan(number)) return otherwise;
  if (std::isinf(number)) {
    if (value.IsString()) return otherwise;
    interpreter.Fail("cannot convert float infinity to integer");
  }
  return IntegerOf(interpreter, number);
}

Value FilterFloat(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "float", {"default"});
  double number = 0;
  if (ToFloat(interpreter, value, &number)) return Value::Float(number);
  return parameters.Or(0, Value::Float(0.0));
}

Value FilterRound(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "round", {"precision", "method"});
  const int64_t precision = std::clamp<int64_t>(parameters.Integer(0, 0), -400, 400);
  const std::string method(parameters.Find(1) == nullptr ? "common" : parameters.Text(1).view());
  if (method != "common" && method != "ceil" && method != "floor") {
    interpreter.Fail("method must be common, ceil or floor");
  }
  if (value.IsUndefined()) interpreter.FailUndefined(value);
  if (!value.IsNumber()) {
    interpreter.Fail(fmt::format("type {} doesn't define __round__ method", TypeName(value)));
  }
  const double number = value.as_double();
  if (method == "common") {
    if (value.IsInteger() && precision >= 0) return Value::Int(value.as_int());
    const double rounded = RoundDecimal(number, static_cast<int>(precision));
    return value.IsInteger() ? IntegerOf(interpreter, rounded) : Value::Float(rounded);
  }
  const double unit = std::pow(10.0, static_cast<double>(precision));
  const double scaled = number * unit;
  if (!std::isfinite(scaled)) interpreter.Fail("the number is too large to round");
  return Value::Float((method == "ceil" ? std::ceil(scaled) : std::floor(scaled)) / unit);
}

FilterFunction FindFilter(std::string_view name) {
  static constexpr FilterEntry kFilters[] = {
      {"abs", FilterAbs},
      {"attr", FilterAttr},
      {"batch", FilterBatch},
      {"capitalize", FilterCapitalize},
      {"center", FilterCenter},
      {"count", FilterLength},
      {"d", FilterDefault},
      {"default", FilterDefault},
      {"dictsort", FilterDictSort},
      {"e", FilterEscape},
      {"escape", FilterEscape},
      {"first", FilterFirst},
      {"float", FilterFloat},
      {"forceescape", FilterForceEscape},
      {"format", FilterFormat},
      {"groupby", FilterGroupBy},
      {"indent", FilterIndent},
      {"int", FilterInt},
      {"items", FilterItems},
      {"join", FilterJoin},
      {"last", FilterLast},
      {"length", FilterLength},
      {"list", FilterList},
      {"lower", FilterLower},
      {"map", FilterMap},
      {"max", FilterMax},
      {"min", FilterMin},
      {"reject", FilterReject},
      {"rejectattr", FilterRejectAttr},
      {"replace", FilterReplace},
      {"reverse", FilterReverse},
      {"round", FilterRound},
      {"safe", FilterSafe},
      {"select", FilterSelect},
      {"selectattr", FilterSelectAttr},
      {"slice", FilterSlice},
      {"sort", FilterSort},
      {"string", FilterString},
      {"sum", FilterSum},
      {"title", FilterTitle},
      {"tojson", FilterToJson},
      {"trim", FilterTrim},
      {"truncate", FilterTruncate},
      {"unique", FilterUnique},
      {"upper", FilterUpper},
      {"urlencode", FilterUrlEncode},
      {"wordcount", FilterWordCount},
  };
  const auto* found = std::find_if(std::begin(kFilters), std::end(kFilters),
                                   [&](const FilterEntry& entry) { return entry.name == name; });
  return found == std::end(kFilters) ? nullptr : found->function;
}

}  // namespace pmkvq::jinja
