#include "pmkvq/server/api/reasoning.h"

#include <algorithm>

#include "pmkvq/engine/output_text.h"

namespace pmkvq::server {
namespace {

constexpr std::string_view kOpen = "<think>";
constexpr std::string_view kClose = "</think>";

}  // namespace

ReasoningSplitter::ReasoningSplitter(bool enabled, bool in_reasoning)
    : state_(!enabled       ? State::kContent
             : in_reasoning ? State::kReasoning
                            : State::kStart),
      skips_breaks_(enabled && in_reasoning) {}

AnswerText ReasoningSplitter::Push(std::string_view piece) {
  held_ += piece;
  return Take(false);
}

AnswerText ReasoningSplitter::Finish() { return Take(true); }

AnswerText ReasoningSplitter::Take(bool is_end) {
  AnswerText out;
  const auto skip_breaks = [&] {
    if (!skips_breaks_) return;
    const size_t begin = std::min(held_.find_first_not_of('\n'), held_.size());
    held_.erase(0, begin);
    if (!held_.empty()) skips_breaks_ = false;
  };
  if (state_ == State::kStart) {
    const size_t begin = held_.find_first_not_of(" \n");
    const std::string_view rest =
        begin == std::string::npos ? std::string_view() : std::string_view(held_).substr(begin);
    if (rest.starts_with(kOpen)) {
      held_.erase(0, begin + kOpen.size());
      state_ = State::kReasoning;
      skips_breaks_ = true;
    } else if (kOpen.starts_with(rest) && !is_end) {
      return out;
    } else {
      state_ = State::kContent;
    }
  }
  if (state_ == State::kReasoning) {
    skip_breaks();
    const size_t end = held_.find(kClose);
    if (end == std::string::npos) {
      const size_t keep = is_end ? 0 : PossibleStart(held_, kClose);
      out.reasoning = held_.substr(0, held_.size() - keep);
      held_.erase(0, held_.size() - keep);
      return out;
    }
    out.reasoning = held_.substr(0, end);
    held_.erase(0, end + kClose.size());
    state_ = State::kContent;
    skips_breaks_ = true;
  }
  skip_breaks();
  out.content = std::move(held_);
  held_.clear();
  return out;
}

}  // namespace pmkvq::server
