#include "pmkvq/text/jinja/format.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <ctime>

#include "pmkvq/text/jinja/operators.h"
#include "pmkvq/text/jinja/text_of.h"
#include "pmkvq/text/jinja/unicode.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq::jinja {
namespace {

constexpr int kMaxWidth = 10'000;  // Of a field, and digits of a number.

// The part of a format between % or : and the letter of a conversion.
struct Field {
  bool left = false;  // Aligned to the left; else to the right.
  bool center = false;
  bool zeros = false;
  bool alternate = false;
  bool commas = false;
  char sign = '-';
  std::string fill = " ";
  int64_t width = 0;
  int precision = -1;
  char type = 's';
};

class NumberReader {
 public:
  NumberReader(Runtime& runtime, std::string_view text) : runtime_(runtime), text_(text) {}
  bool AtEnd() const { return at_ >= text_.size(); }
  char Peek() const { return AtEnd() ? '\0' : text_[at_]; }
  char Next() { return AtEnd() ? '\0' : text_[at_++]; }
  bool Skip(char c) {
    if (Peek() != c || AtEnd()) return false;
    ++at_;
    return true;
  }
  bool AtDigit() const { return !AtEnd() && text_[at_] >= '0' && text_[at_] <= '9'; }
  int Number() {
    int value = 0;
    while (AtDigit()) {
      value = value * 10 + (Next() - '0');
      if (value > kMaxWidth) {
        runtime_.Fail(fmt::format("a field is wider than {} characters", kMaxWidth));
      }
    }
    return value;
  }
  size_t at() const { return at_; }
  void set_at(size_t at) { at_ = at; }

 private:
  Runtime& runtime_;
  std::string_view text_;
  size_t at_ = 0;
};

std::string WithCommas(const std::string& digits) {
  const size_t whole = std::min(digits.find_first_not_of("0123456789"), digits.size());
  std::string result;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i > 0 && i < whole && (whole - i) % 3 == 0) result += ',';
    result += digits[i];
  }
  return result;
}

std::string Digits(uint64_t value, unsigned base, bool upper) {
  // Not indexed in one expression: UBSan of GCC 12 then reads an index that it never set.
  const char* const alphabet = upper ? "0123456789ABCDEF" : "0123456789abcdef";
  std::string digits;
  do {
    digits += alphabet[value % base];
    value /= base;
  } while (value != 0);
  std::reverse(digits.begin(), digits.end());
  return digits;
}

std::string FloatDigits(double value, const Field& field) {
  const int precision = field.precision < 0 ? 6 : field.precision;
  if (std::isnan(value) || std::isinf(value)) {
    const bool upper = field.type == 'F' || field.type == 'E' || field.type == 'G';
    return std::isnan(value) ? (upper ? "NAN" : "nan") : (upper ? "INF" : "inf");
  }
  const std::string format = fmt::format("%{}.*{}", field.alternate ? "#" : "", field.type);
  // A double has at most 309 digits before the point.
  std::string buffer(static_cast<size_t>(precision) + 330, '\0');
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
  const int size =
      std::snprintf(buffer.data(), buffer.size(), format.c_str(), precision, std::abs(value));
#pragma GCC diagnostic pop
  buffer.resize(static_cast<size_t>(std::max(size, 0)));
  return buffer;
}

