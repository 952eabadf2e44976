// PyramidKV (arXiv 2406.02069; Zefan-Cai/KVCache-Factory): SnapKV's choice with more tokens in
// lower blocks and fewer in higher ones, the mean staying `capacity`.
//
// With C = capacity - window: the lowest block keeps M = 2 C - C / beta tokens beside the window
// and each next one (M - C / beta) / (L - 1) less (whole numbers, rounded down). Where a prompt has
// fewer than M tokens before the window, M is their number and the highest block keeps 2 C - M; a
// prompt of fewer than 2 C tokens is cut to `capacity` in all blocks.
#include <algorithm>

#include "pmkvq/research/methods/prompt_eviction.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

class PyramidKv final : public PromptEviction {
 public:
  PyramidKv(const MethodSpec& spec, const MethodContext& context)
      : PromptEviction(spec, context), beta_(spec.Integer("beta", 20)) {}

 protected:
  int64_t Capacity(int64_t layer, int64_t num_tokens) const override {
    const int64_t window = score().window;
    const int64_t mean = capacity() - window;
    if (num_tokens > 0 && num_tokens < 2 * mean) return capacity();
    int64_t least = mean / beta_;
    int64_t most = 2 * mean - least;
    if (num_tokens > 0 && most >= num_tokens - window) {
      most = num_tokens - window;
      least = 2 * mean - most;
    }
    const int64_t num_steps = std::max<int64_t>(1, context().geometry.num_layers - 1);
    const int64_t step = std::max<int64_t>(0, (most - least) / num_steps);
    return window + most - layer * step;
  }

 private:
  int64_t beta_;
};

}  // namespace

SimulatedMethod PyramidKvMethod() {
  SpecKeys keys = PromptEviction::Keys();
  keys.push_back(IntegerKey("beta", 1, 1000, "20", "the highest block keeps about 1 / beta"));
  return {"pyramidkv", "as snapkv, with more tokens in lower blocks", std::move(keys),
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<PyramidKv>(spec, context);
          }};
}

}  // namespace pmkvq
