// LaTeX and Unicode in answers, brought to plainer LaTeX.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pmkvq {

// Rewrites markup to a plainer spelling of the same meaning: Unicode signs (also full-width ones,
// vulgar fractions and bars over digits), "..." (\dots), colours, boxes, spaces and phantoms with
// arguments, {a \over b} and {n \choose k}, "\text{5 cm}" (5 cm), "a.m." (am), "US\$" (\$),
// currency signs (a command each), "The answer is". Linear in the text but for \over and \choose,
// of which 64 are read. Never throws.
std::string PlainMarkup(std::string_view answer);

// Where the group that opens at text[open], a "{", ends, behind its brace; npos when it is not
// closed. A brace behind a backslash is a character of the formula, not a group.
size_t GroupEnd(std::string_view text, size_t open);

}  // namespace pmkvq
