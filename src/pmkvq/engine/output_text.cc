#include "pmkvq/engine/output_text.h"

#include <algorithm>
#include <utility>

#include "pmkvq/base/check.h"

namespace pmkvq {

size_t PossibleStart(std::string_view text, std::string_view stop) {
  for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length) {
    if (text.ends_with(stop.substr(0, length))) return length;
  }
  return 0;
}

StopMatcher::StopMatcher(std::vector<std::string> stops) : stops_(std::move(stops)) {
  for (const std::string& stop : stops_) PMKVQ_CHECK(!stop.empty());
}

std::string StopMatcher::Push(std::string_view text) {
  if (matched_) return "";
  held_ += text;
  size_t keep = 0;
  size_t first_end = std::string::npos;
  size_t cut = 0;
  for (const std::string& stop : stops_) {
    keep = std::max(keep, PossibleStart(held_, stop));
    const size_t begin = held_.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end > first_end || (end == first_end && begin > cut)) continue;
    first_end = end;
    cut = begin;
    found_ = stop;
  }
  matched_ = first_end != std::string::npos;
  std::string out = held_.substr(0, matched_ ? cut : held_.size() - keep);
  held_ = matched_ ? "" : held_.substr(held_.size() - keep);
  return out;
}

std::string StopMatcher::Flush() { return std::exchange(held_, ""); }

OutputText::OutputText(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> stops,
                       const std::vector<int32_t>& prompt_ids, std::string stop_after)
    : tokenizer_(std::move(tokenizer)),
      stops_(std::move(stops)),
      stop_after_(std::move(stop_after)) {
  if (tokenizer_ == nullptr) return;
  const bool follows_text = !prompt_ids.empty() && tokenizer_->IsValid(prompt_ids.back()) &&
                            !tokenizer_->IsSpecial(prompt_ids.back());
  decoder_ = std::make_unique<StreamDecoder>(tokenizer_, true, follows_text);
}

size_t OutputText::LengthBeforeSearch(std::string_view piece) {
  if (stop_after_.empty()) return 0;
  const std::string seen = tail_ + std::string(piece);
  const size_t begin = seen.find(stop_after_);
  if (begin == std::string::npos) {
    tail_ = seen.substr(seen.size() - PossibleStart(seen, stop_after_));
    return piece.size();
  }
  const size_t end = begin + stop_after_.size() - tail_.size();
  stop_after_.clear();
  return end;
}

std::string OutputText::Add(std::string piece) {
  text_ += piece;
  return piece;
}

std::string OutputText::Push(int32_t token) {
  if (decoder_ == nullptr || !tokenizer_->IsValid(token)) return "";
  const std::string piece = decoder_->Push(token);
  const size_t passing = LengthBeforeSearch(piece);
  return Add(piece.substr(0, passing) + stops_.Push(std::string_view(piece).substr(passing)));
}

std::string OutputText::Finish() {
  if (decoder_ == nullptr) return "";
  const std::string piece = decoder_->Finish();
  const size_t passing = LengthBeforeSearch(piece);
  std::string rest =
      piece.substr(0, passing) + stops_.Push(std::string_view(piece).substr(passing));
  rest += stops_.Flush();
  return Add(std::move(rest));
}

}  // namespace pmkvq
