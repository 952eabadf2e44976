#include "pmkvq/kernels/sampling/logit_rules.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/base/check.h"

namespace pmkvq {

void ApplyLogitRules(const LogitRules& rules, const TokenCounts& counts, float* logits) {
  if (rules.has_penalties()) {
    for (const auto& [token, count] : counts) {
      double logit = static_cast<double>(logits[token]);
      logit = logit > 0 ? logit / rules.repetition_penalty : logit * rules.repetition_penalty;
      logit -= rules.frequency_penalty * static_cast<double>(count);
      if (count > 0) logit -= rules.presence_penalty;
      logits[token] = static_cast<float>(logit);
    }
  }
  for (const auto& [token, bias] : rules.bias) logits[token] += bias;
}

TokenLogprobs LogprobsOf(const float* logits, int64_t vocab_size, int32_t drawn, int64_t num_top) {
  PMKVQ_CHECK(drawn >= 0 && drawn < vocab_size && num_top >= 0);
  const float max = *std::max_element(logits, logits + vocab_size);
  double sum = 0;
  for (int64_t i = 0; i < vocab_size; ++i) {
    sum += std::exp(static_cast<double>(logits[i]) - static_cast<double>(max));
  }
  const double log_sum = static_cast<double>(max) + std::log(sum);
  const auto logprob = [&](int32_t token) {
    return TokenLogprob{token, static_cast<double>(logits[token]) - log_sum};
  };
  TokenLogprobs result;
  result.drawn = logprob(drawn);
  std::vector<int32_t> order(static_cast<size_t>(num_top > 0 ? vocab_size : 0));
  std::iota(order.begin(), order.end(), 0);
  const auto end = order.begin() + std::min(num_top, vocab_size);
  if (num_top > 0) {
    std::partial_sort(order.begin(), end, order.end(), [&](int32_t a, int32_t b) {
      return logits[a] != logits[b] ? logits[a] > logits[b] : a < b;
    });
    for (auto token = order.begin(); token != end; ++token) result.top.push_back(logprob(*token));
  }
  return result;
}

}  // namespace pmkvq
