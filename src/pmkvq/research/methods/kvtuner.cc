// KVTuner (arXiv 2502.04420): widths of keys and of values, fixed for each layer.
//
// With axis=token keys and values are quantised per token, every token at once, one group a head.
// With axis=channel the layers keep KIVI's form: keys per channel in blocks of R tokens, values per
// token behind the newest R, groups of G.
//
// The widths are the same for all layers (k=, v=) or, with from=FILE, each layer gets one of the
// paper's five pairs: calibration measures by how much the loss moves when one layer alone is
// quantised at a pair, and the pairs with the least sum under an average of `bits` are found
// exactly. The paper searches for them by accuracy on a task.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <span>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/allocate.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/block_means.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

struct WidthPair {
  int k_bits = 0;
  int v_bits = 0;
};
constexpr std::array<WidthPair, 5> kPairs = {{{8, 8}, {8, 4}, {4, 4}, {4, 2}, {2, 2}}};
constexpr auto kNumPairs = static_cast<int64_t>(kPairs.size());
constexpr double kDefaultBits = 3.25;
constexpr char kLoss[] = "loss_change";  // Per block, by pair.
constexpr char kFormName[] = "form";     // See Form::Numbers.

// How a layer is quantised, but for its widths.
struct Form {
  Form(const MethodSpec& spec, const UniformKvGeometry& geometry) {
    per_channel = spec.Text("axis", "token") == "channel";
    if (per_channel) {
      key_group = spec.Integer("group", 32);
      if (key_group != 32 && key_group != 64 && key_group != 128) {
        throw InvalidInput("--kv", fmt::format("'{}': group={}, expected 128, 64 or 32 with "
                                               "axis=channel",
                                               spec.text, key_group));
      }
      value_group = std::min(key_group, geometry.head_dim);
      const int64_t residual = ReadResidual(spec, 32, key_group);
      key_window.block = residual;
      value_window.recent = residual;
    } else {
      if (spec.keys.contains("residual")) {
        throw InvalidInput("--kv", fmt::format("'{}': residual={}, expected axis=channel with it",
                                               spec.text, spec.keys.at("residual")));
      }
      key_group = spec.Integer("group", geometry.group());
      value_group = key_group;
    }
    CheckGroup(spec.text, value_group, geometry.head_dim);
  }

  // The settings that a file of losses must agree with.
  std::array<float, 3> Numbers() const {
    return {per_channel ? 1.0f : 0.0f, static_cast<float>(key_group),
            static_cast<float>(value_window.recent)};
  }
  static std::string Describe(const std::array<float, 3>& form) {
    return form[0] != 0.0f ? fmt::format("axis=channel+group={}+residual={}", form[1], form[2])
                           : fmt::format("axis=token+group={}", form[1]);
  }

  bool per_channel = false;
  int64_t key_group = 0;  // Tokens of a channel, or channels of a token.
  int64_t value_group = 0;
  TokenWindow key_window;
  TokenWindow value_window;
};

// Pairs of least loss, one for each layer. Throws InvalidInput (a file for another form).
std::vector<WidthPair> ChoosePairs(const MethodData& data, const Form& form, double bits) {
  std::array<float, 3> made_with{};
  std::copy_n(data.Get(kFormName, {3}).As<float>(), 3, made_with.begin());
  if (made_with != form.Numbers()) {
    throw InvalidInput(data.path,
                       fmt::format("made with {}, expected {}, as in the SPEC",
                                   Form::Describe(made_with), Form::Describe(form.Numbers())));
  }
  std::vector<KnapsackItem> items;
  for (int64_t layer = 0; layer < data.geometry.num_layers; ++layer) {
    const float* loss = data.Get(BlockTensorName(kLoss, layer), {kNumPairs}).As<float>();
    KnapsackItem item;
    for (size_t i = 0; i < kPairs.size(); ++i) {
      // Fewer bits never lose less in truth. A smaller measured loss is noise and is raised.
      item.cost.push_back(i == 0 ? double{loss[0]} : std::max(item.cost.back(), double{loss[i]}));
      item.bytes.push_back(kPairs[i].k_bits + kPairs[i].v_bits);
    }
    items.push_back(std::move(item));
  }
  // Bits of a key and a value of each layer; the product may have been rounded down.
  const double budget = 2.0 * bits * static_cast<double>(items.size());
  const KnapsackResult best = SolveKnapsack(items, static_cast<int64_t>(budget + 1e-6));
  std::vector<WidthPair> pairs;
  for (const int choice : best.choice) pairs.push_back(kPairs[static_cast<size_t>(choice)]);
  return pairs;
}

