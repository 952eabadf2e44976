// Sets the thinking of an answer apart on a terminal: text up to </think> is dimmed.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/text/tokenizer.h"

namespace pmkvq::cli {

class ThinkingStyle {
 public:
  // `starts_inside`: the prompt ends in an opened <think>, so that the answer begins with thinking.
  // `enabled`: false passes text through unchanged.
  ThinkingStyle(bool starts_inside, bool enabled);

  // The text to print for a piece of the answer. A tag may be cut anywhere between pieces: text
  // that may become a tag is held back until the next piece. Tags are shown, dimmed.
  std::string Push(std::string_view piece);
  // What is held back, and the end of the dimming.
  std::string Finish();

 private:
  std::string Style(std::string_view text) const;

  bool enabled_;
  bool inside_;
  std::string held_;
};

// The prompt ends in an opened <think> (blanks may follow), so that the answer begins with
// thinking.
bool EndsInThinking(const Tokenizer& tokenizer, const std::vector<int32_t>& prompt_ids);

}  // namespace pmkvq::cli
