// One spelling for the many ways to write the same answer in LaTeX or plain text.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pmkvq {

struct NormalizedAnswer {
  std::string text;
  // The unit behind the answer in its canonical name ("cm", "cm^2", "dollar"); "" when there is
  // none or it is not in the table of units ("apples").
  std::string unit;
  bool percent = false;  // A percent sign or the word was removed.
};

// Removes what carries no meaning (math delimiters, \left and \right, fonts, spacing, degree and
// dollar signs, units, a full stop), and gives synonyms one name (\dfrac and \frac, \leq and \le,
// x and \cdot and *, Unicode signs and their commands, \text{and} and the comma). Thousands
// separators go: "1,234", "1{,}234", "1,\!234", "1 234", but never inside brackets ("(1,234)" is a
// pair) nor with a blank behind the comma. A blank stays only between two numbers ("1 1/2") and
// behind a command that a letter follows ("\pi r").
//
// Equal results mean the same answer; the reverse is EquivalentAnswers' task. Linear in the text,
// which is cut at kMaxNormalizedLength bytes. Never throws.
inline constexpr size_t kMaxNormalizedLength = 16384;
NormalizedAnswer NormalizeAnswer(std::string_view answer);

}  // namespace pmkvq
