#include "pmkvq/text/jinja/string_methods.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>

#include "pmkvq/text/jinja/format.h"
#include "pmkvq/text/jinja/library.h"
#include "pmkvq/text/jinja/operators.h"
#include "pmkvq/text/jinja/parameters.h"
#include "pmkvq/text/jinja/text_of.h"
#include "pmkvq/text/jinja/unicode.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq::jinja {
namespace {

constexpr size_t kNone = std::string_view::npos;

// Where each character of strip()'s argument is looked for: in the argument as a whole.
bool HasCharacter(std::string_view characters, std::string_view text, size_t begin, size_t length) {
  return characters.find(text.substr(begin, length)) != kNone;
}

bool IsCasedOrIgnored(std::string_view text, size_t end) {
  // Characters that a final sigma looks through: here apostrophes, dots and marks are not told
  // apart, as no published template lowers Greek.
  size_t length = 0;
  return end > 0 && IsAlpha(DecodeUtf8Before(text, end, &length));
}

std::string Lowered(std::string_view text, size_t begin, size_t length, char32_t c) {
  constexpr char32_t kSigma = 0x3A3;
  if (c != kSigma) return LowerCase(c);
  size_t next_length = 0;
  const bool has_next =
      begin + length < text.size() && IsAlpha(DecodeUtf8(text, begin + length, &next_length));
  return IsCasedOrIgnored(text, begin) && !has_next ? "\u03C2" : "\u03C3";
}

Value SplitResult(Runtime& runtime, std::vector<Value> parts) {
  return runtime.List(std::move(parts));
}

std::vector<Value> SplitBySpace(Runtime& runtime, const String& text, int64_t max_splits) {
  const std::string_view view = text.view();
  std::vector<Value> parts;
  size_t at = LeadingSpace(view);
  while (at < view.size()) {
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) >= max_splits) {
      // The rest keeps the white space at its end.
      parts.push_back(Substring(runtime, text, at, view.size()));
      break;
    }
    size_t end = at;
    size_t length = 0;
    while (end < view.size() && !IsPythonSpace(DecodeUtf8(view, end, &length))) end += length;
    runtime.Step();
    parts.push_back(Substring(runtime, text, at, end));
    at = end + LeadingSpace(view.substr(end));
  }
  return parts;
}

std::vector<Value> SplitBySpaceFromRight(Runtime& runtime, const String& text, int64_t max_splits) {
  const std::string_view view = text.view();
  std::vector<Value> parts;
  size_t end = view.size() - TrailingSpace(view);
  while (end > 0) {
    if (max_splits >= 0 && static_cast<int64_t>(parts.size()) >= max_splits) {
      parts.push_back(Substring(runtime, text, 0, end));
      break;
    }
    size_t begin = end;
    size_t length = 0;
    while (begin > 0 && !IsPythonSpace(DecodeUtf8Before(view, begin, &length))) begin -= length;
    runtime.Step();
    parts.push_back(Substring(runtime, text, begin, end));
    end = begin - TrailingSpace(view.substr(0, begin));
  }
  std::reverse(parts.begin(), parts.end());
  return parts;
}

std::vector<Value> SplitByText(Runtime& runtime, const String& text, std::string_view separator,
                               int64_t max_splits) {
  const std::string_view view = text.view();
  runtime.StepBytes(view.size());
  std::vector<Value> parts;
  size_t at = 0;
  while (max_splits < 0 || static_cast<int64_t>(parts.size()) < max_splits) {
    const size_t found = FindText(view, separator, at);
    if (found == kNone) break;
    runtime.Step();
    parts.push_back(Substring(runtime, text, at, found));
    at = found + separator.size();
  }
  parts.push_back(Substring(runtime, text, at, view.size()));
  return parts;
}

