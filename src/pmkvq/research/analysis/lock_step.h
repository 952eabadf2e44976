// Several caches are fed the same tokens in step. At every position each is compared with an
// unquantised one: KL of the next token's distribution, and of the attention weights.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/sinks.h"
#include "pmkvq/model/model.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq {

struct LockStepOptions {
  // Tokens before this position are prefilled and not measured. The first prediction is that of
  // token first + 1, made by token `first`.
  int64_t first = 0;
  int64_t chunk = 1;            // Tokens of a measured Forward; 1 as in decoding.
  int64_t prefill_chunk = 512;  // Of the others.
  // Attention is compared every so many measured positions, from the middle of the first stride
  // on; 0: never. Needs chunk 1.
  int64_t attention_stride = 0;
  int64_t max_len = 0;  // Length that budgets by width are for; 0: that of the tokens.
  int num_threads = 1;
  ProgressSink* progress = nullptr;  // May be null. Only Advance is called, in measured tokens.
  const CancelFlag* cancel = nullptr;
};

struct Prediction {
  double loss = 0;  // Cross entropy of the next token, nats.
  double kl = 0;    // KL(unquantised || this) of the next-token distribution, nats.
  int32_t top = 0;  // Most likely token.
};

struct AttentionSample {
  int64_t position = 0;
  std::vector<double> kl;  // Per block, mean over heads, nats.
  int64_t bytes = 0;       // Of the whole cache after this token.
};

// Measurements of one cache.
struct CacheTrace {
  std::vector<Prediction> predictions;  // By position, from options.first on.
  std::vector<AttentionSample> attention;
  int64_t peak_bytes = 0;
  int64_t budget_bytes = 0;
  int64_t spent_at = -1;  // Position at which the budget had no room left; -1: never.
};

struct LockStepResult {
  std::vector<Prediction> unquantised;  // kl is 0.
  std::vector<CacheTrace> caches;       // In the order of `caches`.
};

// Runs `tokens` (2 or more) through all caches and through fp16 without key scales, of the float
// type of the first cache. A cache whose budget is spent stops there (spent_at); the others go on.
// Throws InvalidInput (an option of a cache, tokens longer than max_len or the model's positions,
// an id out of range, a key or value that a cache's float type cannot hold, logits that are not
// finite), Cancelled.
LockStepResult RunLockStep(const std::shared_ptr<const Model>& model,
                           std::span<const int32_t> tokens, const std::vector<KvOptions>& caches,
                           const LockStepOptions& options);

// A KL below this comes from the rounding of key scales alone: nothing was quantised
// (docs/analysis.md).
inline constexpr double kRoundingKl = 1e-7;

// Means over several texts, each prediction counting once.
struct CacheMeans {
  int64_t num_predictions = 0;
  double loss = 0;
  double kl = 0;
  double fp16_loss = 0;  // Of the same predictions.
};
// Adds up RunLockStep over texts. A text that a budget does not hold: throws InvalidInput.
std::vector<CacheMeans> MeasureMeans(const std::shared_ptr<const Model>& model,
                                     const std::vector<std::vector<int32_t>>& texts,
                                     const std::vector<KvOptions>& caches,
                                     const LockStepOptions& options);

}  // namespace pmkvq
