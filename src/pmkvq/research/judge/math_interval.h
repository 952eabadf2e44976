// Sets of real numbers in answers: intervals, inequalities, and what is made of them.
#pragma once

#include <optional>
#include <string_view>

#include "pmkvq/research/judge/math_expression.h"

namespace pmkvq {

// Whether two answers in normalised text (math_normalize.h) are the same set of reals: "x \le 3"
// and
// (-\infty,3]; "x<2 or x>3" and (-\infty,2)\cup(3,\infty); x \ne 0; \mathbb{R}\setminus\{0\}; sets
// of numbers in unions with intervals; {x : x > 3}. "or" joins and "and" intersects; a comma joins
// what does not overlap and intersects the rest. The name of the variable counts only where both
// give one. Ends may hold other variables.
//
// Nothing where neither answer is such a set in a way that a comparison of texts would miss, and
// where one is no set at all.
std::optional<bool> SameRealSet(std::string_view a, std::string_view b, ExpressionCache* cache);

}  // namespace pmkvq
