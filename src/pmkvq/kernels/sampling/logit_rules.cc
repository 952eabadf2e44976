#include "pmkvq/kernels/sampling/logit_rules.h"

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

}  // namespace pmkvq