class KvTuner final : public CacheMethod {
 public:
  KvTuner(const MethodSpec& spec, const MethodContext& context)
      : context_(context), form_(spec, context.geometry) {
    for (const WidthPair& pair : ReadPairs(spec)) {
      keys_.push_back({pair.k_bits, context.float_type});
      values_.push_back({pair.v_bits, context.float_type});
    }
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const AffineFormat& keys = keys_[static_cast<size_t>(layer)];
    if (form_.per_channel) {
      DamageKeyChannels(keys, form_.key_group, form_.key_window, tokens.first, block);
    } else {
      DamageKeyTokens(keys, form_.key_group, form_.key_window, tokens.first, block);
    }
    DamageValueTokens(values_[static_cast<size_t>(layer)], form_.value_group, form_.value_window,
                      tokens.first, block);
  }

  // Widths are the model's, not a sequence's, and take no room in the cache.
  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override {
    const auto i = static_cast<size_t>(layer);
    return WindowedBytes(context_, keys_[i], form_.key_group, form_.key_window, num_tokens) +
           WindowedBytes(context_, values_[i], form_.value_group, form_.value_window, num_tokens);
  }
  ByteGrowth Growth(int64_t) const override {
    return GrowthOf(form_.key_window, form_.value_window);
  }

 private:
  std::vector<WidthPair> ReadPairs(const MethodSpec& spec) const {
    const auto refuse = [&](const char* key, const char* expected) {
      if (!spec.keys.contains(key)) return;
      throw InvalidInput("--kv", fmt::format("'{}': {}={}, expected {}", spec.text, key,
                                             spec.keys.at(key), expected));
    };
    if (context_.data != nullptr) {
      refuse("k", "none with from=: the file says the widths");
      refuse("v", "none with from=: the file says the widths");
      return ChoosePairs(*context_.data, form_, spec.Real("bits", kDefaultBits));
    }
    refuse("bits", "from= with it, or k= and v= in its place");
    const WidthPair pair = {static_cast<int>(spec.Integer("k", 4)),
                            static_cast<int>(spec.Integer("v", 2))};
    return std::vector<WidthPair>(static_cast<size_t>(context_.geometry.num_layers), pair);
  }

  MethodContext context_;
  Form form_;
  std::vector<AffineFormat> keys_;  // By layer.
  std::vector<AffineFormat> values_;
};

// Keys and values [N, Hkv * D] of one layer, and the change of its output when they are quantised.
class LayerError {
 public:
  LayerError(const Form& form, const UniformKvGeometry& geometry, const BlockStates<float>& states)
      : form_(form),
        geometry_(geometry),
        num_tokens_(states.num_tokens),
        k_(states.k, states.k + num_tokens_ * geometry.kv_dim()),
        v_(states.v, states.v + num_tokens_ * geometry.kv_dim()) {}

  std::vector<float> OfKeys(const AffineFormat& format) const {
    std::vector<float> damaged = k_;
    const int64_t end = form_.key_window.QuantizedEnd(num_tokens_);
    if (!form_.per_channel) {
      DamageTokens(format, form_.key_group, end, damaged);
      return Difference(damaged, k_);
    }
    for (int64_t token = 0; token < end; token += form_.key_group) {
      for (int64_t column = 0; column < geometry_.kv_dim(); ++column) {
        DamageGroup(format, form_.key_group, geometry_.kv_dim(),
                    damaged.data() + token * geometry_.kv_dim() + column);
      }
    }
    return Difference(damaged, k_);
  }

  std::vector<float> OfValues(const AffineFormat& format) const {
    std::vector<float> damaged = v_;
    DamageTokens(format, form_.value_group, form_.value_window.QuantizedEnd(num_tokens_), damaged);
    return Difference(damaged, v_);
  }

