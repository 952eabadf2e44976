// Sets of real numbers in answers: intervals, inequalities, and their unions and intersections.
#pragma once

#include <optional>
#include <string_view>

#include "pmkvq/research/judge/math_expression.h"

namespace pmkvq {

// Whether two answers in normalised text (math_normalize.h) are the same set of reals: "x \le 3"
// and
// (-\infty,3]; "x<2 or x>3" and (-\infty,2)\cup(3,\infty); x \ne 0; \mathbb{R}\setminus\{0\}; sets
// of numbers in unions with intervals; {x : x > 3}. "or" joins and "and" intersects; a comma joins
// sets that do not overlap, and intersects sets that do. The name of the variable counts only where
// both give one. Ends may hold other variables.
//
// Nothing where one answer is no set of reals, and where a comparison of the texts is enough for
// both.
std::optional<bool> SameRealSet(std::string_view a, std::string_view b, ExpressionCache* cache);

}  // namespace pmkvq