std::vector<Value> SplitByTextFromRight(Runtime& runtime, const String& text,
                                        std::string_view separator, int64_t max_splits) {
  std::vector<Value> parts;
  size_t end = text.view().size();
  while (static_cast<int64_t>(parts.size()) < max_splits) {
    runtime.Step();
    const size_t found = FindTextFromRight(runtime, text.view().substr(0, end), separator);
    if (found == kNone) break;
    parts.push_back(Substring(runtime, text, found + separator.size(), end));
    end = found;
  }
  parts.push_back(Substring(runtime, text, 0, end));
  std::reverse(parts.begin(), parts.end());
  return parts;
}

Value Split(Interpreter& interpreter, const String& text, const Arguments& arguments,
            bool from_right) {
  const Parameters parameters(interpreter, arguments, from_right ? "rsplit" : "split",
                              {"sep", "maxsplit"});
  const int64_t max_splits = parameters.Integer(1, -1);
  const Value* separator = parameters.Find(0);
  if (separator == nullptr || separator->Is(Kind::kNone)) {
    return SplitResult(interpreter, from_right
                                        ? SplitBySpaceFromRight(interpreter, text, max_splits)
                                        : SplitBySpace(interpreter, text, max_splits));
  }
  const std::string_view mark = parameters.Text(0).view();
  if (mark.empty()) interpreter.Fail("empty separator");
  if (from_right) {
    const int64_t limit = max_splits < 0 ? std::numeric_limits<int64_t>::max() : max_splits;
    return SplitResult(interpreter, SplitByTextFromRight(interpreter, text, mark, limit));
  }
  return SplitResult(interpreter, SplitByText(interpreter, text, mark, max_splits));
}

Value Partition(Interpreter& interpreter, const String& text, const Arguments& arguments,
                bool from_right) {
  const Parameters parameters(interpreter, arguments, "partition", {"sep"});
  const String& separator = parameters.Text(0);
  if (separator.view().empty()) interpreter.Fail("empty separator");
  interpreter.StepBytes(text.view().size());
  const size_t size = text.view().size();
  const size_t found = from_right ? FindTextFromRight(interpreter, text.view(), separator.view())
                                  : FindText(text.view(), separator.view(), 0);
  std::vector<Value> parts;
  if (found == kNone) {
    parts = {Substring(interpreter, text, 0, size), interpreter.Text(""), interpreter.Text("")};
    if (from_right) std::swap(parts[0], parts[2]);
  } else {
    const size_t end = found + separator.view().size();
    parts = {Substring(interpreter, text, 0, found), Substring(interpreter, text, found, end),
             Substring(interpreter, text, end, size)};
  }
  return interpreter.Items(Kind::kTuple, std::move(parts));
}

// The part of a text that the arguments start and end of find() and others name, in bytes.
std::pair<size_t, size_t> Window(Interpreter& interpreter, std::string_view text,
                                 const Parameters& parameters) {
  const int64_t length = CountCharacters(text);
  interpreter.StepBytes(text.size());
  const auto bound = [&](size_t index, int64_t otherwise) {
    const Value* given = parameters.Find(index);
    int64_t place =
        given == nullptr || given->Is(Kind::kNone) ? otherwise : parameters.Integer(index);
    if (place < 0) place = std::max<int64_t>(place + length, 0);
    return place;
  };
  const int64_t start = bound(1, 0);
  const int64_t end = std::min(bound(2, length), length);
  if (start > end) return {1, 0};  // Nothing is found, not even the empty text.
  return {OffsetOfCharacter(text, start), OffsetOfCharacter(text, end)};
}

bool AffixMatches(Interpreter& interpreter, std::string_view text, const Value& affix,
                  bool at_start) {
  if (affix.Is(Kind::kTuple)) {
    for (const Value& one : affix.sequence().items) {
      interpreter.Step();
      if (AffixMatches(interpreter, text, one, at_start)) return true;
    }
    return false;
  }
  if (affix.IsUndefined()) interpreter.FailUndefined(affix);
  if (!affix.IsString()) {
    interpreter.Fail(fmt::format("{} first arg must be str or a tuple of str, not {}",
                                 at_start ? "startswith" : "endswith", TypeName(affix)));
  }
  const std::string_view part = affix.string().view();
  interpreter.StepBytes(part.size());
  return at_start ? text.starts_with(part) : text.ends_with(part);
}

