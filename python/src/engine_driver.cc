#include "engine_driver.h"

#include <unistd.h>

#include <algorithm>
#include <utility>

#include "pmkvq/base/error.h"

namespace pmkvq::python {

void TurnLock::lock() {
  std::unique_lock lock(mutex_);
  const uint64_t turn = next_++;
  turned_.wait(lock, [&] { return serving_ == turn; });
}

void TurnLock::unlock() {
  {
    const std::lock_guard lock(mutex_);
    ++serving_;
  }
  turned_.notify_all();
}

EngineDriver::EngineDriver(Engine engine)
    : engine_(std::make_unique<Engine>(std::move(engine))),
      process_(getpid()),
      budget_bytes_(engine_->kv_budget().total_bytes()) {}

EngineDriver::~EngineDriver() {
  // Its destructor would wait for threads that the child of a fork does not have.
  if (getpid() != process_) static_cast<void>(engine_.release());
}

void EngineDriver::CheckProcess() const {
  if (getpid() == process_) return;
  throw Unsupported("fork",
                    "this process was forked from the one that made this LLM, and has none of its "
                    "threads; expected an LLM that this process made itself (multiprocessing: the "
                    "start method \"spawn\")");
}

std::vector<RequestId> EngineDriver::Submit(std::vector<Request> requests, bool keeps_events) {
  CheckProcess();
  const std::lock_guard lock(turns_);
  EndForgotten();
  std::vector<RequestId> ids;
  try {
    for (Request& request : requests) {
      ids.push_back(engine_->Submit(std::move(request)));
      inboxes_[ids.back()].keeps_events = keeps_events;
    }
  } catch (...) {
    for (const RequestId id : ids) {
      inboxes_.erase(id);
      engine_->Cancel(id, this);
    }
    throw;
  }
  return ids;
}

std::vector<RequestId> EngineDriver::SubmitSamples(std::vector<Request> requests) {
  CheckProcess();
  const std::lock_guard lock(turns_);
  EndForgotten();
  std::vector<RequestId> ids = engine_->SubmitSamples(std::move(requests));
  for (const RequestId id : ids) inboxes_[id];
  return ids;
}

EngineDriver::StepResult EngineDriver::Step(std::span<const RequestId> ids) {
  CheckProcess();
  const std::lock_guard lock(turns_);
  EndForgotten();
  StepResult result;
  result.events = TakeEvents(ids);
  if (result.events.empty() && !HaveFinished(ids)) {
    engine_->Step(this);
    result.events = TakeEvents(ids);
  }
  result.has_finished = HaveFinished(ids);
  return result;
}

void EngineDriver::Cancel(std::span<const RequestId> ids) {
  CheckProcess();
  const std::lock_guard lock(turns_);
  EndForgotten();
  for (const RequestId id : ids) engine_->Cancel(id, this);
}

std::vector<Completion> EngineDriver::CompletionsOf(std::span<const RequestId> ids) {
  CheckProcess();
  const std::lock_guard lock(turns_);
  std::vector<Completion> completions;
  for (const RequestId id : ids) completions.push_back(inboxes_.at(id).completion.value());
  return completions;
}

void EngineDriver::Forget(std::span<const RequestId> ids) {
  const std::lock_guard lock(forgotten_mutex_);
  forgotten_.insert(forgotten_.end(), ids.begin(), ids.end());
}

EngineStats EngineDriver::stats() {
  CheckProcess();
  const std::lock_guard lock(turns_);
  EndForgotten();
  return engine_->stats();
}

KvStoreStats EngineDriver::store_stats() {
  CheckProcess();
  const std::lock_guard lock(turns_);
  EndForgotten();
  return engine_->store().StoreStats();
}

void EngineDriver::EndForgotten() {
  std::vector<RequestId> ids;
  {
    const std::lock_guard lock(forgotten_mutex_);
    ids.swap(forgotten_);
  }
  for (const RequestId id : ids) {
    inboxes_.erase(id);
    engine_->Cancel(id, this);
  }
}

bool EngineDriver::HaveFinished(std::span<const RequestId> ids) const {
  return std::all_of(ids.begin(), ids.end(),
                     [this](RequestId id) { return inboxes_.at(id).completion.has_value(); });
}

std::vector<RunEvent> EngineDriver::TakeEvents(std::span<const RequestId> ids) {
  std::vector<RunEvent> events;
  for (const RequestId id : ids) {
    std::vector<RunEvent>& waiting = inboxes_.at(id).events;
    std::move(waiting.begin(), waiting.end(), std::back_inserter(events));
    waiting.clear();
  }
  return events;
}

// Null where nobody asked for them.
EngineDriver::Inbox* EngineDriver::InboxWithEvents(RequestId id) {
  const auto found = inboxes_.find(id);
  return found != inboxes_.end() && found->second.keeps_events ? &found->second : nullptr;
}

void EngineDriver::OnLogprobs(RequestId id, const TokenLogprobs& logprobs) {
  if (InboxWithEvents(id) != nullptr) logprobs_ = logprobs;
}

void EngineDriver::OnToken(RequestId id, int32_t token, const std::string& text) {
  if (Inbox* const inbox = InboxWithEvents(id)) {
    DrawnToken drawn{token, text, std::exchange(logprobs_, std::nullopt), {}};
    if (const auto seq = engine_->SequenceOf(id)) drawn.kv = engine_->store().SequenceStats(*seq);
    inbox->events.emplace_back(std::move(drawn));
  }
}

void EngineDriver::OnHalving(RequestId id, const HalvingEvent& event) {
  if (Inbox* const inbox = InboxWithEvents(id)) inbox->events.emplace_back(event);
}

void EngineDriver::OnFinished(const Completion& completion) {
  const auto found = inboxes_.find(completion.id);
  if (found == inboxes_.end()) return;
  if (found->second.keeps_events) found->second.events.emplace_back(completion);
  found->second.completion = completion;
}

}  // namespace pmkvq::python
