#include "pmkvq/research/judge/math_number.h"

#include <algorithm>
#include <charconv>
#include <string>

namespace pmkvq {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Reads one numeral from the start of a text.
class Reader {
 public:
  explicit Reader(std::string_view text) : text_(text) {}

  std::optional<Numeral> Read() {
    whole_ = Digits();
    const bool point = Peek() == '.' && text_.substr(at_, 2) != "..";
    if (point) {
      ++at_;
      if (!Decimals()) return std::nullopt;
    }
    if (whole_.empty() && decimals_.empty() && period_.empty()) return std::nullopt;
    if (!Dots()) return std::nullopt;
    Numeral numeral{MathValue::Integer(0), 0, !point};
    if (!period_.empty()) {
      numeral.value = Repeating();
    } else {
      const std::optional<int64_t> exponent = Exponent();
      if (!exponent) return std::nullopt;
      numeral.whole = numeral.whole && *exponent == 0;
      numeral.value = MathValue::Decimal(whole_ + "." + decimals_, *exponent);
    }
    if (numeral.value.IsUndefined()) return std::nullopt;
    numeral.length = at_;
    return numeral;
  }

 private:
  char Peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  std::string Digits() {
    const size_t begin = at_;
    while (IsDigit(Peek())) ++at_;
    return std::string(text_.substr(begin, at_ - begin));
  }

  bool Take(std::string_view prefix) {
    if (text_.substr(at_, prefix.size()) != prefix) return false;
    at_ += prefix.size();
    return true;
  }

  // "{12}" or "3": the digits behind a mark.
  std::string Marked() {
    while (Peek() == ' ') ++at_;
    if (!Take("{")) return IsDigit(Peek()) ? std::string(1, text_[at_++]) : std::string();
    std::string digits = Digits();
    return Take("}") ? digits : std::string();
  }

  // The decimals behind the point: digits, then a period marked by a bar, by brackets, or by dots
  // on its first and last digit. False for marks in other places.
  bool Decimals() {
    decimals_ = Digits();
    if (text_.substr(at_, 5) == "\\dot{" ||
        (text_.substr(at_, 4) == "\\dot" && at_ + 4 < text_.size() &&
         (IsDigit(text_[at_ + 4]) || text_[at_ + 4] == ' '))) {
      return DottedPeriod();
    }
    bool barred = false;
    while (Take("\\overline") || Take("\\bar")) {
      const std::string digits = Marked();
      if (digits.empty()) return false;
      period_ += digits;
      barred = true;
    }
    if (barred) return !IsDigit(Peek());
    if (Peek() == '(') {
      const size_t begin = at_++;
      period_ = Digits();
      if (period_.empty() || !Take(")")) {
        period_.clear();
        at_ = begin;
      }
    }
    return true;
  }

  bool DottedPeriod() {
    int marks = 0;
    while (true) {
      if (Take("\\dot")) {
        const std::string digit = Marked();
        if (digit.size() != 1) return false;
        period_ += digit;
        ++marks;
      } else if (marks == 1 && IsDigit(Peek())) {
        // Digits between the two dots; behind a single dot there are none.
        period_ += Digits();
        if (text_.substr(at_, 4) != "\\dot") return false;
      } else {
        return marks == 1 || marks == 2 || static_cast<size_t>(marks) == period_.size();
      }
    }
  }

  // "0.333\dots"; false for dots behind digits that do not repeat.
  bool Dots() {
    if (!Take("\\dots")) return true;
    while (Peek() == ' ') ++at_;
    if (!period_.empty()) return true;  // "0.\overline{3}\dots"
    for (size_t length = 1; 2 * length <= decimals_.size(); ++length) {
      const size_t repeated = RepeatedEnd(length);
      if (repeated < 2 * length || 2 * repeated < decimals_.size()) continue;
      period_ = decimals_.substr(decimals_.size() - length);
      return true;
    }
    return false;
  }

  // Length of the end of the decimals that repeats its last `length` digits.
  size_t RepeatedEnd(size_t length) const {
    size_t repeated = length;
    while (repeated < decimals_.size() && decimals_[decimals_.size() - 1 - repeated] ==
                                              decimals_[decimals_.size() - 1 - repeated + length]) {
      ++repeated;
    }
    return repeated;
  }

  MathValue Repeating() const {
    const MathValue ten = MathValue::Integer(10);
    const MathValue shift = ten.Power(MathValue::Integer(static_cast<int64_t>(period_.size())));
    const MathValue tail = MathValue::Decimal(period_, -static_cast<int64_t>(decimals_.size()));
    return MathValue::Decimal(whole_ + "." + decimals_, 0) + tail / (shift - MathValue::Integer(1));
  }

  // Of scientific notation, 0 without one; the e must be followed by a digit or a sign. Nothing
  // for one that is too large.
  std::optional<int64_t> Exponent() {
    if (Peek() != 'e' && Peek() != 'E') return 0;
    size_t begin = at_ + 1;
    const bool negative = begin < text_.size() && text_[begin] == '-';
    if (begin < text_.size() && (text_[begin] == '-' || text_[begin] == '+')) ++begin;
    if (begin >= text_.size() || !IsDigit(text_[begin])) return 0;
    at_ = begin;
    const std::string digits = Digits();
    int32_t exponent = 0;
    const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
    if (result.ec != std::errc()) return std::nullopt;
    return negative ? -exponent : exponent;
  }

  std::string_view text_;
  size_t at_ = 0;
  std::string whole_;
  std::string decimals_;  // Before the period.
  std::string period_;
};

}  // namespace

std::optional<Numeral> ReadNumeral(std::string_view text) { return Reader(text).Read(); }

}  // namespace pmkvq