Value HasAffix(Interpreter& interpreter, const String& text, const Arguments& arguments,
               bool at_start) {
  const Parameters parameters(interpreter, arguments, at_start ? "startswith" : "endswith",
                              {"prefix", "start", "end"});
  const Value& affix = parameters.Required(0);
  const auto [begin, end] = Window(interpreter, text.view(), parameters);
  if (begin > end) return Value::Bool(false);
  return Value::Bool(
      AffixMatches(interpreter, text.view().substr(begin, end - begin), affix, at_start));
}

Value Find(Interpreter& interpreter, const String& text, std::string_view name,
           const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, name, {"sub", "start", "end"});
  const std::string_view part = parameters.Text(0).view();
  const auto [begin, end] = Window(interpreter, text.view(), parameters);
  size_t found = kNone;
  if (begin <= end) {
    const std::string_view window = text.view().substr(begin, end - begin);
    found = name.front() == 'r' ? FindTextFromRight(interpreter, window, part)
                                : FindText(window, part, 0);
  }
  if (found == kNone) {
    if (name == "index" || name == "rindex") interpreter.Fail("substring not found");
    return Value::Int(-1);
  }
  return Value::Int(CountCharacters(text.view().substr(0, begin + found)));
}

Value Count(Interpreter& interpreter, const String& text, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "count", {"sub", "start", "end"});
  const std::string_view part = parameters.Text(0).view();
  const auto [begin, end] = Window(interpreter, text.view(), parameters);
  if (begin > end) return Value::Int(0);
  const std::string_view window = text.view().substr(begin, end - begin);
  if (part.empty()) return Value::Int(CountCharacters(window) + 1);
  int64_t count = 0;
  for (size_t at = FindText(window, part, 0); at != kNone;
       at = FindText(window, part, at + part.size())) {
    interpreter.Step();
    ++count;
  }
  return Value::Int(count);
}

Value Justify(Interpreter& interpreter, const String& text, std::string_view name,
              const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, name, {"width", "fillchar"});
  const int64_t width = parameters.Integer(0);
  std::string_view fill = " ";
  if (name == "zfill") {
    fill = "0";
  } else if (parameters.Find(1) != nullptr) {
    fill = parameters.Text(1).view();
    if (CountCharacters(fill) != 1) interpreter.Fail("the fill character must be one character");
  }
  interpreter.StepBytes(text.view().size());
  const int64_t missing = std::max<int64_t>(width - CountCharacters(text.view()), 0);
  // Python puts the odd one to the left when the width is odd.
  const int64_t left = name == "ljust"    ? 0
                       : name == "center" ? missing / 2 + (missing & width & 1)
                                          : missing;
  StringBuilder builder(interpreter);
  size_t sign = 0;
  if (name == "zfill" && (text.view().starts_with('-') || text.view().starts_with('+'))) sign = 1;
  builder.Append(text, 0, sign);
  for (int64_t i = 0; i < missing; ++i) {
    interpreter.Step();
    if (i == left) builder.Append(text, sign, text.view().size());
    builder.Append(fill);
  }
  if (left == missing) builder.Append(text, sign, text.view().size());
  return builder.Take(text.is_markup);
}

Value ExpandTabs(Interpreter& interpreter, const String& text, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "expandtabs", {"tabsize"});
  const int64_t size = parameters.Integer(0, 8);
  StringBuilder builder(interpreter);
  int64_t column = 0;
  for (size_t i = 0; i < text.view().size();) {
    const size_t length = CharacterBytes(text.view(), i);
    const char c = text.view()[i];
    if (c == '\t') {
      const int64_t spaces = size > 0 ? size - column % size : 0;
      interpreter.Step(spaces);
      for (int64_t k = 0; k < spaces; ++k) builder.AppendAs(text, i, " ");
      column += spaces;
    } else {
      builder.Append(text, i, i + length);
      column = c == '\n' || c == '\r' ? 0 : column + 1;
    }
    i += length;
  }
  return builder.Take(text.is_markup);
}

