// Filters that make text.
#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/text/jinja/filters.h"
#include "pmkvq/text/jinja/format.h"
#include "pmkvq/text/jinja/operators.h"
#include "pmkvq/text/jinja/parameters.h"
#include "pmkvq/text/jinja/string_methods.h"
#include "pmkvq/text/jinja/text_of.h"
#include "pmkvq/text/jinja/unicode.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq::jinja {
namespace {

// The value as a string that is no Markup.
Value PlainText(Interpreter& interpreter, const Value& value) {
  const Value text = TextOf(interpreter, value);
  if (!text.string().is_markup) return text;
  return interpreter.Text(text.string().text, false);
}

Value CaseFilter(Interpreter& interpreter, const Value& value, const Arguments& arguments,
                 std::string_view name, Case to) {
  const Parameters none(interpreter, arguments, name, {});
  return ChangeCase(interpreter, TextOf(interpreter, value).string(), to);
}

// The text of a value that has to be a string.
const String& RequireString(Interpreter& interpreter, const Value& value, std::string_view filter) {
  if (value.IsUndefined()) interpreter.FailUndefined(value);
  if (!value.IsString()) {
    interpreter.Fail(
        fmt::format("the filter {} is given a {}, expected a string", filter, TypeName(value)));
  }
  return value.string();
}

}  // namespace

Value FilterUpper(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  return CaseFilter(interpreter, value, arguments, "upper", Case::kUpper);
}

Value FilterLower(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  return CaseFilter(interpreter, value, arguments, "lower", Case::kLower);
}

Value FilterCapitalize(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  return CaseFilter(interpreter, value, arguments, "capitalize", Case::kCapital);
}

// The first letter of each word in upper case, the rest in lower case. Unlike the method, words
// begin behind white space, -, (, {, [ and < only.
Value FilterTitle(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "title", {});
  const Value text = TextOf(interpreter, value);
  const String& string = text.string();
  const std::string_view view = string.view();
  StringBuilder builder(interpreter);
  bool begins_word = true;
  size_t length = 0;
  for (size_t i = 0; i < view.size(); i += length) {
    const char32_t c = DecodeUtf8(view, i, &length);
    builder.AppendAs(string, i, begins_word ? UpperCase(c) : LowerCase(c));
    begins_word = IsPythonSpace(c) || c == '-' || c == '(' || c == '{' || c == '[' || c == '<';
  }
  return builder.Take();
}

Value FilterTrim(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "trim", {"chars"});
  const Value text = TextOf(interpreter, value);
  const Value* set = parameters.Find(0);
  const bool has_set = set != nullptr && !set->Is(Kind::kNone);
  return Strip(interpreter, text.string(), Side::kBoth, has_set ? &parameters.Text(0) : nullptr);
}

Value FilterString(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "string", {});
  return TextOf(interpreter, value);
}

Value FilterSafe(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "safe", {});
  return interpreter.Text(TextOf(interpreter, value).string().text, true);
}

Value FilterEscape(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "escape", {});
  return Escape(interpreter, value);
}

Value FilterForceEscape(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "forceescape", {});
  return Escape(interpreter, PlainText(interpreter, value));
}

Value FilterReplace(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "replace", {"old", "new", "count"});
  const Value* count = parameters.Find(2);
  const bool has_count = count != nullptr && !count->Is(Kind::kNone);
  return Replace(interpreter, PlainText(interpreter, value).string(),
                 TextOf(interpreter, parameters.Required(0)).string(),
                 TextOf(interpreter, parameters.Required(1)).string(),
                 has_count ? parameters.Integer(2) : -1);
}

Value FilterFormat(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Value text = TextOf(interpreter, value);
  if (!arguments.named.empty()) {
    if (!arguments.positional.empty()) {
      interpreter.Fail("format takes positions or names, not both");
    }
    Dict names;
    for (const auto& [name, argument] : arguments.named) {
      names.Set(interpreter.Text(name), argument);
    }
    return FormatPercent(interpreter, text, interpreter.FromDict(std::move(names)));
  }
  return FormatPercent(interpreter, text, interpreter.Items(Kind::kTuple, arguments.positional));
}

Value FilterCenter(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "center", {"width"});
  Arguments width;
  width.positional = {Value::Int(parameters.Integer(0, 80))};
  return CallStringMethod(interpreter, TextOf(interpreter, value), "center", width);
}

Value FilterIndent(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "indent", {"width", "first", "blank"});
  const String& text = RequireString(interpreter, value, "indent");
  Value indention = parameters.Or(0, Value::Int(4));
  if (!indention.IsString()) {
    indention =
        Arithmetic(interpreter, '*', interpreter.Text(" "), Value::Int(parameters.Integer(0, 4)));
  }
  const bool first = parameters.Truth(1, false);
  const bool blank = parameters.Truth(2, false);
  // Python adds a line break before it splits, so that an empty last line counts.
  StringBuilder ended(interpreter);
  ended.Append(text);
  ended.Append("\n");
  const Value with_end = ended.Take(text.is_markup);
  const std::vector<Value> lines = SplitLines(interpreter, with_end.string(), false);
  StringBuilder builder(interpreter);
  for (size_t i = 0; i < lines.size(); ++i) {
    const String& line = lines[i].string();
    if (i > 0) builder.Append("\n");
    if (i == 0 ? first : blank || !line.view().empty()) builder.Append(indention.string());
    builder.Append(line);
  }
  return builder.Take(text.is_markup);
}