// A number by its field, without padding but that of zeros.
std::string FormatNumber(Runtime& runtime, const Value& value, const Field& field) {
  static constexpr std::string_view kFloats = "fFeEgG";
  if (value.IsUndefined()) runtime.FailUndefined(value);
  if (!value.IsNumber()) {
    runtime.Fail(
        fmt::format("the format {} wants a number, found a {}", field.type, TypeName(value)));
  }
  const bool is_float = kFloats.find(field.type) != std::string_view::npos;
  bool is_negative = false;
  std::string digits;
  std::string prefix;
  if (is_float) {
    is_negative = std::signbit(value.as_double());
    digits = FloatDigits(value.as_double(), field);
  } else {
    const double truncated = std::trunc(value.as_double());
    if (value.Is(Kind::kFloat) && !(std::abs(truncated) < 9e18)) {
      runtime.Fail("the number does not fit an integer of 64 bits");
    }
    const int64_t integer = value.IsInteger() ? value.as_int() : static_cast<int64_t>(truncated);
    is_negative = integer < 0;
    const uint64_t magnitude =
        is_negative ? 0 - static_cast<uint64_t>(integer) : static_cast<uint64_t>(integer);
    const bool is_hex = field.type == 'x' || field.type == 'X';
    const unsigned base = is_hex ? 16 : field.type == 'o' ? 8 : field.type == 'b' ? 2 : 10;
    digits = Digits(magnitude, base, field.type == 'X');
    if (field.alternate && base != 10) prefix = std::string("0") + field.type;
    if (field.precision > static_cast<int>(digits.size())) {
      digits.insert(0, static_cast<size_t>(field.precision) - digits.size(), '0');
    }
  }
  if (field.commas) digits = WithCommas(digits);
  const std::string sign = is_negative ? "-" : field.sign == '-' ? "" : std::string(1, field.sign);
  const size_t size = sign.size() + prefix.size() + digits.size();
  if (field.zeros && !field.left && static_cast<size_t>(field.width) > size) {
    digits.insert(0, static_cast<size_t>(field.width) - size, '0');
  }
  return sign + prefix + digits;
}

void AppendPadded(Runtime& runtime, const Value& text, const Field& field, StringBuilder* builder) {
  const int64_t missing = std::max<int64_t>(field.width - runtime.Length(text), 0);
  const int64_t before = field.left ? 0 : field.center ? missing / 2 : missing;
  for (int64_t i = 0; i < before; ++i) builder->Append(field.fill);
  builder->Append(text.string());
  for (int64_t i = before; i < missing; ++i) builder->Append(field.fill);
}

// A string cut to the precision.
Value Cut(Runtime& runtime, const Value& text, int precision) {
  if (precision < 0) return text;
  const size_t end = OffsetOfCharacter(text.string().view(), precision);
  return Substring(runtime, text.string(), 0, end);
}

class PercentFormatter {
 public:
  PercentFormatter(Runtime& runtime, const Value& text, const Value& arguments)
      : runtime_(runtime),
        text_(text.string()),
        arguments_(arguments),
        reader_(runtime, text.string().view()),
        builder_(runtime) {}

  Value Run() {
    while (!reader_.AtEnd()) {
      const size_t begin = reader_.at();
      const size_t percent = std::min(text_.view().find('%', begin), text_.view().size());
      builder_.Append(text_, begin, percent);
      reader_.set_at(percent);
      if (reader_.Skip('%')) AppendConversion();
    }
    const bool is_tuple = arguments_.Is(Kind::kTuple);
    if (is_tuple ? next_ < arguments_.sequence().items.size()
                 : next_ == 0 && !arguments_.IsDict() && !arguments_.Is(Kind::kList)) {
      runtime_.Fail("not all arguments converted during string formatting");
    }
    return builder_.Take(text_.is_markup);
  }

 private:
  const Value& NextArgument() {
    const size_t index = next_++;
    if (arguments_.Is(Kind::kTuple)) {
      if (index < arguments_.sequence().items.size()) return arguments_.sequence().items[index];
    } else if (index == 0) {
      return arguments_;
    }
    runtime_.Fail("not enough arguments for format string");
  }

  const Value& NamedArgument() {
    const size_t begin = reader_.at();
    const size_t end = text_.view().find(')', begin);
    if (end == std::string_view::npos) runtime_.Fail("incomplete format key");
    const std::string_view name = text_.view().substr(begin, end - begin);
    reader_.set_at(end + 1);
    if (!arguments_.IsDict()) runtime_.Fail("format requires a mapping");
    const Value* found = arguments_.dict().Find(name);
    if (found == nullptr)
      runtime_.Fail(fmt::format("the format names '{}', which is missing", name));
    return *found;
  }

