#include "pmkvq/kv/simulated/cache_method.h"

#include "pmkvq/base/check.h"

namespace pmkvq {

void SimulatedBlock::SetLogWeights(int64_t token, int64_t head, float log_numerator,
                                   float log_denominator) {
  PMKVQ_DCHECK(token >= 0 && token < num_tokens_ && head >= 0 && head < num_kv_heads_);
  Weights& weights = weights_[static_cast<size_t>(head)];
  weights.numerators.resize(static_cast<size_t>(num_tokens_), 0.0f);
  weights.denominators.resize(static_cast<size_t>(num_tokens_), 0.0f);
  const bool was_kept = IsKept(token, head);
  weights.numerators[static_cast<size_t>(token)] = log_numerator;
  weights.denominators[static_cast<size_t>(token)] = log_denominator;
  weights.num_evicted += static_cast<int64_t>(was_kept) - static_cast<int64_t>(IsKept(token, head));
}

int64_t SimulatedBlock::NumKept() const {
  int64_t count = 0;
  for (int64_t head = 0; head < num_kv_heads_; ++head) count += NumKept(head);
  return count;
}

void SimulatedBlock::Resize(int64_t num_tokens, size_t float_bytes) {
  const auto num_pages = static_cast<size_t>((num_tokens + kPageTokens - 1) / kPageTokens);
  const auto page_values = static_cast<size_t>(num_kv_heads_ * kPageTokens * head_dim_);
  const auto resize = [&](auto& pages, size_t page_size) {
    pages.resize(num_pages);
    for (auto page = pages.rbegin(); page != pages.rend() && page->empty(); ++page) {
      page->resize(page_size);
    }
  };
  resize(keys_, page_values);
  resize(values_, page_values);
  resize(attended_keys_, page_values * float_bytes);
  resize(attended_values_, page_values * float_bytes);
  changed_keys_.resize(num_pages);
  changed_values_.resize(num_pages);
  for (int64_t head = 0; head < num_kv_heads_; ++head) {
    Weights& weights = weights_[static_cast<size_t>(head)];
    if (weights.numerators.empty()) continue;
    for (int64_t token = num_tokens; token < num_tokens_; ++token) {
      if (!IsKept(token, head)) --weights.num_evicted;
    }
    weights.numerators.resize(static_cast<size_t>(num_tokens), 0.0f);
    weights.denominators.resize(static_cast<size_t>(num_tokens), 0.0f);
  }
  num_tokens_ = num_tokens;
}

}  // namespace pmkvq
