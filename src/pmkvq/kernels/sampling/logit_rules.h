// What a request asks of logits before a token is drawn, and log-probabilities.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pmkvq {

struct LogitRules {
  double repetition_penalty = 1.0;  // > 1: tokens of the prompt and the output get less likely.
  double frequency_penalty = 0.0;   // Per time that a token occurs in the output.
  double presence_penalty = 0.0;    // Once for a token that occurs in the output.
  std::vector<std::pair<int32_t, float>> bias;  // Token id, number added to its logit.

  bool has_penalties() const {
    return repetition_penalty != 1.0 || frequency_penalty != 0.0 || presence_penalty != 0.0;
  }
  bool changes_nothing() const { return !has_penalties() && bias.empty(); }
};

// The tokens that penalties speak of: how often each occurs in the output; 0 for a token that
// occurs in the prompt only.
using TokenCounts = std::unordered_map<int32_t, int64_t>;

// Changes `logits` [V] in place, in this order: a positive logit of a counted token is divided by
// the repetition penalty, a negative one multiplied by it; frequency penalty x count and, for
// counts above 0, the presence penalty are subtracted; biases are added. -inf stays -inf. All ids
// are in [0, V). Cost O(counted tokens + biases).
void ApplyLogitRules(const LogitRules& rules, const TokenCounts& counts, float* logits);

struct TokenLogprob {
  int32_t token = 0;
  double logprob = 0;  // Natural logarithm.
};
// A drawn token and the likeliest ones, with their log-probabilities.
struct TokenLogprobs {
  TokenLogprob drawn;
  std::vector<TokenLogprob> top;  // The likeliest first, of equal ones the lowest id.
};

namespace ref {

// log softmax of `logits` [vocab_size], finite or -inf but for the largest: of `drawn` and of the
// `num_top` likeliest tokens (fewer where the vocabulary is smaller). The definition, whose bits
// batch_sampler.h repeats on every instruction set: exponentials of the distances to the largest
// logit of each block of 256 by ref::BlockExpSums, whose sums are scaled by ref::ExpFixed and added
// in order; blocks whose largest logit is further below that of all than kLowestBlock count as 0.
// The error is below kLogprobError.
TokenLogprobs LogprobsOf(const float* logits, int64_t vocab_size, int32_t drawn, int64_t num_top);
// exp(-44) of 2^24 tokens is less than 2^-39 of the sum.
constexpr double kLowestBlock = -44.0;
constexpr double kLogprobError = 5e-7;

}  // namespace ref
}  // namespace pmkvq
