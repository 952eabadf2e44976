// One engine for several Python threads: whoever waits for its requests computes a step for all.
#pragma once

#include <sys/types.h>

#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <variant>
#include <vector>

#include "pmkvq/engine/engine.h"

namespace pmkvq::python {

struct DrawnToken {
  int32_t token_id = 0;
  std::string text;  // That became complete with it.
  std::optional<TokenLogprobs> logprobs;
  KvSequenceStats kv;  // Of its request: the tokens before it are stored.
};
using RunEvent = std::variant<DrawnToken, HalvingEvent, Completion>;

// A lock that is given to whoever has waited longest: a thread that computes step after step lets
// others submit in between.
class TurnLock {
 public:
  void lock();
  void unlock();

 private:
  std::mutex mutex_;
  std::condition_variable turned_;
  uint64_t next_ = 0;
  uint64_t serving_ = 0;
};

// What happens to requests is kept here until their owner takes it, so that requests of several
// owners are decoded as one batch.
//
// Threads: all functions may be called from any thread, without the GIL. They wait for the end of a
// step, but Forget does not.
// fork: the child has no worker threads. All functions but Forget throw Unsupported there, and the
// destructor leaves the engine alone.
class EngineDriver final : private EngineObserver {
 public:
  explicit EngineDriver(Engine engine);
  ~EngineDriver() override;
  EngineDriver(const EngineDriver&) = delete;
  EngineDriver& operator=(const EngineDriver&) = delete;

  // Queues all or, where one is refused, none. `keeps_events`: Step hands over tokens and halvings.
  std::vector<RequestId> Submit(std::vector<Request> requests, bool keeps_events);
  // Engine::SubmitSamples, without events.
  std::vector<RequestId> SubmitSamples(std::vector<Request> requests);

  struct StepResult {
    bool has_finished = false;     // All of the requests.
    std::vector<RunEvent> events;  // Of the requests, since the last call; in their order.
  };
  // One step of the engine, unless all of these requests have finished or events of theirs wait.
  StepResult Step(std::span<const RequestId> ids);
  // Ends those that have not finished with kCancelled.
  void Cancel(std::span<const RequestId> ids);
  // In the order of `ids`, all of which have finished.
  std::vector<Completion> CompletionsOf(std::span<const RequestId> ids);
  // Nobody waits for these any more. They end before the next step.
  void Forget(std::span<const RequestId> ids);

  EngineStats stats();
  KvStoreStats store_stats();
  // Of the engine, fixed: no lock.
  int64_t budget_bytes() const { return budget_bytes_; }
  // Whether the budget of a sequence holds so many tokens, at the lowest widths.
  bool Holds(int64_t num_tokens) const { return engine_->kv_budget().Holds(num_tokens); }

 private:
  struct Inbox {
    bool keeps_events = false;
    std::vector<RunEvent> events;
    std::optional<Completion> completion;
  };

  void OnLogprobs(RequestId id, const TokenLogprobs& logprobs) override;
  void OnToken(RequestId id, int32_t token, const std::string& text) override;
  void OnHalving(RequestId id, const HalvingEvent& event) override;
  void OnFinished(const Completion& completion) override;

  void CheckProcess() const;
  // With the lock.
  void EndForgotten();
  Inbox* InboxWithEvents(RequestId id);
  bool HaveFinished(std::span<const RequestId> ids) const;
  std::vector<RunEvent> TakeEvents(std::span<const RequestId> ids);

  std::unique_ptr<Engine> engine_;
  const pid_t process_;
  const int64_t budget_bytes_;
  TurnLock turns_;  // Guards the engine and inboxes.
  std::unordered_map<RequestId, Inbox> inboxes_;
  std::optional<TokenLogprobs> logprobs_;  // Of the token that is reported next.
  std::mutex forgotten_mutex_;
  std::vector<RequestId> forgotten_;
};

}  // namespace pmkvq::python
