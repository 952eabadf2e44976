#include "thinking_style.h"

#include <algorithm>

namespace pmkvq::cli {
namespace {

constexpr std::string_view kOpen = "<think>";
constexpr std::string_view kClose = "</think>";

}  // namespace

ThinkingStyle::ThinkingStyle(bool starts_inside, bool enabled)
    : enabled_(enabled), inside_(starts_inside) {}

// Every piece switches dimming on and off again, so that the terminal is not left dimmed when the
// program ends between two pieces.
std::string ThinkingStyle::Style(std::string_view text) const {
  if (text.empty() || !inside_) return std::string(text);
  return "\x1b[2m" + std::string(text) + "\x1b[0m";
}

std::string ThinkingStyle::Push(std::string_view piece) {
  if (!enabled_) return std::string(piece);
  held_ += piece;
  std::string shown;
  while (true) {
    const std::string_view tag = inside_ ? kClose : kOpen;
    const size_t at = held_.find(tag);
    if (at == std::string::npos) break;
    if (inside_) {
      shown += Style(held_.substr(0, at + tag.size()));
      inside_ = false;
    } else {
      shown += held_.substr(0, at);
      inside_ = true;
      shown += Style(tag);
    }
    held_.erase(0, at + tag.size());
  }
  // The longest end of the text that may still become the tag.
  const std::string_view tag = inside_ ? kClose : kOpen;
  size_t kept = std::min(held_.size(), tag.size() - 1);
  while (kept > 0 && !tag.starts_with(std::string_view(held_).substr(held_.size() - kept))) --kept;
  shown += Style(std::string_view(held_).substr(0, held_.size() - kept));
  held_.erase(0, held_.size() - kept);
  return shown;
}

std::string ThinkingStyle::Finish() {
  const std::string shown = Style(held_);
  held_.clear();
  return shown;
}

bool EndsInThinking(const Tokenizer& tokenizer, const std::vector<int32_t>& prompt_ids) {
  constexpr size_t kTail = 16;  // Tokens; the tag and blanks behind it take fewer.
  std::vector<int32_t> tail;
  for (size_t i = prompt_ids.size() - std::min(prompt_ids.size(), kTail); i < prompt_ids.size();
       ++i) {
    if (tokenizer.IsValid(prompt_ids[i])) tail.push_back(prompt_ids[i]);
  }
  const std::string text = tokenizer.Decode(tail);
  const size_t end = text.find_last_not_of(" \t\r\n");
  return end != std::string::npos && text.substr(0, end + 1).ends_with(kOpen);
}

}  // namespace pmkvq::cli
