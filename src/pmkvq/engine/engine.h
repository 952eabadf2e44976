// The public API: requests in, tokens out, inside a KV budget.
//
// The engine owns the cache and schedules: up to max_sequences requests are decoded as one batch,
// others wait; prompts are prefilled in fixed chunks counted from token 0, which are computed in
// turns between the tokens of other requests. A seed gives the same text beside any other
// requests; in a pool that all requests share, for the same history of halvings and resumes.
// tests/consumer has a complete 20-line program.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/sinks.h"
#include "pmkvq/engine/kv_history.h"
#include "pmkvq/engine/pool_schedule.h"
#include "pmkvq/engine/token_mask.h"
#include "pmkvq/kernels/sampling/logit_rules.h"
#include "pmkvq/kernels/sampling/sampling.h"
#include "pmkvq/kv/kv_budget.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/kv/spec/kv_options.h"
#include "pmkvq/model/model.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq {

struct EngineOptions {
  int64_t max_sequences = 1;  // Decoded together.
  int64_t max_len = 0;        // Prompt + output of the longest request; 0: the model's maximum.
  int64_t chunk = 512;        // --chunk: prefill tokens per Forward.
  int num_threads = 0;        // 0: DefaultThreads().
  // While requests decode, the most of a step's time that prompts of others may take: tokens then
  // come 1 / (1 - share) times as far apart. 1: a prompt goes first and decoding waits for it,
  // which suits runs where nobody waits for single tokens. In (0, 1].
  double prefill_share = 0.25;
  PoolSchedule pool;
};

// The cache of an engine: a store without sequences, and the budget of one sequence.
struct EngineCache {
  std::unique_ptr<KvStore> store;
  KvBudget budget;
};

// What a cache for these options has to hold. Throws InvalidInput (max_len, max_sequences).
KvRequirements RequirementsOf(const Model& model, const EngineOptions& options);
// The same without the weights, for budgets only: there is no RoPE table in it. `checkpoint` has to
// outlive what is made of it.
KvRequirements RequirementsOf(const Checkpoint& checkpoint, const EngineOptions& options);

// A packed cache (fp16, static-b, pm-kvq) for an engine with these options. All SPECs, published
// methods among them: research/methods/spec_engine.h.
// Throws InvalidInput (options, SPEC, budget, a plan for another model), IoError (memory).
EngineCache MakePackedCache(const Model& model, const KvOptions& kv, const EngineOptions& options);

using RequestId = int64_t;

struct Request {
  std::vector<int32_t> prompt_ids;  // Not empty, all in [0, V).
  SamplingParams sampling;
  uint64_t seed = 0;
  int64_t max_tokens = 0;         // 0: up to max_len, which bounds it in any case.
  std::vector<std::string> stop;  // Stop strings; cut from the text. Need a tokenizer.
  // Stop strings count behind the first occurrence of this text only: "</think>" for a prompt that
  // ends in open thinking. "": everywhere.
  std::string stop_after;
  std::vector<int32_t> stop_ids;  // End the request as end-of-sequence tokens do.
  bool ignore_eos = false;
  int64_t min_tokens = 0;  // End-of-sequence tokens and stop_ids are not drawn before so many.
  LogitRules rules;        // Penalties and biases.
  // What the drawn tokens must look like; null: anything. min_tokens has no effect beside it.
  std::shared_ptr<const OutputGrammar> grammar;
  // Log-probabilities of the drawn token and of this many of the likeliest ones, as the model gives
  // them: before rules, temperature and filters. -1: none. Not with replay_ids.
  int64_t num_logprobs = -1;
  // Log-probabilities of each prompt token but the first, given those before it, and of this many
  // of the likeliest ones in its place; as above. They are read while the prompt is computed, chunk
  // by chunk: 64 rows of logits at most are in memory, and the output has the bits that it has
  // without. Costs a product with the output head per token. A request whose prompt fills max_len
  // is computed, too. -1: none. Not with a session, whose stored tokens are not computed again.
  int64_t num_prompt_logprobs = -1;
  // Tokens that the same request drew in an earlier, interrupted run. They are taken as drawn: the
  // cache and all later tokens have the bits of an uninterrupted run. Costs less than drawing them,
  // where the cache allows it (KvStore::ReserveOneByOne). Tokens behind an end (stop, max_tokens)
  // are dropped. Observers are not told of replayed tokens; output_ids and text begin with them.
  std::vector<int32_t> replay_ids;
  // Keeps the sequence after the request for the next one of the same session, which reuses the
  // longest common prefix of tokens (Truncate) and prefills the rest. -1: none.
  int64_t session = -1;
  // Of a pool: none of its pages goes below so many bits; 0: the pool's floor.
  int kv_min_bits = 0;
  // Of a pool that keeps prompts: only requests with the same salt share them.
  std::string prefix_salt;
  // Of a pool: the Completion::history of an earlier request that was like this one. Its pages are
  // halved, and it is resumed, as that one's were, and for nobody else's need: so it draws the same
  // tokens, beside any other requests. Where it cannot (other settings of the cache or chunk), or
  // the pool has no room for its widths, it ends with kError, which begins with "[kv_replay]".
  std::optional<KvHistory> kv_history;
  // Of a pool with PoolSchedule::priorities, -100 to 100: requests with lower ones keep their bits
  // and their places longer.
  int64_t priority = 0;
};