template <class Test>
bool AllCharacters(std::string_view text, const Test& test) {
  size_t length = 0;
  for (size_t i = 0; i < text.size(); i += length) {
    if (!test(DecodeUtf8(text, i, &length))) return false;
  }
  return !text.empty();
}

bool IsTitleText(std::string_view text) {
  bool after_cased = false;
  bool has_cased = false;
  size_t length = 0;
  for (size_t i = 0; i < text.size(); i += length) {
    const char32_t c = DecodeUtf8(text, i, &length);
    if (IsUpper(c) && after_cased) return false;
    if (IsLower(c) && !after_cased) return false;
    after_cased = IsCased(c);
    has_cased = has_cased || after_cased;
  }
  return has_cased;
}

// isalpha() and its relatives; false for other names.
bool CharacterTest(std::string_view name, std::string_view text, bool* result) {
  const auto all = [&](auto test) { *result = AllCharacters(text, test); };
  if (name == "isalpha") {
    all([](char32_t c) { return IsAlpha(c); });
  } else if (name == "isdigit") {
    all([](char32_t c) { return IsDigit(c); });
  } else if (name == "isdecimal") {
    all([](char32_t c) { return IsDecimal(c); });
  } else if (name == "isnumeric") {
    all([](char32_t c) { return IsNumeric(c); });
  } else if (name == "isalnum") {
    all([](char32_t c) { return IsAlpha(c) || IsDigit(c) || IsNumeric(c); });
  } else if (name == "isspace") {
    all([](char32_t c) { return IsPythonSpace(c); });
  } else if (name == "isascii") {
    *result = text.empty() || AllCharacters(text, [](char32_t c) { return c < 0x80; });
  } else if (name == "isprintable") {
    *result = text.empty() || AllCharacters(text, [](char32_t c) { return IsPrintable(c); });
  } else if (name == "islower") {
    *result = IsLowerText(text);
  } else if (name == "isupper") {
    *result = IsUpperText(text);
  } else if (name == "istitle") {
    *result = IsTitleText(text);
  } else {
    return false;
  }
  return true;
}

Value JoinMethod(Interpreter& interpreter, const String& text, const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, "join", {"iterable"});
  const std::shared_ptr<const Sequence> items = interpreter.Walk(parameters.Required(0));
  for (size_t i = 0; i < items->items.size(); ++i) {
    if (!items->items[i].IsString()) {
      interpreter.Fail(fmt::format("sequence item {}: expected str instance, {} found", i,
                                   TypeName(items->items[i])));
    }
  }
  return Join(interpreter, text, items->items);
}

Value RemoveAffix(Interpreter& interpreter, const String& text, std::string_view name,
                  const Arguments& arguments) {
  const Parameters parameters(interpreter, arguments, name, {"affix"});
  const std::string_view affix = parameters.Text(0).view();
  const size_t size = text.view().size();
  if (name == "removeprefix" && text.view().starts_with(affix)) {
    return Substring(interpreter, text, affix.size(), size);
  }
  if (name == "removesuffix" && text.view().ends_with(affix)) {
    return Substring(interpreter, text, 0, size - affix.size());
  }
  return Substring(interpreter, text, 0, size);
}

constexpr std::string_view kStringMethods[] = {
    "capitalize", "casefold",   "center",       "count",        "endswith",    "expandtabs",
    "find",       "format",     "index",        "isalnum",      "isalpha",     "isascii",
    "isdecimal",  "isdigit",    "islower",      "isnumeric",    "isprintable", "isspace",
    "istitle",    "isupper",    "join",         "ljust",        "lower",       "lstrip",
    "partition",  "replace",    "removeprefix", "removesuffix", "rfind",       "rindex",
    "rjust",      "rpartition", "rsplit",       "rstrip",       "split",       "splitlines",
    "startswith", "strip",      "swapcase",     "title",        "upper",       "zfill",
};

