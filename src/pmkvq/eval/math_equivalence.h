// Whether two answers to a problem of mathematics are the same.
#pragma once

#include <string_view>

namespace pmkvq {

// Compares two answers (the content of a box: LaTeX or plain text), symmetric in both.
//
// Same: equal text after NormalizeAnswer; equal values (EvaluateExpression at kNumPoints points, so
// that 2(k+1) is 2k+2; decimals are exact, 0.33 is not 1/3); tuples and intervals with the same
// brackets and the same items in order; lists and sets with the same items in any order ("a \pm b"
// is two items); unions of the same parts; matrices entry by entry; equations whose two sides
// differ by the same up to a factor; inequalities also when turned around; words in any case.
// "x = 5" and "x \in A" are what stands on the right, unless the other names something too.
//
// Units are compared only where both sides have a known one; 50% is 50 and also 0.5; a choice "(C)"
// is C, also with its text behind it. "A \approx B" is A.
//
// Not same, on purpose: a list and a tuple, (1,2) and [1,2], a number in base 8 and a plain one,
// degrees and radians. Answers over 4,096 bytes and lists over 64 items are compared as text.
// Never throws.
bool EquivalentAnswers(std::string_view a, std::string_view b);

}  // namespace pmkvq