  int WidthOrArgument() {
    if (!reader_.Skip('*')) return reader_.Number();
    const Value& width = NextArgument();
    if (!width.IsInteger() || std::abs(width.as_int()) > kMaxWidth) {
      runtime_.Fail(fmt::format("* wants an integer up to {}", kMaxWidth));
    }
    return static_cast<int>(width.as_int());
  }

  void AppendConversion() {
    const Value* named = reader_.Skip('(') ? &NamedArgument() : nullptr;
    Field field;
    while (true) {
      if (reader_.Skip('-')) {
        field.left = true;
      } else if (reader_.Skip('+')) {
        field.sign = '+';
      } else if (reader_.Skip(' ')) {
        field.sign = field.sign == '+' ? '+' : ' ';
      } else if (reader_.Skip('0')) {
        field.zeros = true;
      } else if (reader_.Skip('#')) {
        field.alternate = true;
      } else {
        break;
      }
    }
    field.width = WidthOrArgument();
    if (field.width < 0) {
      field.left = true;
      field.width = -field.width;
    }
    if (reader_.Skip('.')) field.precision = std::max(0, WidthOrArgument());
    field.type = reader_.Next();
    if (field.type == '%') {
      builder_.Append("%");
      return;
    }
    static constexpr std::string_view kKnown = "srdiufFeEgGxXoc";
    if (field.type == '\0' || kKnown.find(field.type) == std::string_view::npos) {
      runtime_.Fail("found an unknown conversion behind %, expected one of s r d f e g x o c %");
    }
    AppendPadded(runtime_, Converted(named != nullptr ? *named : NextArgument(), field), field,
                 &builder_);
  }

  Value Converted(const Value& argument, Field& field) {
    if (field.type == 's') {
      const Value text = text_.is_markup ? Escape(runtime_, argument) : TextOf(runtime_, argument);
      return Cut(runtime_, text, field.precision);
    }
    if (field.type == 'r') {
      StringBuilder repr(runtime_);
      AppendRepr(runtime_, argument, &repr);
      return Cut(runtime_, repr.Take(), field.precision);
    }
    if (field.type == 'c') {
      if (argument.IsString() && runtime_.Length(argument) == 1) return argument;
      if (!argument.IsInteger() || argument.as_int() < 0 || argument.as_int() > 0x10FFFF ||
          (argument.as_int() >= 0xD800 && argument.as_int() <= 0xDFFF)) {
        runtime_.Fail("%c wants one character");
      }
      std::string character;
      AppendUtf8(static_cast<char32_t>(argument.as_int()), &character);
      return runtime_.Text(character);
    }
    if (field.type == 'i' || field.type == 'u') field.type = 'd';
    return runtime_.Text(FormatNumber(runtime_, argument, field));
  }

  Runtime& runtime_;
  const String& text_;
  const Value& arguments_;
  NumberReader reader_;
  StringBuilder builder_;
  size_t next_ = 0;
};

class BraceFormatter {
 public:
  BraceFormatter(Runtime& runtime, const String& text, const Arguments& arguments)
      : runtime_(runtime), text_(text), arguments_(arguments), builder_(runtime) {}

  Value Run() {
    const std::string_view view = text_.view();
    for (size_t i = 0; i < view.size();) {
      const size_t brace = std::min(view.find_first_of("{}", i), view.size());
      builder_.Append(text_, i, brace);
      if (brace == view.size()) break;
      if (brace + 1 < view.size() && view[brace + 1] == view[brace]) {
        builder_.Append(text_, brace, brace + 1);
        i = brace + 2;
        continue;
      }
      const size_t end = view.find_first_of("{}", brace + 1);
      if (view[brace] == '}' || end == std::string_view::npos || view[end] == '{') {
        runtime_.Fail("found a single brace or a nested field in format(), expected {field}");
      }
      AppendField(view.substr(brace + 1, end - brace - 1));
      i = end + 1;
    }
    return builder_.Take(text_.is_markup);
  }