enum class FinishReason : uint8_t {
  kStop,       // An end-of-sequence token or a stop string.
  kLength,     // max_tokens or max_len.
  kKvBudget,   // The KV budget is spent at the floor width; the pool, by this request alone.
  kCancelled,  // Interrupted.
  kError,      // The model or the cache could not go on with it: Completion::error.
};
// "stop", "length", "kv_budget", "cancelled", "error"
std::string_view NameOf(FinishReason reason);

struct Completion {
  RequestId id = 0;
  std::vector<int32_t> prompt_ids;
  std::vector<int32_t> output_ids;  // End-of-sequence token included, where one was drawn.
  std::string text;  // Without special tokens and stop strings; "" without tokenizer.
  std::vector<TokenLogprobs> logprobs;  // Of each output token, where the request asks for them.
  // Entry i is of prompt token i + 1, where the request asks for them; of a request that ended
  // before its prompt was stored as many as were computed.
  std::vector<TokenLogprobs> prompt_logprobs;
  FinishReason finish_reason = FinishReason::kLength;
  std::string stop_string;  // kStop: the stop string that ended it; "": a token did.
  // kError: one line that names block or output head, position, the value found and a remedy.
  std::string error;
  KvSequenceStats kv;  // At the end of the request.
  KvHistory history;   // What its tokens depend on besides prompt, seed and settings.
  // Wall time from its admission until its prompt is stored, and from there to its end. Both count
  // steps in which the engine worked on the prompts of other requests.
  double prefill_seconds = 0;
  double decode_seconds = 0;
  double longest_pause_us = 0;  // Longest halving work before a single decoded token.
  int64_t num_preemptions = 0;  // How often it gave up its place in a pool, and was resumed.
  // Of the prompt, taken from what a pool keeps of earlier ones instead of being computed.
  int64_t num_cached_tokens = 0;
};

// What happened in one Step; pointers and references are valid during the call. Implementations
// must not call the engine's non-const functions. What they throw ends the Step; see there.
class EngineObserver {
 public:
  virtual ~EngineObserver() = default;
  // Text that became complete (may be empty) with a newly drawn token. What may still become a
  // stop string or the rest of a character is held back; the last token brings the rest, but
  // where a request ends between tokens (kKvBudget, kCancelled, kError) only Completion::text has
  // it.
  virtual void OnToken(RequestId /*id*/, int32_t /*token*/, const std::string& /*text*/) {}
  // Once, when the prompt is stored, for requests that ask for its log-probabilities; as
  // Completion::prompt_logprobs.
  virtual void OnPromptLogprobs(RequestId /*id*/, const std::vector<TokenLogprobs>& /*logprobs*/) {}
  // Right before OnToken, for requests that ask for log-probabilities.
  virtual void OnLogprobs(RequestId /*id*/, const TokenLogprobs& /*logprobs*/) {}
  virtual void OnHalving(RequestId /*id*/, const HalvingEvent& /*event*/) {}
  // It gave up its place in a pool with so many tokens, all of which are computed again when it
  // comes back. Nothing that it has drawn is lost.
  virtual void OnPreempted(RequestId /*id*/, int64_t /*num_tokens*/) {}
  virtual void OnFinished(const Completion& /*completion*/) {}
};

// An observer that calls `on_text` with every text of OnToken that is not empty.
class TextStream : public EngineObserver {
 public:
  explicit TextStream(std::function<void(RequestId, const std::string&)> on_text)
      : on_text_(std::move(on_text)) {}
  void OnToken(RequestId id, int32_t /*token*/, const std::string& text) override {
    if (!text.empty()) on_text_(id, text);
  }

 private:
  std::function<void(RequestId, const std::string&)> on_text_;
};

// The work of an engine since it was made, and its present load. Times are wall times of its
// thread; the part of `step_seconds` that is in no other sum is scheduling.
struct EngineStats {
  int64_t num_running = 0;
  int64_t num_waiting = 0;
  int64_t num_steps = 0;
  int64_t prompt_tokens = 0;    // Stored: those of an ended chunk.
  int64_t decoded_tokens = 0;   // Rows of decoding, replayed ones among them.
  double step_seconds = 0;      // All Steps.
  double reserve_seconds = 0;   // Room for tokens: halving pages, above all.
  double decode_seconds = 0;    // Forwards of decoding requests.
  double prefill_seconds = 0;   // Forwards of prompts.
  double sampling_seconds = 0;  // From logits to tokens and their text.
  double observer_seconds = 0;  // In the observer's functions.
  // Of a pool.
  int64_t num_preemptions = 0;
  int64_t recomputed_tokens = 0;  // That requests held when they gave up their places.
  double expected_kv_bytes = 0;   // Of running requests at the target width (Admission).
};

