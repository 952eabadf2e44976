// Methods that choose tokens by SnapKV's score: at the end of a prompt, as published, or after
// every so many tokens (the key every), which is how R-KV's authors run SnapKV on chains of
// thought.
//
// At the end of a prompt: a prompt of more than `capacity` tokens is cut to them; generated tokens
// are never evicted, so the bytes of n tokens are bounded by those of n tokens only.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pmkvq/research/methods/eviction.h"

namespace pmkvq {

struct PromptEvictionState : MethodState {
  PromptEvictionState(int64_t window, int64_t row_values) : queries(window), row_size(row_values) {}
  void Truncate(int64_t num_tokens) override {
    queries.Truncate(num_tokens, row_size);
    if (num_tokens == 0) has_chosen = false;
  }

  RecentQueries queries;
  int64_t row_size;
  bool has_chosen = false;  // At the end of a prompt. Later ones of the conversation stay whole.
};

class PromptEviction : public CacheMethod {
 public:
  // `spec` has the keys of Keys.
  PromptEviction(const MethodSpec& spec, const MethodContext& context);
  static std::vector<SpecKey> Keys();

  MethodNeeds needs() const override;
  std::unique_ptr<MethodState> NewState(int64_t layer) const override;
  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* state) const override;
  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override;
  ByteGrowth Growth(int64_t layer) const override;
  int64_t BytesNow(int64_t layer, const SimulatedBlock& block,
                   const MethodState* state) const override;

 protected:
  // Tokens that a KV head of the block keeps of `num_tokens`, window included; where `num_tokens`
  // is 0, of many.
  virtual int64_t Capacity(int64_t layer, int64_t num_tokens) const;
  // Runs after tokens were evicted at the end of a prompt of `num_tokens` tokens.
  virtual void AfterPrompt(int64_t /*num_tokens*/, SimulatedBlock& /*block*/,
                           MethodState& /*state*/) const {}

  const MethodContext& context() const { return context_; }
  int64_t capacity() const { return capacity_; }
  const SnapScore& score() const { return score_; }

 private:
  void Choose(int64_t layer, int64_t end, const AppendedTokens& tokens, SimulatedBlock& block,
              const PromptEvictionState& state) const;
  PeriodicEviction PeriodOf(int64_t layer) const { return {Capacity(layer, 0), every_}; }
  int64_t QueryBytes(int64_t num_tokens) const;

  MethodContext context_;
  SnapScore score_;
  int64_t capacity_ = 0;
  int64_t every_ = 0;  // 0: at the end of a prompt.
};

}  // namespace pmkvq
