// The thread that drives the engine. Other threads hand it commands and get events back; nothing
// else of the server touches the engine.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "pmkvq/engine/engine.h"
#include "pmkvq/server/api/api_error.h"
#include "pmkvq/server/fair_queue.h"

namespace pmkvq::server {

using GenerationId = uint64_t;

// Several engine requests that one HTTP request asks for: n samples of each prompt.
struct Generation {
  std::vector<Request> prompts;  // One per prompt, without seed.
  std::vector<uint64_t> seeds;   // Of the samples of each prompt.
  // Of each choice, where they follow earlier ones (Request::kv_history); else empty.
  std::vector<KvHistory> histories;
  double most_queue_seconds = 0;  // Refused when none of it has begun by then; 0: no limit.
  std::string client;             // Clients take turns where requests wait.

  int64_t num_choices() const { return std::ssize(prompts) * std::ssize(seeds); }
};

struct GenerationEvent {
  enum class Kind : uint8_t {
    kBegun,     // time: it has a place in the engine, after it has waited. Once.
    kPrompt,    // prompt_logprobs, of a request that asks for them
    kToken,     // text, token, logprobs
    kFinished,  // completion
    kRefused,   // error: nothing of the generation was computed.
  };
  Kind kind = Kind::kToken;
  GenerationId generation = 0;
  size_t choice = 0;  // prompt * seeds + seed
  std::chrono::steady_clock::time_point time;
  int32_t token = 0;
  std::string text;
  std::optional<TokenLogprobs> logprobs;
  std::vector<TokenLogprobs> prompt_logprobs;  // Entry i is of prompt token i + 1.
  std::unique_ptr<Completion> completion;
  ApiError error;
};

// The cache of a running request, for people to look at.
struct SequenceSnapshot {
  GenerationId generation = 0;
  size_t choice = 0;
  int64_t num_tokens = 0;
  int64_t bytes = 0;
  int64_t budget_bytes = 0;
  PagesPerWidth pages{};
  // Mean bits of its pages over blocks, keys and values: by age, the oldest first; neighbours are
  // joined where there are more than kMostAges.
  std::vector<float> bits_by_age;
};
inline constexpr int64_t kMostAges = 64;

// The state of the engine as the last step left it.
struct EngineSnapshot {
  EngineStats stats;
  int64_t kv_bytes = 0;  // Of running requests.
  PagesPerWidth kv_pages{};
  KvPoolStats pool;
  int64_t num_halvings = 0;  // Pages that were brought to a lower width, since the start.
  std::vector<SequenceSnapshot> sequences;
};

class EngineThread {
 public:
  // Called on the engine's thread, once per step that has events.
  using Deliver = std::function<void(std::vector<GenerationEvent>)>;
  // Called on the engine's thread when the engine has thrown; no event comes any more.
  using Failed = std::function<void(std::string)>;

  // `max_sequences`: the engine's. What it has no place for waits here.
  EngineThread(Engine engine, int64_t max_sequences, Deliver deliver, Failed failed);
  ~EngineThread();  // Ends the thread after its step; unfinished generations get no events.
  EngineThread(const EngineThread&) = delete;
  EngineThread& operator=(const EngineThread&) = delete;

  // From any thread.
  GenerationId Submit(Generation generation);
  // Its choices end; their events still come. Unknown and ended ones: nothing happens.
  void Cancel(GenerationId generation);
  // At most 0.1 s or a step old; without requests whose end was delivered.
  EngineSnapshot snapshot() const;
  // Seconds that the step under way has taken so far; 0 between steps.
  double SecondsInStep() const;

 private:
  class Observer;
  struct Command {
    GenerationId id = 0;
    std::optional<Generation> generation;  // Empty: cancel.
  };
  struct Place {  // Of an engine request.
    GenerationId generation = 0;
    size_t choice = 0;
    bool was_preempted = false;
    bool has_begun = false;  // kBegun is told.
  };

  void Run();
  bool TakeCommands(std::vector<Command>* commands);
  void Carry(Command command, Observer& observer);
  int64_t CostOf(const Generation& generation) const;
  // Takes it out of those that wait; nothing where it is not one of them.
  std::optional<Generation> TakeWaiting(GenerationId id);
  void HandOver();
  void Begin(GenerationId id, Generation generation);
  void TellBegun(Place& place);
  void TellThoseBegun();
  void Refuse(GenerationId generation, ApiError error);
  void RefuseOverdue();
  void Publish();

  Engine engine_;
  int64_t max_sequences_;
  bool is_pool_ = false;
  Deliver deliver_;
  Failed failed_;
  std::vector<GenerationEvent> events_;                     // Of this step.
  std::unordered_map<RequestId, Place> places_;             // Unfinished ones.
  std::map<GenerationId, std::vector<RequestId>> running_;  // Unfinished requests of each.
  std::vector<RequestId> not_begun_;                        // As far as is known; few.
  // Generations that the engine has not seen yet, in turns of clients.
  FairQueue queue_;
  std::map<GenerationId, Generation> waiting_;
  int64_t num_waiting_choices_ = 0;
  double mean_output_ = 512;  // Tokens of an answer, of the last ones.
  std::multimap<std::chrono::steady_clock::time_point, GenerationId> queue_ends_;
  int64_t num_halvings_ = 0;
  bool is_idle_ = true;

  mutable std::mutex mutex_;
  std::condition_variable wake_;
  std::vector<Command> commands_;
  bool ends_ = false;
  GenerationId next_id_ = 1;
  EngineSnapshot snapshot_;
  std::atomic<int64_t> step_began_ns_{0};  // steady_clock; 0 between steps.
  std::thread thread_;
};

}  // namespace pmkvq::server