Value FilterTruncate(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "truncate",
                              {"length", "killwords", "end", "leeway"});
  const int64_t length = parameters.Integer(0, 255);
  const Value end = parameters.Or(2, interpreter.Text("..."));
  const Value* given_leeway = parameters.Find(3);
  const int64_t leeway =
      given_leeway == nullptr || given_leeway->Is(Kind::kNone) ? 5 : parameters.Integer(3);
  if (!end.IsString() || length < interpreter.Length(end) || leeway < 0) {
    interpreter.Fail("truncate wants a length of at least that of its end, and no negative leeway");
  }
  if (interpreter.Length(value) <= length || interpreter.Length(value) - length <= leeway) {
    return value;
  }
  const String& text = RequireString(interpreter, value, "truncate");
  size_t cut = OffsetOfCharacter(text.view(), length - interpreter.Length(end));
  if (!parameters.Truth(1, false)) {
    const size_t space = text.view().substr(0, cut).rfind(' ');
    if (space != std::string_view::npos) cut = space;
  }
  return Arithmetic(interpreter, '+', Substring(interpreter, text, 0, cut), end);
}

Value FilterWordCount(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "wordcount", {});
  const Value text = TextOf(interpreter, value);
  const std::string_view view = text.string().view();
  interpreter.StepItems(view.size());
  int64_t words = 0;
  bool inside = false;
  size_t length = 0;
  for (size_t i = 0; i < view.size(); i += length) {
    const char32_t c = DecodeUtf8(view, i, &length);
    const bool is_word = IsAlpha(c) || IsNumeric(c) || c == '_';
    if (is_word && !inside) ++words;
    inside = is_word;
  }
  return Value::Int(words);
}

Value FilterUrlEncode(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters none(interpreter, arguments, "urlencode", {});
  StringBuilder builder(interpreter);
  const auto quote = [&](const Value& part, bool keeps_slash) {
    const Value text = TextOf(interpreter, part);
    const std::string_view view = text.string().view();
    for (size_t i = 0; i < view.size(); ++i) {
      const auto c = static_cast<unsigned char>(view[i]);
      const bool is_plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                            (c >= 'A' && c <= 'Z') || c == '_' || c == '.' || c == '-' ||
                            c == '~' || (c == '/' && keeps_slash);
      if (is_plain) {
        builder.Append(text.string(), i, i + 1);
      } else if (c == ' ' && !keeps_slash) {
        builder.Append("+");
      } else {
        builder.Append(fmt::format("%{:02X}", c));
      }
    }
  };
  if (value.IsString() || !(value.IsDict() || value.HasItems())) {
    quote(value, true);
    return builder.Take();
  }
  const Value pairs = value.IsDict() ? FilterItems(interpreter, value, {}) : value;
  bool is_first = true;
  const std::shared_ptr<const Sequence> walked = interpreter.Walk(pairs);
  for (const Value& pair : walked->items) {
    const std::shared_ptr<const Sequence> parts = interpreter.Walk(pair);
    if (parts->items.size() != 2) interpreter.Fail("urlencode wants pairs of names and values");
    if (!is_first) builder.Append("&");
    is_first = false;
    quote(parts->items[0], false);
    builder.Append("=");
    quote(parts->items[1], false);
  }
  return builder.Take();
}

// As transformers defines it for chat templates: json.dumps without escapes for HTML.
Value FilterToJson(Interpreter& interpreter, const Value& value, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "tojson",
                              {"ensure_ascii", "indent", "separators", "sort_keys"});
  JsonFormat format;
  format.ensure_ascii = parameters.Truth(0, false);
  format.sort_keys = parameters.Truth(3, false);
  const Value indent = parameters.Or(1, Value::None());
  if (!indent.Is(Kind::kNone)) {
    format.has_indent = true;
    format.item_separator = ",";
    if (indent.IsString()) {
      format.indent = indent.string().view();
    } else {
      format.indent.assign(static_cast<size_t>(std::clamp<int64_t>(parameters.Integer(1), 0, 1000)),
                           ' ');
    }
  }
  const Value separators = parameters.Or(2, Value::None());
  if (!separators.Is(Kind::kNone)) {
    const std::shared_ptr<const Sequence> pair = interpreter.Walk(separators);
    if (pair->items.size() != 2 || !pair->items[0].IsString() || !pair->items[1].IsString()) {
      interpreter.Fail("the argument \"separators\" of tojson() wants two strings");
    }
    format.item_separator = pair->items[0].string().view();
    format.key_separator = pair->items[1].string().view();
  }
  StringBuilder builder(interpreter);
  AppendJson(interpreter, value, format, &builder);
  return builder.Take();
}

}  // namespace pmkvq::jinja
