// KVTuner (arXiv 2502.04420): widths of keys and of values, fixed for each layer.
//
// With axis=token keys and values are quantised per token, every token at once, one group a head.
// With axis=channel the layers keep KIVI's form: keys per channel in blocks of R tokens, values per
// token behind the newest R, groups of G.
#include <fmt/format.h>

#include <algorithm>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/methods/affine.h"
#include "pmkvq/methods/simulated_method.h"
#include "pmkvq/methods/windows.h"

namespace pmkvq {
namespace {

class KvTuner final : public CacheMethod {
 public:
  KvTuner(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    spec.CheckNames({"k", "v", "axis", "group", "residual"});
    const auto k_bits = static_cast<int>(spec.OneOf("k", 4, {8, 4, 2}));
    const auto v_bits = static_cast<int>(spec.OneOf("v", 2, {8, 4, 2}));
    const auto num_layers = static_cast<size_t>(context.geometry.num_layers);
    keys_.assign(num_layers, {k_bits, context.float_type});
    values_.assign(num_layers, {v_bits, context.float_type});
    ReadForm(spec);
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const AffineFormat& keys = keys_[static_cast<size_t>(layer)];
    if (per_channel_) {
      DamageKeyChannels(keys, key_group_, key_window_, tokens.first, block);
    } else {
      DamageKeyTokens(keys, key_group_, key_window_, tokens.first, block);
    }
    DamageValueTokens(values_[static_cast<size_t>(layer)], value_group_, value_window_,
                      tokens.first, block);
  }

  // Widths are the model's, not a sequence's, and take no room in the cache.
  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override {
    const auto i = static_cast<size_t>(layer);
    return WindowedBytes(context_, keys_[i], key_group_, key_window_, num_tokens) +
           WindowedBytes(context_, values_[i], value_group_, value_window_, num_tokens);
  }

 private:
  void ReadForm(const MethodSpec& spec) {
    const int64_t head_dim = context_.geometry.head_dim;
    per_channel_ = spec.NameOf("axis", "token", {"token", "channel"}) == "channel";
    if (per_channel_) {
      key_group_ = spec.OneOf("group", 32, {128, 64, 32});
      value_group_ = std::min(key_group_, head_dim);
      const int64_t residual = ReadResidual(spec, 32, key_group_);
      key_window_.block = residual;
      value_window_.recent = residual;
    } else {
      if (spec.keys.contains("residual")) {
        throw InvalidInput("--kv", fmt::format("'{}': residual={}, expected axis=channel with it",
                                               spec.text, spec.keys.at("residual")));
      }
      key_group_ = spec.Integer("group", context_.geometry.group(), 1, 256);
      value_group_ = key_group_;
    }
    CheckGroup(spec.text, value_group_, head_dim);
  }

  MethodContext context_;
  std::vector<AffineFormat> keys_;  // By layer.
  std::vector<AffineFormat> values_;
  bool per_channel_ = false;
  int64_t key_group_ = 0;  // Tokens per channel, or channels.
  int64_t value_group_ = 0;
  TokenWindow key_window_;
  TokenWindow value_window_;
};

}  // namespace

SimulatedMethod KvTunerMethod() {
  return {
      "kvtuner",
      "widths of K and V fixed per layer; k=8|4|2 (4), v=8|4|2 (2), axis=token|channel (token), "
      "group (128, or head_dim; channel: 32), residual (channel: 32)",
      [](const MethodSpec& spec,
         const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
        return std::make_shared<KvTuner>(spec, context);
      }};
}

}  // namespace pmkvq
