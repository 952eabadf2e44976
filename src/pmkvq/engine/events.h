// What happens to requests, queued for the observer.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "pmkvq/engine/engine.h"

namespace pmkvq {

// One drawn token, kept until the observer has taken it.
struct TokenEvent {
  RequestId id;
  int32_t token;
  std::string text;
  std::optional<TokenLogprobs> logprobs;
};
struct PromptEvent {
  RequestId id;
  std::vector<TokenLogprobs> logprobs;
};
struct PreemptionEvent {
  RequestId id;
  int64_t num_tokens;
};
using Event = std::variant<TokenEvent, std::pair<RequestId, HalvingEvent>, Completion, PromptEvent,
                           PreemptionEvent>;

// First in, first out. Keeps its memory.
class EventQueue {
 public:
  bool empty() const { return next_ == events_.size(); }
  template <class Kind>
  void Push(Kind event) {
    events_.emplace_back(std::move(event));
  }
  Event Pop() {
    Event event = std::move(events_[next_++]);
    if (empty()) {
      events_.clear();
      next_ = 0;
    }
    return event;
  }

 private:
  std::vector<Event> events_;
  size_t next_ = 0;
};

inline void Tell(EngineObserver& observer, const Event& event) {
  if (const auto* token = std::get_if<TokenEvent>(&event)) {
    if (token->logprobs) observer.OnLogprobs(token->id, *token->logprobs);
    observer.OnToken(token->id, token->token, token->text);
  } else if (const auto* halving = std::get_if<std::pair<RequestId, HalvingEvent>>(&event)) {
    observer.OnHalving(halving->first, halving->second);
  } else if (const auto* prompt = std::get_if<PromptEvent>(&event)) {
    observer.OnPromptLogprobs(prompt->id, prompt->logprobs);
  } else if (const auto* preemption = std::get_if<PreemptionEvent>(&event)) {
    observer.OnPreempted(preemption->id, preemption->num_tokens);
  } else {
    observer.OnFinished(std::get<Completion>(event));
  }
}

// Passes all events on and keeps completions.
class CompletionCollector : public EngineObserver {
 public:
  explicit CompletionCollector(EngineObserver* next) : next_(next) {}

  void OnToken(RequestId id, int32_t token, const std::string& text) override {
    if (next_ != nullptr) next_->OnToken(id, token, text);
  }
  void OnPromptLogprobs(RequestId id, const std::vector<TokenLogprobs>& logprobs) override {
    if (next_ != nullptr) next_->OnPromptLogprobs(id, logprobs);
  }
  void OnLogprobs(RequestId id, const TokenLogprobs& logprobs) override {
    if (next_ != nullptr) next_->OnLogprobs(id, logprobs);
  }
  void OnHalving(RequestId id, const HalvingEvent& event) override {
    if (next_ != nullptr) next_->OnHalving(id, event);
  }
  void OnPreempted(RequestId id, int64_t num_tokens) override {
    if (next_ != nullptr) next_->OnPreempted(id, num_tokens);
  }
  void OnFinished(const Completion& completion) override {
    finished_.insert_or_assign(completion.id, completion);
    if (next_ != nullptr) next_->OnFinished(completion);
  }

  bool Has(RequestId id) const { return finished_.contains(id); }
  Completion Take(RequestId id) { return std::move(finished_.at(id)); }

 private:
  EngineObserver* next_;
  std::map<RequestId, Completion> finished_;
};

}  // namespace pmkvq
