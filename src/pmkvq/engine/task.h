// A request while the engine works on it.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/engine/engine.h"
#include "pmkvq/engine/output_text.h"
#include "pmkvq/engine/prompt_logprobs.h"

namespace pmkvq {

struct Task;

// Requests with one prompt.
struct SampleGroup {
  Task* leader = nullptr;  // The running one that computes the prompt for the others; null: none.
};

// One request from Submit to its end.
struct Task {
  Task(RequestId request_id, Request r, const std::shared_ptr<const Tokenizer>& tokenizer)
      : id(request_id),
        request(std::move(r)),
        tokens(request.prompt_ids),
        random(request.seed),
        text(tokenizer, request.stop, request.prompt_ids, request.stop_after),
        num_prefilled(prompt_len()) {
    if (request.rules.has_penalties()) {
      for (const int32_t token : tokens) counts.emplace(token, 0);
    }
    if (request.grammar != nullptr) mask = request.grammar->Start();
  }

  int64_t prompt_len() const { return static_cast<int64_t>(request.prompt_ids.size()); }
  // Of the tokens, those that lie before the newest one and are not stored yet, `stored` being the
  // length of the sequence: 0 but for prompts and replayed tokens.
  int64_t num_waiting(int64_t stored) const {
    return static_cast<int64_t>(tokens.size()) - 1 - stored;
  }
  int64_t num_drawn() const { return static_cast<int64_t>(tokens.size()) - prompt_len(); }

  RequestId id;
  Request request;
  std::vector<int32_t> tokens;  // Prompt, then drawn tokens.
  Random random;
  OutputText text;
  std::vector<int32_t> end_ids;  // Tokens that end it.
  int64_t max_drawn = 0;
  // The first tokens, which are computed as a prompt's chunks: the prompt; of a request that has
  // given up its place all that it had by then.
  int64_t num_prefilled;
  int64_t num_preemptions = 0;
  KvHistory history;
  size_t replay_at = 0;           // Of request.kv_history: where what it follows now begins.
  int64_t num_cached = 0;         // Tokens of the prompt that it did not have to compute.
  bool prompt_is_told = false;    // Its log-probabilities, to the observer.
  std::optional<SequenceId> seq;  // From its first prefill chunk to its end.
  std::optional<FinishReason> finish;
  std::optional<FinishReason> finish_after_replay;  // The last replayed token ends it.
  std::string error;                                // With kError.
  TokenCounts counts;                               // What penalties speak of; else empty.
  std::unique_ptr<TokenMask> mask;                  // Null without a grammar.
  std::vector<TokenLogprobs> logprobs;
  std::unique_ptr<PromptLogprobs> prompt_logprobs;  // Null where none are asked for.
  std::shared_ptr<SampleGroup> group;               // Null for a request by itself.
  double prefill_seconds = 0;
  double decode_seconds = 0;
  double longest_pause_us = 0;

  // Of the step under way.
  double* clock = nullptr;  // Which of the two the step's time belongs to; null: neither.
  double reserve_us = 0;    // Of Reserve, where it halved pages.
  double pause_us = 0;      // Halving work before its token.
};

}  // namespace pmkvq
