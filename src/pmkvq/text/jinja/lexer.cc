#include "pmkvq/text/jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>

#include "pmkvq/base/error.h"
#include "pmkvq/text/jinja/unicode.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq::jinja {
namespace {

bool IsAsciiDigit(char c) { return c >= '0' && c <= '9'; }
bool StartsName(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }
bool ContinuesName(char c) { return StartsName(c) || IsAsciiDigit(c); }

int DigitValue(char c) {
  if (IsAsciiDigit(c)) return c - '0';
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  return 99;
}

// Every kind of line break as \n, and without one at the end.
std::string NormalizeLines(std::string_view text) {
  std::string lines;
  lines.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text[i] != '\r') {
      lines += text[i];
      continue;
    }
    lines += '\n';
    if (i + 1 < text.size() && text[i + 1] == '\n') ++i;
  }
  if (lines.ends_with('\n')) lines.pop_back();
  return lines;
}

class Lexer {
 public:
  Lexer(std::string_view text, const std::string& source)
      : text_(NormalizeLines(text)), source_(source) {}

  std::vector<Token> Run() {
    while (at_ < text_.size()) ReadDataAndTag();
    Add(TokenKind::kEnd, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void Fail(const std::string& message) const {
    throw InvalidInput(source_, fmt::format("line {}: {}", line_, OneLine(message)));
  }

  std::string_view Rest() const { return std::string_view(text_).substr(at_); }
  bool At(std::string_view mark) const { return Rest().starts_with(mark); }

  void Skip(size_t bytes) {
    line_ +=
        static_cast<int>(std::count(text_.begin() + static_cast<ptrdiff_t>(at_),
                                    text_.begin() + static_cast<ptrdiff_t>(at_ + bytes), '\n'));
    at_ += bytes;
  }
  void SkipSpace() { Skip(LeadingSpace(Rest())); }

  Token& Add(TokenKind kind, std::string_view text) {
    tokens_.push_back({kind, line_, std::string(text), 0, 0});
    return tokens_.back();
  }

  // Text up to a tag, without the white space that the tag takes. The sign of the tag is
  // at text_[`begin`] + 2. `is_print`: {{ leaves the white space before it.
  std::string_view DataBefore(size_t begin, size_t end, char sign, bool is_print) const {
    std::string_view data = std::string_view(text_).substr(begin, end - begin);
    if (sign == '-') return data.substr(0, data.size() - TrailingSpace(data));
    if (sign == '+' || is_print) return data;
    // lstrip_blocks: a tag that is the first on its line takes its indentation.
    const size_t line = data.rfind('\n') + 1;  // npos + 1 is 0.
    const bool starts_line = line > 0 || begin == 0 || text_[begin - 1] == '\n';
    if (!starts_line || LeadingSpace(data.substr(line)) != data.size() - line) return data;
    return data.substr(0, line);
  }

  size_t FindTag(size_t from) const {
    for (size_t i = text_.find('{', from); i != std::string::npos; i = text_.find('{', i + 1)) {
      const char next = i + 1 < text_.size() ? text_[i + 1] : '\0';
      if (next == '{' || next == '%' || next == '#') return i;
    }
    return std::string::npos;
  }

  void AddData(std::string_view data) {
    if (!data.empty()) Add(TokenKind::kData, data);
  }

  void ReadDataAndTag() {
    const size_t tag = FindTag(at_);
    if (tag == std::string::npos) {
      AddData(Rest());
      at_ = text_.size();
      return;
    }
    const char sign = tag + 2 < text_.size() ? text_[tag + 2] : '\0';
    const char kind = text_[tag + 1];
    AddData(DataBefore(at_, tag, sign, kind == '{'));
    Skip(tag - at_);
    const size_t sign_bytes = sign == '-' || sign == '+' ? 1 : 0;
    if (kind == '%' && ReadRaw(sign_bytes)) return;
    if (kind == '#') {
      ReadComment(sign_bytes);
      return;
    }
    Add(kind == '{' ? TokenKind::kPrintBegin : TokenKind::kBlockBegin, "");
    Skip(2 + sign_bytes);
    ReadTag(kind == '{');
  }

  // What follows the end of a block, comment or raw block whose sign is before `mark`. False when
  // the text does not end one here.
  bool SkipEnd(std::string_view mark) {
    if (At("-") && Rest().substr(1).starts_with(mark)) {
      Skip(1 + mark.size());
      SkipSpace();
      return true;
    }
    if (At("+") && Rest().substr(1).starts_with(mark)) {
      Skip(1 + mark.size());
      return true;
    }
    if (!At(mark)) return false;
    Skip(mark.size());
    if (At("\n")) Skip(1);  // trim_blocks
    return true;
  }

  void ReadComment(size_t sign_bytes) {
    const int begin_line = line_;
    Skip(2 + sign_bytes);
    // A sign belongs to the end where one stands before it.
    const size_t end = text_.find("#}", at_);
    if (end == std::string::npos) {
      line_ = begin_line;
      Fail("a comment has no end, expected #}");
    }
    const bool has_sign = end > at_ && (text_[end - 1] == '-' || text_[end - 1] == '+');
    Skip(end - at_ - (has_sign ? 1 : 0));
    SkipEnd("#}");
  }

  // {% raw %} ... {% endraw %}, at the begin of a block. False for other blocks.
  bool ReadRaw(size_t sign_bytes) {
    size_t i = at_ + 2 + sign_bytes;
    const auto skip_space = [&] { i += LeadingSpace(std::string_view(text_).substr(i)); };
    const auto accept = [&](std::string_view mark) {
      if (!std::string_view(text_).substr(i).starts_with(mark)) return false;
      i += mark.size();
      return true;
    };
    skip_space();
    if (!accept("raw")) return false;
    skip_space();
    if (accept("-%}")) {
      skip_space();
    } else if (!accept("%}")) {
      return false;
    }
    const size_t body = i;
    for (size_t tag = text_.find("{%", body); tag != std::string::npos;
         tag = text_.find("{%", tag + 1)) {
      i = tag + 2;
      const char sign = i < text_.size() ? text_[i] : '\0';
      if (sign == '-' || sign == '+') ++i;
      skip_space();
      if (!accept("endraw")) continue;
      skip_space();
      if (!accept("-%}") && !accept("+%}") && !accept("%}")) continue;
      AddData(DataBefore(body, tag, sign, false));
      i -= text_[i - 3] == '-' || text_[i - 3] == '+' ? 3 : 2;
      Skip(i - at_);
      SkipEnd("%}");
      return true;
    }
    Fail("a raw block has no end, expected {% endraw %}");
  }

  void ReadTag(bool is_print) {
    const int begin_line = line_;
    while (at_ < text_.size()) {
      if (open_.empty()) {
        if (is_print ? SkipPrintEnd() : SkipEnd("%}")) {
          Add(is_print ? TokenKind::kPrintEnd : TokenKind::kBlockEnd, "");
          return;
        }
      }
      ReadToken();
    }
    line_ = begin_line;
    Fail(is_print ? "an expression has no end, expected }}" : "a block has no end, expected %}");
  }

  bool SkipPrintEnd() {
    if (At("-}}")) {
      Skip(3);
      SkipSpace();
      return true;
    }
    if (!At("}}")) return false;
    Skip(2);
    return true;
  }

  void ReadToken() {
    const char c = text_[at_];
    if (const size_t space = LeadingSpace(Rest()); space > 0) {
      Skip(space);
    } else if (IsAsciiDigit(c)) {
      ReadNumber();
    } else if (StartsName(c)) {
      size_t end = at_;
      while (end < text_.size() && ContinuesName(text_[end])) ++end;
      Add(TokenKind::kName, std::string_view(text_).substr(at_, end - at_));
      Skip(end - at_);
    } else if (c == '\'' || c == '"') {
      ReadString(c);
    } else {
      ReadOperator();
    }
  }

  void ReadOperator() {
    static constexpr std::string_view kLong[] = {"//", "**", "==", "!=", ">=", "<="};
    static constexpr std::string_view kShort = "+-/*%~[](){}><=.:|,;";
    std::string_view op;
    for (const std::string_view candidate : kLong) {
      if (At(candidate)) op = candidate;
    }
    if (op.empty() && kShort.find(text_[at_]) != std::string_view::npos) op = Rest().substr(0, 1);
    if (op.empty()) {
      Fail(fmt::format("found \"{}\", expected a name, a number, a string or an operator",
                       Rest().substr(0, CharacterBytes(text_, at_))));
    }
    Balance(op.front());
    Add(TokenKind::kOperator, op);
    Skip(op.size());
  }

  void Balance(char c) {
    static constexpr std::string_view kOpen = "([{";
    static constexpr std::string_view kClose = ")]}";
    if (kOpen.find(c) != std::string_view::npos) open_ += c;
    const size_t close = kClose.find(c);
    if (close == std::string_view::npos) return;
    if (open_.empty() || open_.back() != kOpen[close]) {
      Fail(open_.empty()
               ? fmt::format("found \"{}\" that closes nothing", c)
               : fmt::format("found \"{}\", expected the end of \"{}\"", c, open_.back()));
    }
    open_.pop_back();
  }

  // Digits of a base with single underscores between them; the end of them.
  size_t DigitsEnd(size_t from, int base) const {
    size_t end = from;
    while (end < text_.size()) {
      const size_t digit = text_[end] == '_' && end > from ? end + 1 : end;
      if (digit >= text_.size() || DigitValue(text_[digit]) >= base) break;
      end = digit + 1;
    }
    return end;
  }

  // The end of a number with a fraction or an exponent, or npos.
  size_t FloatEnd() const {
    size_t end = DigitsEnd(at_, 10);
    bool is_float = false;
    if (end + 1 < text_.size() && text_[end] == '.' && IsAsciiDigit(text_[end + 1])) {
      end = DigitsEnd(end + 1, 10);
      is_float = true;
    }
    if (end < text_.size() && (text_[end] == 'e' || text_[end] == 'E')) {
      size_t digits = end + 1;
      if (digits < text_.size() && (text_[digits] == '+' || text_[digits] == '-')) ++digits;
      if (digits < text_.size() && IsAsciiDigit(text_[digits])) {
        end = DigitsEnd(digits, 10);
        is_float = true;
      }
    }
    return is_float ? end : std::string::npos;
  }

  void ReadNumber() {
    // In x.1.5 the numbers are 1 and 5.
    const size_t float_end = at_ > 0 && text_[at_ - 1] == '.' ? std::string::npos : FloatEnd();
    if (float_end != std::string::npos) {
      std::string digits = text_.substr(at_, float_end - at_);
      std::erase(digits, '_');
      Add(TokenKind::kFloat, digits).number = std::strtod(digits.c_str(), nullptr);
      Skip(float_end - at_);
      return;
    }
    int base = 10;
    size_t begin = at_;
    if (text_[at_] == '0' && at_ + 2 < text_.size()) {
      const char mark = static_cast<char>(text_[at_ + 1] | 0x20);
      const int marked = mark == 'x' ? 16 : mark == 'o' ? 8 : mark == 'b' ? 2 : 10;
      if (marked != 10 && DigitValue(text_[at_ + 2]) < marked) {
        base = marked;
        begin = at_ + 2;
      }
    }
    size_t end = DigitsEnd(begin, base);
    // A number does not begin with 0: "01" are the numbers 0 and 1, and so a syntax error.
    if (base == 10 && text_[begin] == '0') {
      end = begin + 1;
      while (end < text_.size() && text_[end] == '0') ++end;
    }
    int64_t value = 0;
    for (size_t i = begin; i < end; ++i) {
      if (text_[i] == '_') continue;
      if (__builtin_mul_overflow(value, int64_t{base}, &value) ||
          __builtin_add_overflow(value, int64_t{DigitValue(text_[i])}, &value)) {
        Fail(fmt::format("found {}, expected an integer of 64 bits",
                         std::string_view(text_).substr(at_, std::min<size_t>(end - at_, 40))));
      }
    }
    Add(TokenKind::kInteger, std::string_view(text_).substr(at_, end - at_)).integer = value;
    Skip(end - at_);
  }

  void ReadString(char quote) {
    size_t end = at_ + 1;
    while (end < text_.size() && text_[end] != quote) end += text_[end] == '\\' ? 2 : 1;
    if (end >= text_.size()) Fail("a string has no end");
    Add(TokenKind::kString, Unescape(std::string_view(text_).substr(at_ + 1, end - at_ - 1)));
    Skip(end + 1 - at_);
  }

  // The escapes of Python's strings; unknown ones stay as they are.
  std::string Unescape(std::string_view text) const {
    std::string result;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        result += text[i];
        continue;
      }
      const char c = text[++i];  // ReadString saw a character behind every backslash.
      static constexpr std::string_view kNames = "\\'\"abfnrtv";
      static constexpr std::string_view kValues = "\\'\"\a\b\f\n\r\t\v";
      if (const size_t known = kNames.find(c); known != std::string_view::npos) {
        result += kValues[known];
      } else if (c == '\n') {
        continue;
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t count = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        AppendCodePoint(text.substr(i + 1, count), count, 16, &result);
        i += count;
      } else if (c >= '0' && c <= '7') {
        size_t count = 1;
        while (count < 3 && i + count < text.size() && text[i + count] >= '0' &&
               text[i + count] <= '7') {
          ++count;
        }
        AppendCodePoint(text.substr(i, count), count, 8, &result);
        i += count - 1;
      } else if (c == 'N') {
        Fail("found the escape \\N in a string, expected \\u and the number of the character");
      } else {
        result += '\\';
        result += c;
      }
    }
    return result;
  }

  void AppendCodePoint(std::string_view digits, size_t count, int base, std::string* result) const {
    uint32_t value = 0;
    bool is_valid = digits.size() == count;
    for (const char digit : digits) {
      is_valid = is_valid && DigitValue(digit) < base;
      value = value * static_cast<uint32_t>(base) + static_cast<uint32_t>(DigitValue(digit));
    }
    if (!is_valid || value > 0x10FFFF || (value >= 0xD800 && value <= 0xDFFF)) {
      Fail(fmt::format("found the escape {} in a string, expected the number of a character",
                       digits));
    }
    AppendUtf8(value, result);
  }

  std::string text_;
  const std::string& source_;
  size_t at_ = 0;
  int line_ = 1;
  std::string open_;  // Brackets that wait for their end.
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> Tokenize(std::string_view text, const std::string& source) {
  return Lexer(text, source).Run();
}

}  // namespace pmkvq::jinja
