// Answers in the text of a reasoning model.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pmkvq {

// The content of the last \boxed{...} in `text`, braces balanced, white space trimmed; nothing
// when there is none or it is not closed.
std::optional<std::string> ExtractBoxedAnswer(std::string_view text);

}  // namespace pmkvq
