// Splits an answer that arrives in pieces into reasoning and content.
#pragma once

#include <string>
#include <string_view>

namespace pmkvq::server {

struct AnswerText {
  std::string reasoning;
  std::string content;
};

// The text up to "</think>" is reasoning, the rest is content; the tag and a "<think>" in front of
// the text belong to neither, nor do line breaks right behind a tag. The same however the text is
// cut into pieces. Where the text ends without "</think>", all of it is reasoning.
class ReasoningSplitter {
 public:
  // `in_reasoning`: the prompt ends in an open <think>. Otherwise reasoning begins where the answer
  // does with <think>. `enabled` false: everything is content.
  ReasoningSplitter(bool enabled, bool in_reasoning);

  // What is decided with this piece; the start of a tag is held back.
  AnswerText Push(std::string_view piece);
  // What is held back: no more text will come.
  AnswerText Finish();
  bool in_reasoning() const { return state_ == State::kReasoning; }

 private:
  enum class State { kStart, kReasoning, kContent };
  AnswerText Take(bool is_end);

  State state_;
  bool skips_breaks_ = false;  // Right behind a tag.
  std::string held_;
};

}  // namespace pmkvq::server
