// Answers in plain sentences: "The answer is therefore $18, not $19."
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pmkvq {

// The answer behind the last "answer is", "answer:" or "answer =" (any case, bold or not) that has
// one. Adverbs before the answer and quoting marks around it are dropped. The answer ends with its
// sentence or line, or before a clause ("because ...", ", which ...", ", not 4", "(see above)"). A
// formula in $...$ or \(...\) is the whole answer, or one of a list of formulas; a dollar sign
// before a number that closes no formula is money. Nothing where there is no such phrase. Linear in
// the text. Never throws.
std::optional<std::string> ExtractStatedAnswer(std::string_view text);

}  // namespace pmkvq
