// Sink and sliding window (StreamingLLM, arXiv 2309.17453): the first tokens and the newest ones
// are kept, everything between them is evicted. At full precision.
//
// Keys keep their positions; the authors count positions within the cache instead, which matters
// beyond the positions that the model was trained for.
#include <algorithm>

#include "pmkvq/research/methods/eviction.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

class Window final : public CacheMethod {
 public:
  Window(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    sink_ = spec.Integer("sink", 4);
    recent_ = spec.Integer("recent", 1024);
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.token_weights = true;
    return needs;
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const int64_t end = block.num_tokens() - recent_;
    for (int64_t token = std::max(sink_, tokens.first - recent_); token < end; ++token) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) block.Evict(token, head);
    }
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return 2 * context_.FloatBytes(std::min(num_tokens, sink_ + recent_));
  }
  ByteGrowth Growth(int64_t) const override { return {}; }

 private:
  MethodContext context_;
  int64_t sink_ = 0;
  int64_t recent_ = 0;
};

}  // namespace

SimulatedMethod WindowMethod() {
  return {"window",
          "evicts all but the first and the newest tokens",
          {IntegerKey("sink", 0, 4096, "4", "first tokens, which are kept"),
           IntegerKey("recent", 1, 1 << 20, "1024", "newest tokens, which are kept")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Window>(spec, context);
          }};
}

}  // namespace pmkvq
