// KIVI (arXiv 2402.02750): keys per channel, values per token.
//
// Keys after RoPE, in groups of G consecutive tokens of one channel; whole blocks of R tokens are
// quantised when they are full, the rest (0 .. R - 1 newest tokens) stays at full precision.
// Values in groups of G channels of one token; the newest R tokens stay at full precision, a true
// sliding window. Asymmetric, min and max per group, no sink.
//
// The word `reference` selects the re-implementation that PM-KVQ was compared with: G = 128 (or
// head_dim) for both, and values flushed in blocks of R as the keys are.
#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "pmkvq/methods/affine.h"
#include "pmkvq/methods/simulated_method.h"

namespace pmkvq {
namespace {

class Kivi final : public CacheMethod {
 public:
  Kivi(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    spec.CheckNames({"bits", "group", "residual"}, {"reference"});
    flushes_values_ = spec.words.contains("reference");
    format_.bits = static_cast<int>(spec.OneOf("bits", 2, {4, 2}));
    format_.metadata_type = context.float_type;
    key_group_ = spec.OneOf("group", flushes_values_ ? 128 : 32, {128, 64, 32});
    value_group_ = std::min(key_group_, context.geometry.head_dim);
    CheckGroup(spec.text, value_group_, context.geometry.head_dim);
    residual_ = spec.Integer("residual", 128, key_group_, 4096);
    if (residual_ % kPageTokens != 0 && kPageTokens % residual_ != 0) {
      throw InvalidInput("--kv", fmt::format("'{}': residual={}, expected a multiple or a divisor "
                                             "of {}",
                                             spec.text, residual_, kPageTokens));
    }
    if (residual_ % key_group_ != 0) {
      throw InvalidInput("--kv", fmt::format("'{}': residual={}, expected a multiple of the group "
                                             "{}",
                                             spec.text, residual_, key_group_));
    }
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const int64_t heads = block.num_kv_heads();
    // Groups of 32, 64 or 128 tokens never straddle a page, where tokens lie D floats apart.
    for (int64_t token = QuantizedKeys(tokens.first); token < QuantizedKeys(block.num_tokens());
         token += key_group_) {
      for (int64_t head = 0; head < heads; ++head) {
        float* keys = block.Key(token, head);
        for (int64_t channel = 0; channel < block.head_dim(); ++channel) {
          DamageGroup(format_, key_group_, block.head_dim(), keys + channel);
        }
      }
    }
    for (int64_t token = QuantizedValues(tokens.first); token < QuantizedValues(block.num_tokens());
         ++token) {
      for (int64_t head = 0; head < heads; ++head) {
        DamageRow(format_, value_group_, block.head_dim(), block.Value(token, head));
      }
    }
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    const int64_t kv_dim = context_.geometry.kv_dim();
    const int64_t keys = QuantizedKeys(num_tokens);
    const int64_t values = QuantizedValues(num_tokens);
    return AffineBytes(format_, keys * kv_dim, key_group_) +
           context_.FloatBytes(num_tokens - keys) +
           AffineBytes(format_, values * kv_dim, value_group_) +
           context_.FloatBytes(num_tokens - values);
  }

 private:
  // How many of the oldest tokens are quantised in a block of `num_tokens` tokens.
  int64_t QuantizedKeys(int64_t num_tokens) const { return num_tokens / residual_ * residual_; }
  int64_t QuantizedValues(int64_t num_tokens) const {
    return flushes_values_ ? QuantizedKeys(num_tokens)
                           : std::max<int64_t>(0, num_tokens - residual_);
  }

  MethodContext context_;
  AffineFormat format_;
  int64_t key_group_ = 0;    // Tokens.
  int64_t value_group_ = 0;  // Channels.
  int64_t residual_ = 0;
  bool flushes_values_ = false;
};

}  // namespace

SimulatedMethod KiviMethod() {
  return {"kivi",
          "keys per channel, values per token; bits=4|2 (2), group=128|64|32 (32), residual (128), "
          "reference: as PM-KVQ's authors compared it (group 128, values flushed in blocks)",
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Kivi>(spec, context);
          }};
}

}  // namespace pmkvq
