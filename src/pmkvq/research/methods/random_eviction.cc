// Random eviction: the null model that every evicting method has to beat (as in arXiv 2609.03430,
// which pins the prompt and evicts at random, per KV head).
//
// After every `every` tokens each KV head keeps `capacity` tokens: the prompt, the newest `recent`,
// and a random choice of the others. A prompt that leaves no room beside the newest tokens is not
// pinned: of it `sink` tokens are sure to stay.
#include <algorithm>

#include "pmkvq/base/random.h"
#include "pmkvq/research/methods/eviction.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

struct RandomState : MethodState {
  void Truncate(int64_t num_tokens) override {
    if (num_tokens < prompt_end) prompt_end = 0;
  }
  int64_t prompt_end = 0;  // Tokens of the prompt; 0: it has not ended.
};

class RandomEviction final : public CacheMethod {
 public:
  RandomEviction(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    eviction_ = {spec.Integer("capacity", 1024), spec.Integer("every", 128)};
    recent_ = spec.Integer("recent", 8);
    sink_ = spec.Integer("sink", 4);
    seed_ = static_cast<uint64_t>(spec.Integer("seed", 0));
    CheckCapacity(spec, eviction_.capacity, sink_ + recent_, "sink and recent");
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.token_weights = true;
    return needs;
  }

  std::unique_ptr<MethodState> NewState(int64_t) const override {
    return std::make_unique<RandomState>();
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    auto& state = static_cast<RandomState&>(*opaque);
    eviction_.ForEachPlace(tokens.first, tokens.count, [&](int64_t end) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        Evict(layer, head, end, NumPinned(state), block);
      }
    });
    if (tokens.ends_prompt) state.prompt_end = block.num_tokens();
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return 2 * context_.FloatBytes(eviction_.NumKept(num_tokens));
  }
  ByteGrowth Growth(int64_t) const override { return eviction_.Growth(); }

 private:
  int64_t NumPinned(const RandomState& state) const {
    const bool fits = state.prompt_end > 0 && state.prompt_end < eviction_.capacity - recent_;
    return fits ? std::max(state.prompt_end, sink_) : sink_;
  }

  void Evict(int64_t layer, int64_t head, int64_t end, int64_t num_pinned,
             SimulatedBlock& block) const {
    const std::vector<int64_t> kept = KeptTokens(block, head, end);
    int64_t surplus = std::ssize(kept) - eviction_.capacity;
    if (surplus <= 0) return;
    std::vector<int64_t> others;
    for (const int64_t token : kept) {
      if (token >= num_pinned && token < end - recent_) others.push_back(token);
    }
    const auto stream = static_cast<uint64_t>(
        (end * context_.geometry.num_layers + layer) * context_.geometry.num_kv_heads + head);
    Random random(StreamSeed(seed_, stream));
    for (; surplus > 0; --surplus) {
      const auto drawn = static_cast<size_t>(random.Below(others.size()));
      block.Evict(others[drawn], head);
      others[drawn] = others.back();
      others.pop_back();
    }
  }

  MethodContext context_;
  PeriodicEviction eviction_;
  int64_t recent_ = 0;
  int64_t sink_ = 0;
  uint64_t seed_ = 0;
};

}  // namespace

SimulatedMethod RandomEvictionMethod() {
  return {"random",
          "evicts at random, for comparison with other evicting methods",
          {CapacityKey("1024"), EveryKey("128", "tokens after which the surplus is evicted"),
           IntegerKey("recent", 0, 4096, "8", "newest tokens, which are kept"),
           IntegerKey("sink", 0, 4096, "4", "first tokens, which are kept where the prompt is not"),
           IntegerKey("seed", 0, 1 << 30, "0", "of the draws")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<RandomEviction>(spec, context);
          }};
}

}  // namespace pmkvq
