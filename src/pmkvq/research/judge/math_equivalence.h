// Whether two answers to a problem of mathematics are the same.
#pragma once

#include <string_view>

namespace pmkvq {

// Compares two answers (the content of a box: LaTeX or plain text), symmetric in both.
//
// Same: equal text after NormalizeAnswer; equal values (EvaluateExpression at kNumPoints points, so
// that 2(k+1) is 2k+2; decimals are exact, 0.33 is not 1/3 and 0.\overline{3} is); tuples with the
// same brackets and the same items in order; lists and sets with the same items in any order
// ("a \pm b" is two items; one of two sets may repeat elements); equal sets of reals, written with
// intervals or with inequalities (math_interval.h); matrices entry by entry; equations whose two
// sides differ by the same up to a factor; inequalities also when turned around; words in any case.
// "x = 5" and "m + n = 5" are 5 (math_relation.h), and "x \in A" is A, unless the other names
// something too.
//
// Units and words behind the answer may be missing on one side; different ones are different
// answers (math_units.h). 50% is 50 and also 0.5; a choice "(C)" is C, also with its text behind
// it. "A \approx B" is A.
//
// Not same, on purpose: a list and a tuple, a number in base 8 and a plain one, degrees and
// radians, "no" and "on". Answers over 4,096 bytes and lists over 64 items are compared as text.
// Time is bounded (ExpressionCache).
// Never throws.
bool EquivalentAnswers(std::string_view a, std::string_view b);

}  // namespace pmkvq
