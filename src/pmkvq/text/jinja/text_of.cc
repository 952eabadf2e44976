#include "pmkvq/text/jinja/text_of.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>

#include "pmkvq/text/jinja/objects.h"
#include "pmkvq/text/jinja/operators.h"
#include "pmkvq/text/jinja/unicode.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq::jinja {
namespace {

void AppendStringRepr(const String& text, StringBuilder* builder) {
  const std::string_view view = text.view();
  // Python writes '...' unless the text has ' and no ".
  const char quote =
      view.find('\'') != std::string_view::npos && view.find('"') == std::string_view::npos ? '"'
                                                                                            : '\'';
  builder->Append(std::string_view(&quote, 1));
  size_t length = 0;
  for (size_t i = 0; i < view.size(); i += length) {
    const char32_t c = DecodeUtf8(view, i, &length);
    if (c == static_cast<char32_t>(quote) || c == '\\') {
      builder->AppendAs(text, i, std::string("\\") + static_cast<char>(c));
    } else if (c == '\n' || c == '\r' || c == '\t') {
      builder->AppendAs(text, i, c == '\n' ? "\\n" : c == '\r' ? "\\r" : "\\t");
    } else if (IsPrintable(c)) {
      builder->Append(text, i, i + length);
    } else {
      const auto code = static_cast<uint32_t>(c);
      builder->AppendAs(text, i,
                        code < 0x100     ? fmt::format("\\x{:02x}", code)
                        : code < 0x10000 ? fmt::format("\\u{:04x}", code)
                                         : fmt::format("\\U{:08x}", code));
    }
  }
  builder->Append(std::string_view(&quote, 1));
}

void AppendItems(Runtime& runtime, const std::vector<Value>& items, StringBuilder* builder) {
  bool is_first = true;
  for (const Value& item : items) {
    if (!is_first) builder->Append(", ");
    is_first = false;
    AppendRepr(runtime, item, builder);
  }
}

template <class Items>
void AppendPairs(Runtime& runtime, const Items& items, StringBuilder* builder) {
  builder->Append("{");
  bool is_first = true;
  for (const auto& [key, value] : items) {
    if (!is_first) builder->Append(", ");
    is_first = false;
    AppendRepr(runtime, key, builder);
    builder->Append(": ");
    AppendRepr(runtime, value, builder);
  }
  builder->Append("}");
}

// A namespace may hold itself, directly or not: the recursion is bounded.
void AppendNamespace(Runtime& runtime, const Namespace& space, StringBuilder* builder) {
  const Runtime::Recursion recursion(runtime);
  builder->Append("<Namespace {");
  bool is_first = true;
  for (const auto& [name, value] : space.members) {
    builder->Append(is_first ? "'" : ", '");
    is_first = false;
    builder->Append(name + "': ");
    AppendRepr(runtime, value, builder);
  }
  builder->Append("}>");
}

class JsonTextWriter {
 public:
  JsonTextWriter(Runtime& runtime, const JsonFormat& format, StringBuilder* builder)
      : runtime_(runtime), format_(format), builder_(builder) {}

  void Append(const Value& value) {
    runtime_.Step();
    switch (value.kind()) {
      case Kind::kNone:
        builder_->Append("null");
        break;
      case Kind::kBool:
        builder_->Append(value.as_bool() ? "true" : "false");
        break;
      case Kind::kInt:
        builder_->Append(fmt::format("{}", value.as_int()));
        break;
      case Kind::kFloat:
        builder_->Append(Number(value.as_double()));
        break;
      case Kind::kString:
        AppendString(value.string());
        break;
      case Kind::kList:
      case Kind::kTuple:
        AppendList(value.sequence().items);
        break;
      case Kind::kDict:
        AppendDict(value.dict());
        break;
      default:
        runtime_.Fail(fmt::format("Object of type {} is not JSON serializable", TypeName(value)));
    }
  }

 private:
  static std::string Number(double number) {
    if (std::isnan(number)) return "NaN";
    if (std::isinf(number)) return number > 0 ? "Infinity" : "-Infinity";
    return FloatText(number);
  }

