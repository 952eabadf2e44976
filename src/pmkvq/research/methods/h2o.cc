// H2O, heavy-hitter oracle (arXiv 2306.14048; FMInference/H2O): each KV head keeps the newest
// tokens and those with the largest sums of attention weights since they came, half of `capacity`
// each.
//
// After each append the surplus goes, the smallest sums first, for good.
// Heads that share a KV head add up. The authors run it token by token; the rows of a prompt's
// chunk are summed together here and the choice is made once behind them.
#include <algorithm>

#include "pmkvq/research/methods/eviction.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

struct H2oState : MethodState {
  void Truncate(int64_t num_tokens) override {
    for (auto& head : sums) head.resize(static_cast<size_t>(num_tokens));
  }
  std::vector<std::vector<double>> sums;  // By KV head and token.
};

class H2o final : public CacheMethod {
 public:
  H2o(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    capacity_ = spec.Integer("capacity", 1024);
    num_recent_ = static_cast<int64_t>(spec.Real("recent", 0.5) * static_cast<double>(capacity_));
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.attention = true;
    needs.token_weights = true;
    return needs;
  }

  std::unique_ptr<MethodState> NewState(int64_t) const override {
    auto state = std::make_unique<H2oState>();
    state->sums.resize(static_cast<size_t>(context_.geometry.num_kv_heads));
    return state;
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    auto& state = static_cast<H2oState&>(*opaque);
    const int64_t num_tokens = block.num_tokens();
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      std::vector<double>& sums = state.sums[static_cast<size_t>(head)];
      sums.resize(static_cast<size_t>(num_tokens), 0.0);
      const double* const added = tokens.attention_sums + head * num_tokens;
      for (size_t token = 0; token < sums.size(); ++token) sums[token] += added[token];
      Evict(head, sums, block);
    }
  }

  // Values, and a float sum for each token and KV head that is kept.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    const int64_t kept = std::min(num_tokens, capacity_);
    return 2 * context_.FloatBytes(kept) + 4 * kept * context_.geometry.num_kv_heads;
  }
  ByteGrowth Growth(int64_t) const override { return {}; }

 private:
  void Evict(int64_t head, const std::vector<double>& sums, SimulatedBlock& block) const {
    if (block.NumKept(head) <= capacity_) return;
    const std::vector<int64_t> old = KeptTokens(block, head, block.num_tokens() - num_recent_);
    std::vector<double> scores;
    for (const int64_t token : old) scores.push_back(sums[static_cast<size_t>(token)]);
    KeepLargest(scores, old, capacity_ - num_recent_, head, block);
  }

  MethodContext context_;
  int64_t capacity_ = 0;
  int64_t num_recent_ = 0;
};

}  // namespace

SimulatedMethod H2oMethod() {
  return {"h2o",
          "keeps the newest tokens and those with most attention so far",
          {CapacityKey("1024"), RealKey("recent", 0, 1, "0.5", "share of the newest tokens")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<H2o>(spec, context);
          }};
}

}  // namespace pmkvq
