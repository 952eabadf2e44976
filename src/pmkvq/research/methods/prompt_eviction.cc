#include "pmkvq/research/methods/prompt_eviction.h"

#include <algorithm>

namespace pmkvq {

PromptEviction::PromptEviction(const MethodSpec& spec, const MethodContext& context)
    : context_(context),
      score_(ReadSnapScore(spec)),
      capacity_(spec.Integer("capacity", 512)),
      every_(spec.Integer("every", 0)) {
  CheckCapacity(spec, capacity_, score_.window, "the window");
}

std::vector<SpecKey> PromptEviction::Keys() {
  std::vector<SpecKey> keys = {
      CapacityKey("512"),
      EveryKey("0", "tokens after which the surplus is evicted; 0: at the end of a prompt alone")};
  for (SpecKey& key : SnapScoreKeys()) keys.push_back(std::move(key));
  return keys;
}

MethodNeeds PromptEviction::needs() const {
  MethodNeeds needs;
  needs.token_weights = true;
  needs.own_bytes = true;
  needs.queries = true;
  return needs;
}

std::unique_ptr<MethodState> PromptEviction::NewState(int64_t) const {
  return std::make_unique<PromptEvictionState>(
      score_.window, context_.geometry.num_heads * context_.geometry.head_dim);
}

void PromptEviction::OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                              MethodState* opaque) const {
  auto& state = static_cast<PromptEvictionState&>(*opaque);
  if (every_ > 0) {
    PeriodOf(layer).ForEachPlace(tokens.first, tokens.count,
                                 [&](int64_t end) { Choose(layer, end, tokens, block, state); });
  } else if (tokens.ends_prompt && !state.has_chosen) {
    state.has_chosen = true;
    Choose(layer, block.num_tokens(), tokens, block, state);
    AfterPrompt(block.num_tokens(), block, state);
  }
  state.queries.Push(tokens, state.row_size);
}

void PromptEviction::Choose(int64_t layer, int64_t end, const AppendedTokens& tokens,
                            SimulatedBlock& block, const PromptEvictionState& state) const {
  const int64_t num_kept = Capacity(layer, every_ > 0 ? 0 : end) - score_.window;
  for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
    const std::vector<int64_t> kept = KeptTokens(block, head, end);
    if (std::ssize(kept) <= num_kept + score_.window) continue;
    const std::vector<double> scores =
        score_.Of(head, kept, end, tokens, state.queries, context_.geometry, block);
    KeepLargest(scores, {kept.data(), scores.size()}, num_kept, head, block);
  }
}

int64_t PromptEviction::Capacity(int64_t, int64_t) const { return capacity_; }

// The queries that wait for the next choice.
int64_t PromptEviction::QueryBytes(int64_t num_tokens) const {
  return every_ > 0 ? RecentQueries::Bytes(context_, std::min(num_tokens, score_.window)) : 0;
}

int64_t PromptEviction::BlockBytes(int64_t layer, int64_t num_tokens) const {
  const int64_t kept = every_ > 0 ? PeriodOf(layer).NumKept(num_tokens) : num_tokens;
  return 2 * context_.FloatBytes(kept) + QueryBytes(num_tokens);
}

ByteGrowth PromptEviction::Growth(int64_t layer) const {
  return every_ > 0 ? PeriodOf(layer).Growth() : ByteGrowth{};
}

int64_t PromptEviction::BytesNow(int64_t, const SimulatedBlock& block, const MethodState*) const {
  return block.NumKept() * HeadTokenBytes(context_) + QueryBytes(block.num_tokens());
}

}  // namespace pmkvq