  void AppendString(const String& text) {
    const std::string_view view = text.view();
    builder_->Append("\"");
    size_t done = 0;
    size_t length = 0;
    for (size_t i = 0; i < view.size(); i += length) {
      const char32_t c = DecodeUtf8(view, i, &length);
      std::string escaped;
      static constexpr std::string_view kNamed = "\"\\\n\r\t\b\f";
      static constexpr std::string_view kNames = "\"\\nrtbf";
      const size_t named = c < 0x80 ? kNamed.find(static_cast<char>(c)) : std::string_view::npos;
      if (named != std::string_view::npos) {
        escaped = std::string("\\") + kNames[named];
      } else if (c < 0x20 || (format_.ensure_ascii && c >= 0x7F)) {
        escaped = c == 0x7F ? "" : Escaped(c);
      }
      if (escaped.empty()) continue;
      builder_->Append(text, done, i);
      builder_->AppendAs(text, i, escaped);
      done = i + length;
    }
    builder_->Append(text, done, view.size());
    builder_->Append("\"");
  }

  static std::string Escaped(char32_t c) {
    auto code = static_cast<uint32_t>(c);
    if (code < 0x10000) return fmt::format("\\u{:04x}", code);
    code -= 0x10000;
    return fmt::format("\\u{:04x}\\u{:04x}", 0xD800 + (code >> 10), 0xDC00 + (code & 0x3FF));
  }

  void BreakLine() {
    if (!format_.has_indent) return;
    builder_->Append("\n");
    for (int i = 0; i < level_; ++i) builder_->Append(format_.indent);
  }

  template <class Items, class AppendOne>
  void AppendAll(char open, char close, const Items& items, const AppendOne& append_one) {
    builder_->Append(std::string_view(&open, 1));
    if (!items.empty()) {
      ++level_;
      bool is_first = true;
      for (const auto& item : items) {
        if (!is_first) builder_->Append(format_.item_separator);
        is_first = false;
        BreakLine();
        append_one(item);
      }
      --level_;
      BreakLine();
    }
    builder_->Append(std::string_view(&close, 1));
  }

  void AppendList(const std::vector<Value>& items) {
    AppendAll('[', ']', items, [&](const Value& item) { Append(item); });
  }

  void AppendDict(const Dict& dict) {
    std::vector<std::pair<Value, Value>> sorted;
    if (format_.sort_keys) {
      sorted = dict.items;
      std::stable_sort(sorted.begin(), sorted.end(), [&](const auto& a, const auto& b) {
        return Less(runtime_, a.first, b.first);
      });
    }
    AppendAll('{', '}', format_.sort_keys ? sorted : dict.items, [&](const auto& item) {
      AppendKey(item.first);
      builder_->Append(format_.key_separator);
      Append(item.second);
    });
  }

  void AppendKey(const Value& key) {
    switch (key.kind()) {
      case Kind::kString:
        AppendString(key.string());
        break;
      case Kind::kNone:
      case Kind::kBool:
      case Kind::kInt:
      case Kind::kFloat:
        builder_->Append("\"");
        Append(key);
        builder_->Append("\"");
        break;
      default:
        runtime_.Fail(
            fmt::format("keys must be str, int, float, bool or None, not {}", TypeName(key)));
    }
  }

  Runtime& runtime_;
  const JsonFormat& format_;
  StringBuilder* builder_;
  int level_ = 0;
};

}  // namespace

std::string FloatText(double number) {
  if (std::isnan(number)) return "nan";
  if (std::isinf(number)) return number > 0 ? "inf" : "-inf";
  char digits[64];
  const auto end =
      std::to_chars(digits, digits + sizeof(digits), number, std::chars_format::scientific).ptr;
  const std::string text(digits, end);
  const size_t e = text.find('e');
  const int exponent = std::atoi(text.c_str() + e + 1);
  if (exponent < -4 || exponent >= 16) return text;  // Python's exponents have two digits, too.
  const auto fixed =
      std::to_chars(digits, digits + sizeof(digits), number, std::chars_format::fixed).ptr;
  std::string result(digits, fixed);
  if (result.find('.') == std::string::npos) result += ".0";
  return result;
}

