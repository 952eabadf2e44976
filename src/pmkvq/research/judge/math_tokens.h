// Normalised LaTeX (math_normalize.h) cut into tokens and parts. A token is a command with the
// blank behind it, an escaped character, or one byte.
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

bool IsLetter(char c);  // ASCII only.
bool StartsWith(std::string_view text, std::string_view prefix);

// Length of the token at `at`.
size_t TokenLength(std::string_view text, size_t at);
// The token without the blank behind a command.
std::string_view WithoutBlank(std::string_view token);

struct Split {
  std::vector<std::string> parts;
  std::vector<std::string> separators;  // One less than parts.
};
// Splits at the tokens outside of all brackets for which `separates` holds.
Split SplitAt(std::string_view text, const std::function<bool(std::string_view)>& separates);
std::vector<std::string> SplitAtToken(std::string_view text, std::string_view separator);
// At commas, semicolons, "and" and "or".
std::vector<std::string> SplitItems(std::string_view text);

// Whether one pair of brackets encloses the whole of `text`. Brackets of intervals may be mixed.
bool IsEnclosed(std::string_view text, std::string_view open, std::string_view close);
// Removes braces that enclose everything: "{{5}}" is 5.
std::string_view WithoutBraces(std::string_view text);

}  // namespace pmkvq
