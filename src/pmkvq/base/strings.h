// Small operations on text.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

// `text` without the `characters` at both ends, or at its end: a part of the same memory.
inline std::string_view Trim(std::string_view text, std::string_view characters = " \t\r\n") {
  const size_t begin = text.find_first_not_of(characters);
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(characters) - begin + 1);
}

inline std::string_view TrimEnd(std::string_view text, std::string_view characters = " \t\r\n") {
  return text.substr(0, text.find_last_not_of(characters) + 1);
}

// "a, b and c", with `last` before the last one.
inline std::string ListOf(const std::vector<std::string>& names, const char* last = " and ") {
  std::string text;
  for (size_t i = 0; i < names.size(); ++i) {
    text += (i == 0 ? "" : i + 1 == names.size() ? last : ", ") + names[i];
  }
  return text;
}

}  // namespace pmkvq
