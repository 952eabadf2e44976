#include "pmkvq/research/judge/math_tokens.h"

#include <algorithm>
#include <cctype>

namespace pmkvq {
namespace {

int DepthChange(std::string_view token) {
  if (token == "(" || token == "[" || token == "{" || token == "\\{") return 1;
  if (token == ")" || token == "]" || token == "}" || token == "\\}") return -1;
  return 0;
}

}  // namespace

bool IsLetter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0; }

bool StartsWith(std::string_view text, std::string_view prefix) {
  return text.substr(0, prefix.size()) == prefix;
}

// Length of the token at `at`: a command with the blank behind it, an escaped character, or one
// byte.
size_t TokenLength(std::string_view text, size_t at) {
  if (text[at] != '\\' || at + 1 >= text.size()) return 1;
  size_t end = at + 1;
  while (end < text.size() && IsLetter(text[end])) ++end;
  if (end == at + 1) return 2;
  return end - at + (end < text.size() && text[end] == ' ' ? 1 : 0);
}

std::string_view WithoutBlank(std::string_view token) {
  return token.size() > 1 && token.back() == ' ' ? token.substr(0, token.size() - 1) : token;
}

// Splits at the tokens outside of all brackets for which `separates` holds.
Split SplitAt(std::string_view text, const std::function<bool(std::string_view)>& separates) {
  Split split;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t length = TokenLength(text, i);
    const std::string_view token = WithoutBlank(text.substr(i, length));
    depth += DepthChange(token);
    if (depth == 0 && separates(token)) {
      split.parts.emplace_back(text.substr(begin, i - begin));
      split.separators.emplace_back(token);
      begin = i + length;
    }
    i += length;
  }
  split.parts.emplace_back(text.substr(begin));
  return split;
}

std::vector<std::string> SplitAtToken(std::string_view text, std::string_view separator) {
  return SplitAt(text, [&](std::string_view token) { return token == separator; }).parts;
}

std::vector<std::string> SplitItems(std::string_view text) {
  return SplitAt(text,
                 [](std::string_view token) {
                   return token == "," || token == ";" || token == "\\lor" || token == "\\land";
                 })
      .parts;
}

// Whether one pair of brackets out of `open` and `close` encloses the whole of `text`. The two may
// be of different kinds, as those of intervals are.
bool IsEnclosed(std::string_view text, std::string_view open, std::string_view close) {
  if (text.size() < open.size() + close.size() || !StartsWith(text, open) ||
      text.substr(text.size() - close.size()) != close) {
    return false;
  }
  int depth = 0;
  for (size_t i = 0; i < text.size();) {
    const size_t length = TokenLength(text, i);
    depth += DepthChange(text.substr(i, length));
    i += length;
    if (depth <= 0) return i == text.size() && depth == 0;
  }
  return false;
}

// Removes braces that enclose everything: "{{5}}" is 5.
std::string_view WithoutBraces(std::string_view text) {
  while (IsEnclosed(text, "{", "}")) text = text.substr(1, text.size() - 2);
  return text;
}

}  // namespace pmkvq
