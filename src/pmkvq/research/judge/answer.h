// Finds the final answer in the text of a reasoning model.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pmkvq {

// The content of the last \boxed{...} or, without any \boxed, of the last \fbox{...} in `text`,
// braces balanced, white space trimmed; nothing when there is none or the last is not closed.
// "\boxed 5" needs no braces. Boxes that make one list with it, joined by nothing but commas,
// "and", "or" and names ("x = \boxed{3} or x = \boxed{5}"), are joined to a list ("3, 5"); an
// answer that is given twice counts once.
std::optional<std::string> ExtractBoxedAnswer(std::string_view text);

// The final answer of a response: its box; without one the stated answer (answer_stated.h).
//
// As in the Python reference, a bare last number is no answer: a chain that was cut off would be
// graded by the number at which it was cut. Unlike in the reference, the first sentence of the
// response is no answer either. Linear in the text. Never throws.
std::optional<std::string> ExtractAnswer(std::string_view text);

// The answer inside the reference answer of a data set: the text behind the last "####" (GSM8K),
// else the box if there is one, else the whole text; trimmed.
std::string ExtractGold(std::string_view gold);

}  // namespace pmkvq
