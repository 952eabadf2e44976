// One spelling for the many ways to write the same answer in LaTeX or plain text.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include "pmkvq/research/judge/math_units.h"

namespace pmkvq {

struct NormalizedAnswer {
  std::string text;
  QuantityWords quantity;  // What was taken off behind the value, and currency signs.
  bool is_word = false;    // Nothing but \text{letters}: no product of variables.
};

// Removes text without meaning (markup of math_markup.h, math delimiters, \left and \right,
// fonts, sizes, spacing, degree and currency signs, units and words behind the value, a full stop;
// degrees behind a function of an angle stay, as \degree), and gives synonyms one name (\dfrac and
// \frac, \leq and \le, x and \cdot and *, Unicode signs and their commands, \text{and} and the
// comma; between inequalities they are \land and \lor). Thousands separators go: "1,234",
// "1{,}234", "1,\!234", "1 234", but never inside brackets ("(1,234)" is a pair) nor with a blank
// behind the comma. A blank stays only between two numbers ("1 1/2") and behind a command that a
// letter follows ("\pi r").
//
// Equal results mean the same answer; the reverse is EquivalentAnswers' task. Linear in the text,
// which is cut at kMaxNormalizedLength bytes. Never throws.
inline constexpr size_t kMaxNormalizedLength = 16384;
NormalizedAnswer NormalizeAnswer(std::string_view answer);

}  // namespace pmkvq
