// The rule of CONF-KV, by itself: its paper (arXiv 2605.24786) gives no formula, so each of these
// is this project's choice.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

struct ConfKvRule {
  int64_t min_budget = 256;  // Tokens of a KV head, mean over blocks.
  int64_t max_budget = 1024;
  int64_t sink = 4;     // First tokens, which are kept.
  int64_t window = 64;  // Newest tokens, which are kept at full precision.
  double recency = 0.1;
  int64_t num_layers = 1;

  // 1 - entropy / ln V of the distribution of these logits [V]; 1 where V is 1.
  static double Confidence(std::span<const float> logits);
  // min + (1 - confidence) (max - min)
  double Budget(double confidence) const;
  // floor(budget r), r falling linearly from 1.5 in the first block to 0.5 in the last, mean 1.
  int64_t BlockBudget(double budget, int64_t layer) const;
  // (1 - recency) A / max A + recency (position + 1) / n, of n tokens with attention A.
  std::vector<double> Scores(std::span<const double> attention) const;
};

// Eight bits, symmetric: scale = max |x| / 127 rounded to `type`, code = round_half_even(x / scale)
// within -127 .. 127, value = code scale.
void DamageSymmetric8(DType type, int64_t count, float* x);

}  // namespace pmkvq