// What a file of a session holds besides its part of the cache.
struct SavedSession {
  std::vector<int32_t> tokens;
  std::string note;
  KvSequenceStats kv;
};

class Engine {
 public:
  // Engines with different caches, plans among them, may share one model. `tokenizer` may be null.
  // `cache` is made for this model and these options (MakePackedCache, OpenEngine).
  // Throws InvalidInput (options).
  Engine(std::shared_ptr<const Model> model, std::shared_ptr<const Tokenizer> tokenizer,
         EngineCache cache, const EngineOptions& options);
  ~Engine();
  Engine(Engine&&) noexcept;
  Engine& operator=(Engine&&) noexcept;

  // Queues a request. Throws InvalidInput naming the field: empty prompt, token id out of range,
  // prompt longer than the model's max positions or max_len, a budget that cannot hold the prompt
  // even at the floor width, or a pool the prompt and a token (the smallest that works is named).
  RequestId Submit(Request request);

  // Queues a request for each of `seeds`, all else as in `request`: samples of one prompt. Those
  // that wait for their prompt when one of them has stored it share its pages (KvStore::Fork)
  // instead of computing it again. Each has the bits and the statistics that it has alone. Throws
  // what Submit throws, and InvalidInput for a session or replay_ids.
  std::vector<RequestId> SubmitSamples(const Request& request, std::span<const uint64_t> seeds);
  // The same for requests that have the prompt and num_prompt_logprobs in common and may differ in
  // all else, answers to compare, say. All are queued, or none. Throws InvalidInput for other
  // prompts, too.
  std::vector<RequestId> SubmitSamples(std::vector<Request> requests);

  // Admits waiting requests; draws one token of each request whose prompt is stored; goes on with
  // the oldest prompt, for the time that EngineOptions::prefill_share leaves it or, where nothing
  // decodes, for one chunk; and reports to `observer` (may be null). Returns false when no
  // request is unfinished. Scheduling costs O(requests that run), and O(log n) of n waiting ones
  // per admission.
  //
  // Errors: an error of one request ends that request with kError, and closes its session. Other
  // requests keep the bits that they have without it. Such errors are logits that are not finite,
  // and keys and values that the cache's float type cannot hold, also where weights cause them.
  // Where an open CancelScope (base/interrupt.h) is cancelled, the Forward of a prompt's chunk or
  // of replayed tokens ends early, and its requests end with kCancelled. A Forward of one token
  // each is always finished. An exception of the observer leaves Step; the next Step begins with
  // the events that were not reported yet. Where memory runs out, requests that were being computed
  // end with kError in the next Step.
  bool Step(EngineObserver* observer);

  // Submits all, steps to the end or until `cancel` is set (unfinished requests then end with
  // kCancelled and their text so far), and returns completions in the order of `requests`.
  std::vector<Completion> Generate(std::vector<Request> requests, EngineObserver* observer,
                                   const CancelFlag* cancel);

  // SubmitSamples, and the rest as Generate: completions in the order of `seeds`.
  std::vector<Completion> GenerateSamples(const Request& request, std::span<const uint64_t> seeds,
                                          EngineObserver* observer, const CancelFlag* cancel);

  // Ends this request with kCancelled and its text so far, between steps; its pages are free at
  // once. False where no unfinished request has this id. Others go on with the bits that they have
  // without it. Reports to `observer` (may be null).
  bool Cancel(RequestId id, EngineObserver* observer);
  // Ends all unfinished requests with kCancelled.
  void CancelAll(EngineObserver* observer);
  // Closes a kept session's sequence, at once or when its running request ends. Kept sequences
  // take a place of max_sequences only until another request needs it.
  void CloseSession(int64_t session);

  // Writes an idle session to a file, with a note of the caller's: its tokens and its part of the
  // cache as it is. Nothing changes. Memory: as much again as the sequence takes. Throws
  // InvalidInput (no idle session of this number), Unsupported (a cache that cannot be saved: one
  // of a published method), IoError.
  void SaveSession(int64_t session, const std::string& path, const std::string& note = "") const;
  // Takes up a saved session under this number, in place of one that has it. The next request of
  // the session goes on as it would have in the engine that saved it, with the same bits. Throws
  // IoError, and InvalidInput naming the field: a file of another kind, model or cache, a changed
  // file, a running session of this number.
  SavedSession LoadSession(int64_t session, const std::string& path);

  EngineStats stats() const;
  const Model& model() const;
  const KvBudget& kv_budget() const;
  const KvStore& store() const;
  // Sequence of a running request, for LayerStats; empty before it started and after it ended.
  std::optional<SequenceId> SequenceOf(RequestId id) const;
  size_t workspace_bytes() const;  // Activations, outside the KV arena; bounded by the chunk size.

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmkvq
