// The value of a formula in normalised LaTeX (math_normalize.h).
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "pmkvq/research/judge/math_value.h"

namespace pmkvq {

// Evaluates one expression at `point`, by recursive descent:
//
//   sums, products (also implicit: 2\sqrt{3}, \frac{1}{2}x), quotients, powers, factorials,
//   \frac and \binom with or without braces, \sqrt and \sqrt[n], |x|, mixed numbers (1\frac{4}{5},
//   1 4/5), numerals (math_number.h), pi, e, i, elementary functions (\sin x, \sin^{-1} x,
//   \log_2 8), floor and ceiling, degrees in arguments of functions (\degree), variables with
//   subscripts, numerals with a base (52_8, equal to themselves only), \infty (a variable).
//
// Nothing for all other text: lists, relations, words (three letters in a row are no product of
// variables), undefined values, nesting deeper than 64, texts over 4,096 bytes. Implicit and
// explicit products bind alike, from the left: 1/2x is x/2. \sqrt12 is the root of twelve, and
// x^10 the tenth power, where TeX itself would take one digit: authors never mean that.
// Linear in the text. Never throws.
std::optional<MathValue> EvaluateExpression(std::string_view normalized, int point);

// Points at which two expressions must agree to be taken for equal.
inline constexpr int kNumPoints = 3;

// Evaluates for one comparison: an expression that occurs again is not evaluated again, and after
// kMaxWork bytes of different expressions there are no more values, so that long lists and nested
// alternatives end in bounded time. For one thread.
class ExpressionCache {
 public:
  static constexpr size_t kMaxWork = 65536;

  const std::optional<MathValue>& At(std::string_view normalized, int point);
  // Whether two expressions agree at every point.
  bool SameValue(std::string_view a, std::string_view b);
  // The value of an expression without variables; nothing for others.
  std::optional<MathValue> Constant(std::string_view normalized);

 private:
  struct Entry {
    std::array<bool, kNumPoints> known = {};
    std::array<std::optional<MathValue>, kNumPoints> values;
  };
  std::unordered_map<std::string, Entry> entries_;
  size_t work_ = 0;
};

}  // namespace pmkvq
