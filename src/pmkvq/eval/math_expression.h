// The value of a formula in normalised LaTeX (math_normalize.h).
#pragma once

#include <optional>
#include <string_view>

#include "pmkvq/eval/math_value.h"

namespace pmkvq {

// Evaluates one expression at `point`, by recursive descent:
//
//   sums, products (also implicit: 2\sqrt{3}, \frac{1}{2}x), quotients, powers, factorials,
//   \frac and \binom with or without braces, \sqrt and \sqrt[n], |x|, mixed numbers (1\frac{4}{5},
//   1 4/5), decimals, 1.5e3, pi, e, i, elementary functions (\sin x, \log_2 8), variables with
//   subscripts, numerals with a base (52_8, equal to themselves only), \infty (a variable).
//
// Nothing for whatever else: lists, relations, words (three letters in a row are no product of
// variables), undefined values, nesting deeper than 64, texts over 4,096 bytes. Implicit and
// explicit products bind alike, from the left: 1/2x is x/2. \sqrt12 is the root of twelve, and
// x^10 the tenth power, where TeX itself would take one digit: that reading is never meant.
// Linear in the text. Never throws.
std::optional<MathValue> EvaluateExpression(std::string_view normalized, int point);

// Points at which two expressions must agree to be taken for equal.
inline constexpr int kNumPoints = 3;

}  // namespace pmkvq