bool CaseOf(std::string_view name, Case* to) {
  static constexpr std::pair<std::string_view, Case> kCases[] = {{"upper", Case::kUpper},
                                                                 {"lower", Case::kLower},
                                                                 {"capitalize", Case::kCapital},
                                                                 {"title", Case::kTitle},
                                                                 {"swapcase", Case::kSwap}};
  for (const auto& [known, value] : kCases) {
    if (known != name) continue;
    *to = value;
    return true;
  }
  return false;
}

}  // namespace

Value Strip(Runtime& runtime, const String& text, Side side, const String* characters) {
  const std::string_view view = text.view();
  size_t begin = 0;
  size_t end = view.size();
  runtime.StepBytes(view.size());
  if (characters == nullptr) {
    if (side != Side::kRight) begin = LeadingSpace(view);
    if (side != Side::kLeft) end -= TrailingSpace(view.substr(begin));
  } else {
    const std::string_view set = characters->view();
    while (side != Side::kRight && begin < end) {
      const size_t length = CharacterBytes(view, begin);
      if (!HasCharacter(set, view, begin, length)) break;
      runtime.StepBytes(set.size());
      begin += length;
    }
    while (side != Side::kLeft && end > begin) {
      size_t length = 0;
      (void)DecodeUtf8Before(view, end, &length);
      if (!HasCharacter(set, view, end - length, length)) break;
      runtime.StepBytes(set.size());
      end -= length;
    }
  }
  return Substring(runtime, text, begin, end);
}

Value Replace(Runtime& runtime, const String& text, const String& from, const String& to,
              int64_t count) {
  const std::string_view view = text.view();
  runtime.StepBytes(view.size());
  StringBuilder builder(runtime);
  size_t done = 0;
  if (from.view().empty()) {
    // Before each character and at the end.
    for (size_t i = 0; i <= view.size() && count != 0; --count) {
      runtime.Step();
      builder.Append(to);
      done = i < view.size() ? i + CharacterBytes(view, i) : i;
      builder.Append(text, i, done);
      if (i == view.size()) break;
      i = done;
    }
  }
  while (!from.view().empty() && count != 0) {
    const size_t found = FindText(view, from.view(), done);
    if (found == kNone) break;
    runtime.Step();
    builder.Append(text, done, found);
    builder.Append(to);
    done = found + from.view().size();
    --count;
  }
  builder.Append(text, done, view.size());
  return builder.Take(text.is_markup);
}

Value Join(Runtime& runtime, const String& separator, const std::vector<Value>& items) {
  StringBuilder builder(runtime);
  bool is_first = true;
  for (const Value& item : items) {
    runtime.Step();
    if (!is_first) builder.Append(separator);
    is_first = false;
    AppendText(runtime, item, &builder);
  }
  return builder.Take();
}

std::vector<Value> SplitLines(Runtime& runtime, const String& text, bool keep_ends) {
  const std::string_view view = text.view();
  std::vector<Value> lines;
  size_t begin = 0;
  size_t length = 0;
  runtime.StepBytes(view.size());
  for (size_t i = 0; i < view.size(); i += length) {
    const char32_t c = DecodeUtf8(view, i, &length);
    if (!IsLineBreak(c)) continue;
    if (c == '\r' && i + 1 < view.size() && view[i + 1] == '\n') length = 2;
    runtime.Step();
    lines.push_back(Substring(runtime, text, begin, keep_ends ? i + length : i));
    begin = i + length;
  }
  if (begin < view.size()) lines.push_back(Substring(runtime, text, begin, view.size()));
  return lines;
}

Value ChangeCase(Runtime& runtime, const String& text, Case to) {
  const std::string_view view = text.view();
  StringBuilder builder(runtime);
  bool after_cased = false;
  size_t length = 0;
  for (size_t i = 0; i < view.size(); i += length) {
    const char32_t c = DecodeUtf8(view, i, &length);
    const bool upper = to == Case::kUpper || (to == Case::kSwap && IsLower(c));
    const bool title = (to == Case::kCapital && i == 0) || (to == Case::kTitle && !after_cased);
    const bool keep = to == Case::kSwap && !IsLower(c) && !IsUpper(c);
    if (keep) {
      builder.Append(text, i, i + length);
    } else {
      builder.AppendAs(text, i,
                       upper   ? UpperCase(c)
                       : title ? TitleCase(c)
                               : Lowered(view, i, length, c));
    }
    after_cased = IsCased(c);
  }
  return builder.Take(text.is_markup);
}

