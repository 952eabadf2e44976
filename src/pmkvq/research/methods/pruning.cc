// Quantised pruning, "More Tokens, Lower Precision" (arXiv 2412.12706; zhzihao/QPruningKV):
// SnapKV's choice at the end of a prompt, and the survivors quantised: keys per channel over groups
// of survivors in order of position, values per token. The window, the survivors that fill no group
// and all generated tokens stay at full precision.
#include <algorithm>

#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/prompt_eviction.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

struct PruningState : PromptEvictionState {
  using PromptEvictionState::PromptEvictionState;
  void Truncate(int64_t num_tokens) override {
    PromptEvictionState::Truncate(num_tokens);
    for (std::vector<int64_t>* tokens : {&keys, &values}) {
      while (!tokens->empty() && tokens->back() >= num_tokens) tokens->pop_back();
    }
  }
  // Tokens with codes, of all KV heads, in order of position.
  std::vector<int64_t> keys;
  std::vector<int64_t> values;
};

class Pruning final : public PromptEviction {
 public:
  Pruning(const MethodSpec& spec, const MethodContext& context) : PromptEviction(spec, context) {
    format_ = {static_cast<int>(spec.Integer("bits", 4)), context.float_type};
    key_group_ = spec.Integer("group", 64);
    value_group_ = std::min(spec.Integer("value-group", 64), context.geometry.head_dim);
    CheckGroup(spec.text, value_group_, context.geometry.head_dim);
  }

  std::unique_ptr<MethodState> NewState(int64_t) const override {
    return std::make_unique<PruningState>(
        score().window, context().geometry.num_heads * context().geometry.head_dim);
  }

  int64_t BytesNow(int64_t, const SimulatedBlock& block, const MethodState* opaque) const override {
    const auto& state = static_cast<const PruningState&>(*opaque);
    const int64_t dim = block.head_dim();
    const auto num_keys = std::ssize(state.keys);
    const auto num_values = std::ssize(state.values);
    return AffineBytes(format_, num_keys * dim, key_group_) +
           AffineBytes(format_, num_values * dim, value_group_) +
           (2 * block.NumKept() - num_keys - num_values) * HeadTokenBytes(context()) / 2;
  }

 protected:
  void AfterPrompt(int64_t num_tokens, SimulatedBlock& block, MethodState& opaque) const override {
    auto& state = static_cast<PruningState&>(opaque);
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      std::vector<int64_t> kept = KeptTokens(block, head, num_tokens - score().window);
      for (const int64_t token : kept) {
        DamageRow(format_, value_group_, block.head_dim(), block.Value(token, head));
      }
      state.values.insert(state.values.end(), kept.begin(), kept.end());
      kept.resize(kept.size() / static_cast<size_t>(key_group_) * static_cast<size_t>(key_group_));
      for (auto group = kept.begin(); group != kept.end(); group += key_group_) {
        for (int64_t channel = 0; channel < block.head_dim(); ++channel) {
          DamageChannel({group, group + key_group_}, head, channel, block);
        }
      }
      state.keys.insert(state.keys.end(), kept.begin(), kept.end());
    }
    std::sort(state.keys.begin(), state.keys.end());
    std::sort(state.values.begin(), state.values.end());
  }

 private:
  void DamageChannel(std::span<const int64_t> tokens, int64_t head, int64_t channel,
                     SimulatedBlock& block) const {
    std::vector<float> group;
    for (const int64_t token : tokens) group.push_back(block.Key(token, head)[channel]);
    DamageGroup(format_, std::ssize(group), 1, group.data());
    for (size_t i = 0; i < group.size(); ++i) block.Key(tokens[i], head)[channel] = group[i];
  }

  AffineFormat format_;
  int64_t key_group_ = 0;    // Tokens.
  int64_t value_group_ = 0;  // Channels.
};

}  // namespace

SimulatedMethod PruningMethod() {
  SpecKeys keys = PromptEviction::Keys();
  std::erase_if(keys, [](const SpecKey& key) { return key.name == "every"; });
  keys.push_back(ChoiceKey("bits", {"8", "4", "2"}, "4", "width of the survivors"));
  keys.push_back(
      ChoiceKey("group", {"128", "64", "32", "16"}, "64", "survivors of one range of keys"));
  keys.push_back(
      ChoiceKey("value-group", {"128", "64", "32", "16"}, "64", "channels of one range of values"));
  return {"pruning", "as snapkv, and the survivors quantised", std::move(keys),
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Pruning>(spec, context);
          }};
}

}  // namespace pmkvq
