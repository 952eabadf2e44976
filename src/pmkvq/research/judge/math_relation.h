// Equations and inequalities in answers: which value "m + n = 13" gives.
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "pmkvq/research/judge/math_expression.h"
#include "pmkvq/research/judge/math_tokens.h"

namespace pmkvq {

// All take normalised text (math_normalize.h).

// =, <, >, \le, \ge, \ne.
bool IsRelation(std::string_view token);
// Sides and relations, turned so that inequalities increase from left to right.
Split ParseRelations(std::string_view text);

// Something that a value is given to: x, x_1, \theta, AB, f(x).
bool IsName(std::string_view text);

// Whether the left side of an equation names or computes a quantity, so that the right side is
// its value: names, sums and ratios of several variables, tuples of names, |z|, angles, segments,
// areas, values of functions, words. Not where the equation still has to be solved for its one
// variable: x^2, 2x, \log_2 x.
bool NamesQuantity(std::string_view text, ExpressionCache* cache);

// "name = ... = value". The name is "" for "= 42" and for a chain of numbers.
struct Assignment {
  std::string name;
  std::string value;
};
// Nothing where `text` is no equation, where sides without variables disagree ("2+3 = 6"), or
// where the left side names no quantity.
std::optional<Assignment> ReadAssignment(std::string_view text, ExpressionCache* cache);

// The text before the first \approx. The text behind it where nothing or only a name comes before
// it
// ("x \approx 3.14").
std::string ExactPart(const std::string& text, ExpressionCache* cache);

}  // namespace pmkvq