 private:
  const Value& Argument(std::string_view name) {
    if (name.find_first_of(".[") != std::string_view::npos) {
      runtime_.Fail(fmt::format("found the field {{{}}} in format(), expected a name or a number",
                                name.substr(0, 40)));
    }
    size_t index = 0;
    const bool is_number =
        !name.empty() && std::from_chars(name.data(), name.data() + name.size(), index).ptr ==
                             name.data() + name.size();
    if (name.empty()) index = next_++;
    if (name.empty() || is_number) {
      if (index < arguments_.positional.size()) return arguments_.positional[index];
    } else if (const Value* found = arguments_.Find(arguments_.positional.size(), name)) {
      return *found;
    }
    runtime_.Fail(fmt::format("format() has no argument for the field {{{}}}", name.substr(0, 40)));
  }

  void AppendField(std::string_view field_text) {
    const size_t colon = std::min(field_text.find(':'), field_text.size());
    std::string_view name = field_text.substr(0, colon);
    const size_t bang = name.find('!');
    const bool is_repr = bang != std::string_view::npos && name.substr(bang) == "!r";
    if (bang != std::string_view::npos && !is_repr && name.substr(bang) != "!s") {
      runtime_.Fail("found an unknown conversion in format(), expected !r or !s");
    }
    name = name.substr(0, bang);
    Value value = Argument(name);
    if (is_repr) {
      StringBuilder repr(runtime_);
      AppendRepr(runtime_, value, &repr);
      value = repr.Take();
    } else if (bang != std::string_view::npos) {
      value = TextOf(runtime_, value);
    }
    AppendFormatted(value, field_text.substr(std::min(colon + 1, field_text.size())));
  }

  // [[fill]align][sign][#][0][width][,][.precision][type]
  Field ReadField(std::string_view text, bool* has_type, bool* has_align) {
    Field field;
    NumberReader reader(runtime_, text);
    static constexpr std::string_view kAligns = "<>^";
    if (!text.empty()) {
      const size_t length = CharacterBytes(text, 0);
      if (text.size() > length && kAligns.find(text[length]) != std::string_view::npos) {
        field.fill = std::string(text.substr(0, length));
        reader.set_at(length);
      }
    }
    if (kAligns.find(reader.Peek()) != std::string_view::npos && !reader.AtEnd()) {
      const char align = reader.Next();
      field.left = align == '<';
      field.center = align == '^';
      *has_align = true;
    }
    if (reader.Peek() == '+' || reader.Peek() == '-' || reader.Peek() == ' ') {
      field.sign = reader.AtEnd() ? '-' : reader.Next();
    }
    field.alternate = reader.Skip('#');
    field.zeros = reader.Skip('0');
    field.width = reader.Number();
    field.commas = reader.Skip(',');
    if (reader.Skip('.')) field.precision = reader.Number();
    *has_type = !reader.AtEnd();
    if (*has_type) field.type = reader.Next();
    static constexpr std::string_view kTypes = "sdfFeEgGxXob%";
    if (!reader.AtEnd() || kTypes.find(field.type) == std::string_view::npos) {
      runtime_.Fail(
          fmt::format("found the format \"{}\", which is not known here", text.substr(0, 40)));
    }
    return field;
  }