bool IsLowerText(std::string_view text) {
  bool has_lower = false;
  size_t length = 0;
  for (size_t i = 0; i < text.size(); i += length) {
    const char32_t c = DecodeUtf8(text, i, &length);
    if (IsCased(c) && !IsLower(c)) return false;
    has_lower = has_lower || IsLower(c);
  }
  return has_lower;
}

bool IsUpperText(std::string_view text) {
  bool has_upper = false;
  size_t length = 0;
  for (size_t i = 0; i < text.size(); i += length) {
    const char32_t c = DecodeUtf8(text, i, &length);
    if (IsCased(c) && !IsUpper(c)) return false;
    has_upper = has_upper || IsUpper(c);
  }
  return has_upper;
}

bool IsStringMethod(std::string_view name) {
  return std::find(std::begin(kStringMethods), std::end(kStringMethods), name) !=
         std::end(kStringMethods);
}

Value CallStringMethod(Interpreter& interpreter, const Value& object, std::string_view name,
                       const Arguments& arguments) {
  const String& text = object.string();
  Case to{};
  bool result = false;
  if (CaseOf(name, &to)) {
    const Parameters none(interpreter, arguments, name, {});
    return ChangeCase(interpreter, text, to);
  }
  if (CharacterTest(name, text.view(), &result)) {
    const Parameters none(interpreter, arguments, name, {});
    interpreter.StepItems(text.view().size());
    return Value::Bool(result);
  }
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const Parameters parameters(interpreter, arguments, name, {"chars"});
    const Value* given = parameters.Find(0);
    const bool has_set = given != nullptr && !given->Is(Kind::kNone);
    const Side side = name == "strip" ? Side::kBoth : name[0] == 'l' ? Side::kLeft : Side::kRight;
    return Strip(interpreter, text, side, has_set ? &parameters.Text(0) : nullptr);
  }
  if (name == "split" || name == "rsplit") {
    return Split(interpreter, text, arguments, name == "rsplit");
  }
  if (name == "partition" || name == "rpartition") {
    return Partition(interpreter, text, arguments, name == "rpartition");
  }
  if (name == "startswith" || name == "endswith") {
    return HasAffix(interpreter, text, arguments, name == "startswith");
  }
  if (name == "find" || name == "rfind" || name == "index" || name == "rindex") {
    return Find(interpreter, text, name, arguments);
  }
  if (name == "count") return Count(interpreter, text, arguments);
  if (name == "center" || name == "ljust" || name == "rjust" || name == "zfill") {
    return Justify(interpreter, text, name, arguments);
  }
  if (name == "removeprefix" || name == "removesuffix") {
    return RemoveAffix(interpreter, text, name, arguments);
  }
  if (name == "expandtabs") return ExpandTabs(interpreter, text, arguments);
  if (name == "join") return JoinMethod(interpreter, text, arguments);
  if (name == "format") return FormatBraces(interpreter, text, arguments);
  if (name == "replace") {
    const Parameters parameters(interpreter, arguments, name, {"old", "new", "count"});
    return Replace(interpreter, text, parameters.Text(0), parameters.Text(1),
                   parameters.Integer(2, -1));
  }
  if (name == "splitlines") {
    const Parameters parameters(interpreter, arguments, name, {"keepends"});
    return interpreter.List(SplitLines(interpreter, text, parameters.Truth(0, false)));
  }
  // casefold()
  const Parameters none(interpreter, arguments, name, {});
  interpreter.StepBytes(text.view().size());
  StringBuilder builder(interpreter);
  builder.Append(CaseFold(text.view()), !text.text.input.empty());
  return builder.Take(text.is_markup);
}

}  // namespace pmkvq::jinja
