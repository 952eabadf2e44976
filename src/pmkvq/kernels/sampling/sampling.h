// Choosing the next token from logits. Many rows at once: batch_sampler.h.
#pragma once

#include <cstdint>
#include <optional>

#include "pmkvq/base/random.h"

namespace pmkvq {

struct SamplingParams {
  double temperature = 0.0;  // 0: greedy, the lowest id among equal logits.
  int64_t top_k = 0;         // 0: off.
  double top_p = 1.0;        // Smallest set of most likely tokens with at least this mass.
  double min_p = 0.0;        // Drops tokens below min_p * (largest probability).
};

// What became of a draw.
enum class SamplingOutcome : uint8_t {
  kDrawn,
  kNotFinite,  // A logit is NaN or infinite, as given. Nothing was changed or drawn.
  kNoneLeft,   // Rules and forbidden tokens leave none, or made a logit NaN or +inf.
};

// Draws one token id. Filters act in the order top-k, top-p, min-p, on probabilities after
// temperature, as Hugging Face does it. The token is that of ref::SampleToken for every seed, on
// every instruction set. One draw from `random` per call unless greedy. A token whose logit is -inf
// is never drawn. Returns nothing, and draws nothing from `random`, when one of `logits`
// [vocab_size] is NaN or +inf, or all are -inf. One thread.
[[nodiscard]] std::optional<int32_t> SampleToken(const SamplingParams& params, const float* logits,
                                                 int64_t vocab_size, Random& random);

// Takes as many numbers from `random` as `count` calls of SampleToken.
void SkipSamples(const SamplingParams& params, int64_t count, Random& random);

// Index of the largest value, the lowest on a tie.
int32_t ArgMax(const float* values, int64_t count);

namespace ref {

// The definition: weights exp((logit - max) / temperature) by std::exp in double of all tokens,
// added up in the order of ids or, behind a sort, in that order.
[[nodiscard]] std::optional<int32_t> SampleToken(const SamplingParams& params, const float* logits,
                                                 int64_t vocab_size, Random& random);

// The same for logits without NaN whose largest, `max`, is finite, a temperature above 0, and a
// random number in [0, 1).
int32_t DrawToken(const SamplingParams& params, const float* logits, int64_t vocab_size, float max,
                  double uniform);

}  // namespace ref
}  // namespace pmkvq