  void AppendFormatted(const Value& value, std::string_view spec) {
    bool has_type = false;
    bool has_align = false;
    Field field = ReadField(spec, &has_type, &has_align);
    if (spec.empty()) {
      builder_.Append(TextOf(runtime_, value).string());
      return;
    }
    const bool is_number =
        value.Is(Kind::kInt) || value.Is(Kind::kFloat) || (value.Is(Kind::kBool) && has_type);
    if (!is_number) {
      if (!value.IsString() || field.type != 's') {
        runtime_.Fail(fmt::format("the format \"{}\" does not fit a {}", spec.substr(0, 40),
                                  TypeName(value)));
      }
      if (!has_align) field.left = true;
      AppendPadded(runtime_, Cut(runtime_, value, field.precision), field, &builder_);
      return;
    }
    if (has_align) field.zeros = false;
    AppendPadded(runtime_, runtime_.Text(Number(value, field, has_type)), field, &builder_);
  }

  std::string Number(const Value& value, Field field, bool has_type) {
    if (field.type == '%') {
      field.type = 'f';
      return FormatNumber(runtime_, Value::Float(value.as_double() * 100), field) + "%";
    }
    static constexpr std::string_view kIntegers = "dxXob";
    if (!has_type && value.Is(Kind::kFloat)) {
      if (field.precision < 0) {
        std::string text = FloatText(value.as_double());
        if (field.sign != '-' && text.front() != '-') text.insert(0, 1, field.sign);
        return text;
      }
      field.type = 'g';
    } else if (!has_type || field.type == 's') {
      if (has_type) runtime_.Fail("the format s does not fit a number");
      field.type = 'd';
    }
    if (value.Is(Kind::kFloat) && kIntegers.find(field.type) != std::string_view::npos) {
      runtime_.Fail("an integer format does not fit a float");
    }
    return FormatNumber(runtime_, value, field);
  }

  Runtime& runtime_;
  const String& text_;
  const Arguments& arguments_;
  StringBuilder builder_;
  size_t next_ = 0;
};

}  // namespace

Value FormatPercent(Runtime& runtime, const Value& text, const Value& arguments) {
  return PercentFormatter(runtime, text, arguments).Run();
}

Value FormatBraces(Runtime& runtime, const String& text, const Arguments& arguments) {
  return BraceFormatter(runtime, text, arguments).Run();
}

std::string FormatDate(Runtime& runtime, const Date& date, std::string_view format) {
  static constexpr std::string_view kKnown = "aAbBcdDeFgGhHIjklmMnpPrRSstTuUVwWxXyYCzZ%";
  std::tm time{};
  time.tm_year = date.year - 1900;
  time.tm_mon = date.month - 1;
  time.tm_mday = date.day;
  time.tm_hour = date.hour;
  time.tm_min = date.minute;
  time.tm_sec = date.second;
  timegm(&time);  // Fills in the day of the week and of the year.
  std::string result;
  for (size_t i = 0; i < format.size(); ++i) {
    if (format[i] != '%' || i + 1 == format.size()) {
      result += format[i];
      continue;
    }
    std::string directive = "%";
    ++i;
    if ((format[i] == '-' || format[i] == '_' || format[i] == '^' || format[i] == '#') &&
        i + 1 < format.size()) {
      directive += format[i++];
    }
    directive += format[i];
    if (kKnown.find(format[i]) == std::string_view::npos) {
      runtime.Fail(fmt::format("found {} in a date format, which is not known here", directive));
    }
    char text[128];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
    const size_t size = std::strftime(text, sizeof(text), directive.c_str(), &time);
#pragma GCC diagnostic pop
    if (format[i] != 'z' && format[i] != 'Z') result.append(text, size);  // Naive times have none.
    if (result.size() > 4096) runtime.Fail("the date is longer than 4096 bytes");
  }
  return result;
}

double RoundDecimal(double value, int digits) {
  if (!std::isfinite(value) || digits > 300) return value;
  if (digits >= 0) return std::strtod(fmt::format("{:.{}f}", value, digits).c_str(), nullptr);
  if (digits < -308) return std::copysign(0.0, value);
  // Half to even, as whole multiples of the power of ten.
  const double unit = std::pow(10.0, -digits);
  return std::nearbyint(value / unit) * unit;
}

}  // namespace pmkvq::jinja