 private:
  void DamageTokens(const AffineFormat& format, int64_t group, int64_t end,
                    std::vector<float>& rows) const {
    // Groups divide head_dim, so that all heads of a token are one row.
    for (int64_t token = 0; token < end; ++token) {
      CancelPoint();
      DamageRow(format, group, geometry_.kv_dim(), rows.data() + token * geometry_.kv_dim());
    }
  }
  static std::vector<float> Difference(std::vector<float> x, const std::vector<float>& from) {
    std::transform(x.begin(), x.end(), from.begin(), x.begin(), std::minus<>());
    return x;
  }

  const Form& form_;
  UniformKvGeometry geometry_;
  int64_t num_tokens_;
  std::vector<float> k_;
  std::vector<float> v_;
};

// Per layer and pair, by how much the mean next-token loss of one sample moves with that pair in
// that layer alone. Where the text cannot be predicted, errors that make the model less sure lower
// the loss, so it is the distance that counts. All tokens that have left the window at the sample's
// end are quantised from the start, so that one pass measures all positions. Cost: L * 5 passes.
std::vector<double> LossChanges(const Form& form, const MethodContext& context,
                                std::span<const int32_t> tokens, std::span<const int64_t> positions,
                                Profile<float>& profile) {
  std::vector<LayerError> layers;
  const double exact = profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
    layers.emplace_back(form, context.geometry, states);
  });
  std::vector<double> changes;
  for (size_t layer = 0; layer < layers.size(); ++layer) {
    for (const WidthPair& pair : kPairs) {
      const std::vector<float> of_k = layers[layer].OfKeys({pair.k_bits, context.float_type});
      const std::vector<float> of_v = layers[layer].OfValues({pair.v_bits, context.float_type});
      const double loss = profile.PerturbedLoss(tokens, positions, static_cast<int64_t>(layer),
                                                of_k.data(), of_v.data());
      changes.push_back(std::abs(loss - exact));
    }
  }
  return changes;
}

// Means over samples, for ChoosePairs.
std::map<std::string, Tensor> Calibrate(const MethodSpec& spec, const MethodContext& context,
                                        const CalibrationContext& calibration) {
  const Form form(spec, context.geometry);
  for (const char* key : {"k", "v"}) {
    if (spec.keys.contains(key)) {
      throw InvalidInput("--kv", fmt::format("'{}': {}={}, expected none: calibration measures all "
                                             "widths",
                                             spec.text, key, spec.keys.at(key)));
    }
  }
  Profile<float> profile(*calibration.model, calibration.num_threads);
  SampleLoopStep step;
  step.task = "kvtuner";
  step.options = fmt::format("{} {}", Form::Describe(form.Numbers()), NameOf(context.float_type));
  step.num_values = static_cast<size_t>(context.geometry.num_layers * kNumPairs);
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    return LossChanges(form, context, tokens, positions, profile);
  };
  std::map<std::string, Tensor> tensors =
      MeansOfBlocks(calibration, step, kLoss, context.geometry.num_layers);
  Tensor numbers(DType::kF32, {3});
  const std::array<float, 3> made_with = form.Numbers();
  std::copy(made_with.begin(), made_with.end(), numbers.As<float>());
  tensors.emplace(kFormName, std::move(numbers));
  return tensors;
}

}  // namespace

SimulatedMethod KvTunerMethod() {
  return {"kvtuner",
          "widths of K and V fixed per layer",
          {ChoiceKey("k", {"8", "4", "2"}, "4", "width of keys in all layers"),
           ChoiceKey("v", {"8", "4", "2"}, "2", "width of values in all layers"),
           FromKey("what each layer loses at each pair of widths"),
           RealKey("bits", 2, 8, "3.25", "average of all widths; with from="),
           ChoiceKey("axis", {"token", "channel"}, "token", "what a range of keys is for"),
           IntegerKey("group", 1, 256, "128, or head_dim; 32 with axis=channel",
                      "tokens, or channels, of one range"),
           ResidualKey("32; with axis=channel only")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<KvTuner>(spec, context);
          },
          Calibrate};
}

}  // namespace pmkvq
