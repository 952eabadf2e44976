// Answers in plain sentences: "The answer is therefore $18, not $19."
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pmkvq {

// What follows the last "answer is", "answer:" or "answer =" (any case, bold or not) that is
// followed by an answer. Adverbs before it and quoting marks around it go. It ends with its
// sentence or line, or before a clause ("because ...", ", which ...", ", not 4", "(see above)"). A
// formula in
// $...$ or \(...\) stands alone, or in a list of formulas; a dollar sign before a number that
// closes no formula is money. Nothing otherwise. Linear in the text. Never throws.
std::optional<std::string> ExtractStatedAnswer(std::string_view text);

}  // namespace pmkvq
