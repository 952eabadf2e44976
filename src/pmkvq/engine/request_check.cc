#include "pmkvq/engine/request_check.h"

#include <fmt/format.h>

#include <cmath>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

template <class T>
void CheckField(bool valid, const std::string& field, const T& found, const char* expected) {
  if (!valid) throw InvalidInput(field, fmt::format("found {}, expected {}", found, expected));
}

void CheckSampling(const SamplingParams& params) {
  CheckField(std::isfinite(params.temperature) && params.temperature >= 0, "temperature",
             params.temperature, "a number >= 0");
  CheckField(params.top_k >= 0, "top_k", params.top_k, "a number >= 0 (0: off)");
  CheckField(params.top_p > 0 && params.top_p <= 1, "top_p", params.top_p, "a number in (0, 1]");
  CheckField(params.min_p >= 0 && params.min_p <= 1, "min_p", params.min_p, "a number in [0, 1]");
}

constexpr int64_t kMostLogprobs = 100;

void CheckLogitRules(const LogitRules& rules, int64_t vocab_size) {
  CheckField(std::isfinite(rules.repetition_penalty) && rules.repetition_penalty > 0,
             "repetition_penalty", rules.repetition_penalty, "a number > 0 (1: off)");
  CheckField(std::isfinite(rules.frequency_penalty), "frequency_penalty", rules.frequency_penalty,
             "a number (0: off)");
  CheckField(std::isfinite(rules.presence_penalty), "presence_penalty", rules.presence_penalty,
             "a number (0: off)");
  for (const auto& [token, bias] : rules.bias) {
    CheckTokenIds({token}, vocab_size, "logit_bias");
    CheckField(std::isfinite(bias), "logit_bias", bias, "a finite number");
  }
}

}  // namespace

int64_t CheckEngineOptions(const EngineOptions& options, const ModelConfig& model) {
  const int64_t limit = model.max_position_embeddings;
  CheckField(options.max_sequences >= 1 && options.max_sequences <= 4096, "max_sequences",
             options.max_sequences, "a number in [1, 4096]");
  CheckField(options.chunk >= 1, "--chunk", options.chunk, "a number >= 1");
  CheckField(options.num_threads >= 0, "--threads", options.num_threads,
             "a number >= 0 (0: all processors)");
  CheckField(options.prefill_share > 0 && options.prefill_share <= 1, "prefill_share",
             options.prefill_share, "a number in (0, 1]");
  if (options.max_len < 0 || options.max_len > limit) {
    throw InvalidInput(
        "--max-len",
        fmt::format("found {}, expected at most the model's max_position_embeddings {}",
                    options.max_len, limit));
  }
  return options.max_len == 0 ? limit : options.max_len;
}

void CheckTokenIds(const std::vector<int32_t>& ids, int64_t vocab_size, const std::string& where) {
  for (size_t i = 0; i < ids.size(); ++i) {
    if (ids[i] < 0 || ids[i] >= vocab_size) {
      throw InvalidInput(where, fmt::format("token id {} at index {}, expected one in [0, {})",
                                            ids[i], i, vocab_size));
    }
  }
}

void CheckBudgetHolds(const KvBudget& budget, int64_t num_tokens, const std::string& where) {
  if (budget.Holds(num_tokens)) return;
  const int64_t total = budget.total_bytes();
  const int64_t works = budget.SmallestThatHolds(num_tokens);
  throw InvalidInput(where,
                     fmt::format("{} tokens do not fit the KV budget of {} bytes ({}){}, expected "
                                 "--kv-budget of at least {} bytes ({})",
                                 num_tokens, total, FormatByteSize(total), budget.AtBest(), works,
                                 FormatByteSize(works)));
}

void CheckRequest(const Request& request, const ModelConfig& model, const KvBudget& budget,
                  int64_t max_len, bool has_tokenizer) {
  const auto prompt_len = static_cast<int64_t>(request.prompt_ids.size());
  if (prompt_len == 0) throw InvalidInput("prompt", "empty, expected at least one token");
  CheckTokenIds(request.prompt_ids, model.vocab_size, "prompt");
  CheckTokenIds(request.replay_ids, model.vocab_size, "replay_ids");
  if (prompt_len > max_len) {
    throw InvalidInput(
        "prompt",
        fmt::format("{} tokens, expected at most {} ({})", prompt_len, max_len,
                    max_len == model.max_position_embeddings ? "the model's max_position_embeddings"
                                                             : "--max-len"));
  }
  CheckSampling(request.sampling);
  CheckField(request.max_tokens >= 0, "max_tokens", request.max_tokens,
             "a number >= 0 (0: up to the maximum length)");
  CheckLogitRules(request.rules, model.vocab_size);
  CheckTokenIds(request.stop_ids, model.vocab_size, "stop_ids");
  CheckField(request.min_tokens >= 0, "min_tokens", request.min_tokens, "a number >= 0");
  if (request.max_tokens > 0 && request.min_tokens > request.max_tokens) {
    throw InvalidInput("min_tokens", fmt::format("found {}, expected at most max_tokens {}",
                                                 request.min_tokens, request.max_tokens));
  }
  CheckField(request.num_logprobs >= -1 && request.num_logprobs <= kMostLogprobs, "num_logprobs",
             request.num_logprobs, "a number in [-1, 100] (-1: none)");
  if (request.num_logprobs >= 0 && !request.replay_ids.empty()) {
    throw InvalidInput("num_logprobs",
                       "found replay_ids beside it, whose log-probabilities are not "
                       "known; expected one of them");
  }
  CheckField(request.num_prompt_logprobs >= -1 && request.num_prompt_logprobs <= kMostLogprobs,
             "num_prompt_logprobs", request.num_prompt_logprobs,
             "a number in [-1, 100] (-1: none)");
  if (request.num_prompt_logprobs >= 0 && request.session >= 0) {
    throw InvalidInput("num_prompt_logprobs",
                       "found a session beside it, whose stored tokens are not computed again; "
                       "expected one of them");
  }
  for (const std::string& stop : request.stop) {
    if (stop.empty()) throw InvalidInput("stop", "found an empty string, expected text");
    if (!has_tokenizer) {
      throw InvalidInput("stop",
                         fmt::format("found '{}' but there is no tokenizer, expected none", stop));
    }
  }
  if (!budget.has_pool()) CheckBudgetHolds(budget, prompt_len, "prompt");  // PoolScheduler::Check.
}

}  // namespace pmkvq
