#include "pmkvq/eval/answer.h"

namespace pmkvq {
namespace {

std::string_view Trim(std::string_view text) {
  const size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos) return {};
  return text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
}

}  // namespace

std::optional<std::string> ExtractBoxedAnswer(std::string_view text) {
  constexpr std::string_view kMarker = "\\boxed{";
  const size_t marker = text.rfind(kMarker);
  if (marker == std::string_view::npos) return std::nullopt;
  const size_t begin = marker + kMarker.size();
  int depth = 1;
  for (size_t i = begin; i < text.size(); ++i) {
    if (text[i] == '{') ++depth;
    if (text[i] == '}' && --depth == 0) return std::string(Trim(text.substr(begin, i - begin)));
  }
  return std::nullopt;
}

}  // namespace pmkvq
