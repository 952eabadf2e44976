// KIVI (arXiv 2402.02750): keys per channel, values per token.
//
// Keys after RoPE, in groups of G consecutive tokens of one channel; whole blocks of R tokens are
// quantised when they are full, the rest (0 .. R - 1 newest tokens) stays at full precision.
// Values in groups of G channels of one token; the newest R tokens stay at full precision, a true
// sliding window. Asymmetric, min and max per group, no sink.
//
// The word `reference` selects the re-implementation that PM-KVQ was compared with: G = 128 (or
// head_dim) for both, and values flushed in blocks of R as the keys are.
#include <algorithm>

#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

class Kivi final : public CacheMethod {
 public:
  Kivi(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    const bool flushes_values = spec.words.contains("reference");
    format_.bits = static_cast<int>(spec.Integer("bits", 2));
    format_.metadata_type = context.float_type;
    key_group_ = spec.Integer("group", flushes_values ? 128 : 32);
    value_group_ = std::min(key_group_, context.geometry.head_dim);
    CheckGroup(spec.text, value_group_, context.geometry.head_dim);
    const int64_t residual = ReadResidual(spec, 128, key_group_);
    keys_ = {.sink = 0, .recent = 0, .block = residual};
    values_ = flushes_values ? keys_ : TokenWindow{.sink = 0, .recent = residual, .block = 1};
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    DamageKeyChannels(format_, key_group_, keys_, tokens.first, block);
    DamageValueTokens(format_, value_group_, values_, tokens.first, block);
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return WindowedBytes(context_, format_, key_group_, keys_, num_tokens) +
           WindowedBytes(context_, format_, value_group_, values_, num_tokens);
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(keys_, values_); }

 private:
  MethodContext context_;
  AffineFormat format_;
  int64_t key_group_ = 0;    // Tokens.
  int64_t value_group_ = 0;  // Channels.
  TokenWindow keys_;
  TokenWindow values_;
};

}  // namespace

SimulatedMethod KiviMethod() {
  return {"kivi",
          "keys per channel, values per token",
          {ChoiceKey("bits", {"4", "2"}, "2", "width of codes"),
           ChoiceKey("group", {"128", "64", "32"}, "32", "tokens, or channels, of one range"),
           ResidualKey("128"),
           WordKey("reference",
                   "as PM-KVQ's authors compared it: group 128, values flushed in blocks")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Kivi>(spec, context);
          }};
}

}  // namespace pmkvq