void AppendRepr(Runtime& runtime, const Value& value, StringBuilder* builder) {
  runtime.Step();
  switch (value.kind()) {
    case Kind::kUndefined:
      builder->Append("Undefined");
      break;
    case Kind::kNone:
      builder->Append("None");
      break;
    case Kind::kBool:
      builder->Append(value.as_bool() ? "True" : "False");
      break;
    case Kind::kInt:
      builder->Append(fmt::format("{}", value.as_int()));
      break;
    case Kind::kFloat:
      builder->Append(FloatText(value.as_double()));
      break;
    case Kind::kString:
      if (value.string().is_markup) builder->Append("Markup(");
      AppendStringRepr(value.string(), builder);
      if (value.string().is_markup) builder->Append(")");
      break;
    case Kind::kList:
      builder->Append("[");
      AppendItems(runtime, value.sequence().items, builder);
      builder->Append("]");
      break;
    case Kind::kTuple:
      builder->Append("(");
      AppendItems(runtime, value.sequence().items, builder);
      builder->Append(value.sequence().items.size() == 1 ? ",)" : ")");
      break;
    case Kind::kRange:
      builder->Append(value.sequence().label);
      break;
    case Kind::kView:
      builder->Append(value.sequence().label + "([");
      AppendItems(runtime, value.sequence().items, builder);
      builder->Append("])");
      break;
    case Kind::kDict:
      AppendPairs(runtime, value.dict().items, builder);
      break;
    case Kind::kNamespace:
      AppendNamespace(runtime, value.name_space(), builder);
      break;
    case Kind::kLoop:
      builder->Append(
          fmt::format("<LoopContext {}/{}>", value.loop().index0 + 1, value.loop().Length()));
      break;
    default:
      // Python prints addresses, which no prompt can mean.
      runtime.Fail(
          fmt::format("found a {} to print, expected a text, a number or a list", TypeName(value)));
  }
}

void AppendText(Runtime& runtime, const Value& value, StringBuilder* builder) {
  if (value.IsString()) {
    builder->Append(value.string());
  } else if (!value.IsUndefined()) {
    AppendRepr(runtime, value, builder);
  }
}

Value TextOf(Runtime& runtime, const Value& value) {
  if (value.IsString()) return value;
  StringBuilder builder(runtime);
  AppendText(runtime, value, &builder);
  return builder.Take();
}

void AppendJson(Runtime& runtime, const Value& value, const JsonFormat& format,
                StringBuilder* builder) {
  JsonTextWriter(runtime, format, builder).Append(value);
}

size_t FindText(std::string_view text, std::string_view part, size_t from) {
  if (from > text.size()) return std::string_view::npos;
  if (part.empty()) return from;
  const void* found = memmem(text.data() + from, text.size() - from, part.data(), part.size());
  if (found == nullptr) return std::string_view::npos;
  return static_cast<size_t>(static_cast<const char*>(found) - text.data());
}

size_t FindTextFromRight(Runtime& runtime, std::string_view text, std::string_view part) {
  const size_t found = text.rfind(part);
  const size_t searched = found == std::string_view::npos ? text.size() : text.size() - found;
  // A hostile part is compared nearly whole at every place.
  runtime.Step(static_cast<int64_t>(searched / 64 * part.size() / 64));
  return found;
}

Value RangeOf(Runtime& runtime, std::vector<Value> numbers) {
  int64_t start = 0;
  int64_t stop = 0;
  int64_t step = 1;
  if (!numbers.empty()) {
    start = numbers.front().as_int();
    if (numbers.size() > 1) step = numbers[1].as_int() - start;
    stop = numbers.back().as_int() + step;
  }
  std::string label = step == 1 ? fmt::format("range({}, {})", start, stop)
                                : fmt::format("range({}, {}, {})", start, stop, step);
  return runtime.Items(Kind::kRange, std::move(numbers), std::move(label));
}

}  // namespace pmkvq::jinja
