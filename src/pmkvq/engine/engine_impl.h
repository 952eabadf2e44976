// The engine's state and steps. Private to this module.
//
// engine.cc: requests in and out, the order of a step. engine_forward.cc: chunks, tokens, drawing.
// engine_pool.cc: requests that share a pool.
#pragma once

#include <chrono>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pmkvq/base/aligned.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/engine/engine.h"
#include "pmkvq/engine/events.h"
#include "pmkvq/engine/pool_scheduler.h"
#include "pmkvq/engine/prefill_turns.h"
#include "pmkvq/engine/request_queue.h"
#include "pmkvq/engine/sequences.h"
#include "pmkvq/engine/task.h"
#include "pmkvq/kernels/sampling/batch_sampler.h"

namespace pmkvq {

// Adds the time of its life to a sum.
class AddTime {
 public:
  explicit AddTime(double* seconds) : seconds_(seconds) {}
  ~AddTime() {
    *seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
  AddTime(const AddTime&) = delete;
  AddTime& operator=(const AddTime&) = delete;

 private:
  double* seconds_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

struct Engine::Impl {
  using Clock = std::chrono::steady_clock;
  static double SecondsSince(Clock::time_point start) {
    return std::chrono::duration<double>(Clock::now() - start).count();
  }

  Impl(std::shared_ptr<const Model> m, std::shared_ptr<const Tokenizer> t, EngineCache cache,
       const EngineOptions& o);

  void Check(const Request& request) const;
  RequestId Submit(Request request, std::shared_ptr<SampleGroup> group = nullptr);
  bool Step(EngineObserver* observer);
  bool Cancel(RequestId id, EngineObserver* observer);
  void Admit();
  bool IsPrefilling(const Task& task) const {
    return store->NumTokens(*task.seq) < task.num_prefilled;
  }
  // Whether this request computes its prompt, which another one of its samples may do for it.
  static bool ComputesPrompt(Task& task);
  // The leader's prompt is stored, and gave `logits`: waiting samples get forks of its sequence.
  // Draws the first token of all of them.
  void ShareOutPrompt(Task& leader, float* logits);
  // Fills prefilling and decoding, and starts the clocks of the step.
  void SortRunning();

  // The whole next chunk of the oldest prompt.
  void Prefill(const UncancelledScope& step);
  // As much of the prompts, the oldest first, as this time allows; nothing in steps that make up
  // for longer turns before them.
  void PrefillBesideDecoding(double seconds, const UncancelledScope& step);
  // Starts the next chunk. False: no prompt is left that has room.
  bool BeginPrefillTurns();
  // Computes a part of the chunk under way. True: the chunk has ended and its request is not over.
  bool TakePrefillTurn(Clock::duration turn, const UncancelledScope& step);
  // Makes room for the next chunk of this prompt. False: the request has ended.
  bool ReserveChunk(Task& task, ForwardChunk* chunk);
  void FinishChunk(Task& task, const ForwardChunk& chunk,
                   const std::vector<ForwardFailure>& chunk_failures, float* logits);
  // Queues the log-probabilities of a prompt that is stored, where they are asked for.
  void TellPrompt(Task& task);
  // One token, or a chunk of replayed ones, of each request in `decoding`.
  void Decode(EngineObserver* observer, const UncancelledScope& step);
  // The Forward of `chunks`, into `failures`.
  void RunDecode();
  // Makes room for so many tokens. False: the request has ended, or given up its place.
  bool Reserve(Task& task, int64_t num_tokens, double* pause_us);

  // engine_pool.cc: requests that share a pool.
  // Makes room for a token of each decoding request that draws. Where there is none, requests give
  // up their places, or the last one ends.
  void ReserveDecoding(const UncancelledScope& step);
  bool DrawsNext(const Task& task) const;
  // There is no room for tokens of this request with all pages at their floors: another one gives
  // up its place, and the reservation is to be tried again. False: this one has ended, or has given
  // up its own place.
  bool MakeRoomFor(Task& task);
  // Starts the sequence, which is empty, with what the pool keeps of its tokens. The last one is
  // computed in any case, whose logits are needed.
  void TakePrefix(Task& task);
  // Lets the pool keep what is stored of the tokens that were computed as a prompt.
  void KeepPrefix(const Task& task);
  // Where a request that follows a history gave up its place then, it drops its pages and computes
  // its tokens again.
  void ResumeAsInHistory(Task& task);
  // Of its sequence, which is empty.
  void StartSequence(Task& task);
  // Gives up the request's place: its pages are free, and it waits at its old place in the queue.
  void Preempt(Task& task);
  // Runs `work`, which may take seconds in a large model and can be cancelled: returns false where
  // an open CancelScope around `step` is cancelled.
  template <class Work>
  static bool RunUnlessCancelled(const UncancelledScope& step, const Work& work) {
    try {
      const CancellableAgainScope many_tokens(step);
      work();
      return true;
    } catch (const Cancelled&) {
      return false;
    }
  }
  void Fail(Task& task, const KvFailure& failure);
  // Queues the events and adds their times to the requests' `pause_us`.
  void TakeHalvings();
  // Draws a token for each of these requests, but those that have ended, from its row of `logits`
  // [tasks, V], which the request's rules may change.
  void Draw(std::span<Task* const> tasks, float* logits);
  // Adds what was drawn from the row `logits` [V], or ends the request.
  void TakeDrawn(Task& task, const float* logits, SampledRow& drawn);
  // Adds a drawn token. Returns the text that it completes; `end`: how it ends the request, if so.
  std::string Push(Task& task, int32_t token, std::optional<FinishReason>& end);
  void PushReplayed(Task& task);
  // Adds a chunk of replayed tokens, or ends the task where the budget does not hold one.
  bool AddReplayed(Task& task, int64_t stored);
  void AskForDraws();
  void TakeDraws();
  // Ends a request that is in neither queue any more.
  void Finish(Task& task, FinishReason reason);
  void RemoveFinished();
  // Hands the observer the events. One that it throws at is not repeated.
  void Report(EngineObserver* observer);

  std::shared_ptr<const Model> model;
  std::shared_ptr<const Tokenizer> tokenizer;
  EngineOptions options;
  int64_t max_len;
  int num_threads;
  KvBudget budget;
  std::unique_ptr<KvStore> store;
  SequenceKeeper sequences;
  std::unique_ptr<PoolScheduler> pool;  // Null where each request has a budget.
  ForwardWorkspace workspace;
  PrefillTurns prefill_turns;
  double prefill_credit = 0;  // Seconds that prompts may take in this step; below 0: took too many.
  int steps_without_prefill = 0;
  RequestQueue waiting;
  std::vector<std::unique_ptr<Task>> over;     // Ended before they began: not reported yet.
  std::vector<std::unique_ptr<Task>> running;  // In order of admission.
  std::vector<Task*> by_seq;                   // Running requests by sequence; null: none.
  EventQueue events;                           // Not reported yet.
  RequestId next_id = 1;
  EngineStats stats;

  // Of the step under way, kept for their memory.
  std::vector<Task*> prefilling;
  std::vector<Task*> decoding;
  std::vector<BatchChunk> pool_chunks;
  std::vector<ForwardChunk> chunks;
  std::vector<ForwardDraw> asked_draws;  // Of chunks, where the model draws.
  std::vector<Task*> chunk_tasks;        // Of each chunk.
  std::vector<Task*> drawing;            // Of each row of logits.
  std::vector<ForwardFailure> failures;
  BatchSampler sampler;
  AlignedVector<float> group_logits;  // Of samples that draw their first token.
  std::vector<SamplingRow> sampling_rows;
  std::vector<Task*> sampling_tasks;  // Of each row.
};

}  // namespace pmkvq
