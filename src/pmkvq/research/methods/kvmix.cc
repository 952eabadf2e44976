// KVmix (arXiv 2506.08018, AAAI 2026): widths by the gradients of a block's projections.
//
// The importance of a block's keys is the mean over calibration samples of |dL/dW_k|, the Frobenius
// norm; of its values, of |dL/dW_v|. The share of blocks with the largest get 3 bits for keys (4
// for values), the others 2; keys and values are ranked apart.
//
// Keys after RoPE are quantised per channel, in groups of 32 tokens, at 3 bits of 11: ten codes of
// 3 bits and one of 2 in a 32-bit word. The eleventh key has four codes over the same range; with
// the word `reference` it has the first four of the eight, as in the authors' code, which cuts it
// at 3 and so moves half of all eleventh keys far off. Values are quantised per token, in groups of
// 32 channels. With F tokens at full precision, of which the newest floor(r F) stay (the recent
// pivotal context), F - floor(r F) are quantised in whole groups after every token: as soon as that
// is a group, it goes, and F falls by a group. So F runs from W to W + group - 1, where W + group
// is the least F with F - floor(r F) >= group.
//
// The word `reference` also takes the ratios r of the authors' code, which go by the width.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/base/error.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

constexpr char kKeyImportance[] = "k_importance";    // [L]
constexpr char kValueImportance[] = "v_importance";  // [L]
constexpr int64_t kGroup = 32;
constexpr int64_t kWordGroup = 11;  // Tokens that share a 32-bit word at 3 bits.
constexpr int kLastBitsOfWord = 2;  // Of the eleventh.
constexpr float kLastCodeOfWord = (1 << kLastBitsOfWord) - 1;
constexpr int64_t kWordBytes = 4;

// Keys, or values, of one block.
struct Side {
  AffineFormat format;
  int64_t group = kGroup;  // Tokens (keys) or channels (values).
  TokenWindow window;      // Blocks of `group` tokens for keys, of 32 for values.
};

// Most tokens at full precision right after a group of `block` tokens was quantised.
int64_t TokensLeft(double ratio, int64_t block) {
  int64_t full = block;
  while (full - static_cast<int64_t>(ratio * static_cast<double>(full)) < block) ++full;
  return full - block;
}

class KvMix final : public CacheMethod {
 public:
  KvMix(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    if (context.geometry.head_dim % kGroup != 0) {
      throw InvalidInput("--kv", fmt::format("'{}': head_dim {}, expected a multiple of {}",
                                             spec.text, context.geometry.head_dim, kGroup));
    }
    const bool uniform = spec.keys.contains("k") || spec.keys.contains("v");
    if (uniform == (context.data != nullptr)) {
      throw InvalidInput(
          "--kv",
          uniform
              ? fmt::format("'{}': k= and v= are for all blocks, expected them or from=", spec.text)
              : fmt::format("'{}': no importance of blocks, expected {}, or k= and v=", spec.text,
                            ExpectedMethodData(spec.name)));
    }
    cut_last_ = spec.words.contains("reference");
    keys_ = Sides(spec, kKeyImportance, 3, spec.Integer("k", 2), /*of_keys=*/true);
    values_ = Sides(spec, kValueImportance, 4, spec.Integer("v", 2), /*of_keys=*/false);
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const Side& keys = keys_[static_cast<size_t>(layer)];
    const Side& values = values_[static_cast<size_t>(layer)];
    if (keys.format.bits == 3) {
      DamageWords(keys, cut_last_, tokens.first, block);
    } else {
      DamageKeyChannels(keys.format, keys.group, keys.window, tokens.first, block);
    }
    DamageValueTokens(values.format, values.group, values.window, tokens.first, block);
  }

  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override {
    const Side& keys = keys_[static_cast<size_t>(layer)];
    const Side& values = values_[static_cast<size_t>(layer)];
    const int64_t value_bytes =
        WindowedBytes(context_, values.format, values.group, values.window, num_tokens);
    if (keys.format.bits != 3) {
      return WindowedBytes(context_, keys.format, keys.group, keys.window, num_tokens) +
             value_bytes;
    }
    const int64_t quantized = keys.window.NumQuantized(num_tokens);
    const auto metadata_bytes = static_cast<int64_t>(2 * SizeOf(keys.format.metadata_type));
    return quantized / kWordGroup * context_.geometry.kv_dim() * (kWordBytes + metadata_bytes) +
           context_.FloatBytes(num_tokens - quantized) + value_bytes;
  }
  ByteGrowth Growth(int64_t layer) const override {
    const auto i = static_cast<size_t>(layer);
    return GrowthOf(keys_[i].window, values_[i].window);
  }

 private:
  // Per block. Without a file all blocks have `uniform_bits`, and the window of important ones
  // where that is more than 2.
  std::vector<Side> Sides(const MethodSpec& spec, const char* tensor, int64_t important_bits,
                          int64_t uniform_bits, bool of_keys) const {
    const auto num_layers = static_cast<size_t>(context_.geometry.num_layers);
    const double high = spec.Real("recent-high", 0.2);
    const double low = spec.Real("recent-low", 0.1);
    const double share = spec.Real("share", 0.2);
    const bool reference = spec.words.contains("reference");
    std::vector<int64_t> widths(num_layers, uniform_bits);
    if (context_.data != nullptr) {
      const Tensor& importance = context_.data->Get(tensor, {context_.geometry.num_layers});
      const auto count = static_cast<size_t>(share * static_cast<double>(num_layers));
      const std::vector<size_t> order = Ranked(importance.As<float>(), num_layers);
      std::fill(widths.begin(), widths.end(), 2);
      for (size_t i = 0; i < count; ++i) widths[order[i]] = important_bits;
    }
    std::vector<Side> sides;
    for (const int64_t bits : widths) {
      Side side;
      side.format = {static_cast<int>(bits), context_.float_type};
      side.group = of_keys && bits == 3 ? kWordGroup : kGroup;
      side.window.block = side.group;
      const double ratio = reference ? (bits == 4 ? 0.3 : 0.2) : (bits > 2 ? high : low);
      side.window.recent = TokensLeft(ratio, side.window.block);
      sides.push_back(side);
    }
    return sides;
  }

  // Blocks, the most important first; of equal ones the lower.
  static std::vector<size_t> Ranked(const float* importance, size_t count) {
    std::vector<size_t> order(count);
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return importance[a] > importance[b]; });
    return order;
  }

  static void DamageWords(const Side& keys, bool cut_last, int64_t num_before,
                          SimulatedBlock& block) {
    const AffineFormat last_format{kLastBitsOfWord, keys.format.metadata_type};
    const int64_t end = keys.window.QuantizedEnd(block.num_tokens());
    std::vector<float> word(kWordGroup);
    for (int64_t token = keys.window.QuantizedEnd(num_before); token < end; token += kWordGroup) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        for (int64_t channel = 0; channel < block.head_dim(); ++channel) {
          const auto at = [&](size_t i) -> float& {
            return block.Key(token + static_cast<int64_t>(i), head)[channel];
          };
          for (size_t i = 0; i < word.size(); ++i) word[i] = at(i);
          const AffineGrid grid = GridOf(keys.format, kWordGroup, 1, word.data());
          const AffineGrid last = cut_last ? grid : GridOf(last_format, kWordGroup, 1, word.data());
          for (size_t i = 0; i + 1 < word.size(); ++i) at(i) = grid.Read(word[i], grid.max_code);
          at(word.size() - 1) = last.Read(word.back(), kLastCodeOfWord);
        }
      }
    }
  }

  MethodContext context_;
  bool cut_last_ = false;     // The eleventh code of a word, at 3.
  std::vector<Side> keys_;    // Per block.
  std::vector<Side> values_;  // Per block.
};

double Norm(const float* values, int64_t count) {
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += double{values[i]} * double{values[i]};
  return std::sqrt(sum);
}

std::map<std::string, Tensor> CalibrateImportance(const MethodSpec&, const MethodContext& context,
                                                  const CalibrationContext& calibration) {
  const int64_t num_layers = context.geometry.num_layers;
  const int64_t count = context.geometry.kv_dim() * calibration.model->config().hidden_size;
  Profile<float> profile(*calibration.model, calibration.num_threads);
  SampleLoopStep step;
  step.task = "kvmix";
  step.num_values = static_cast<size_t>(2 * num_layers);  // [K, V][block]
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> norms(step.num_values);
    profile.ProjectionBackward(
        tokens, positions, [&](const Profile<float>::ProjectionGradients& gradients) {
          norms[static_cast<size_t>(gradients.layer)] = Norm(gradients.k, count);
          norms[static_cast<size_t>(num_layers + gradients.layer)] = Norm(gradients.v, count);
        });
    return norms;
  };
  const std::vector<double> sums = LoopOverSamples(calibration, step);

  const auto num_samples = static_cast<double>(calibration.samples->tokens.size());
  std::map<std::string, Tensor> tensors;
  for (const bool of_keys : {true, false}) {
    Tensor tensor(DType::kF32, {num_layers});
    const double* begin = sums.data() + (of_keys ? 0 : num_layers);
    std::transform(begin, begin + num_layers, tensor.As<float>(),
                   [&](double sum) { return static_cast<float>(sum / num_samples); });
    tensors.emplace(of_keys ? kKeyImportance : kValueImportance, std::move(tensor));
  }
  return tensors;
}

}  // namespace

SimulatedMethod KvMixMethod() {
  return {"kvmix",
          "keys per channel at 3 or 2 bits, values per token at 4 or 2, by the gradients of a "
          "block's projections",
          {FromKey("the importance of each block"),
           ChoiceKey("k", {"4", "3", "2"}, "2", "width of keys in all blocks, in place of from="),
           ChoiceKey("v", {"4", "2"}, "2", "width of values in all blocks, in place of from="),
           RealKey("share", 0, 1, "0.2", "share of important blocks"),
           RealKey("recent-high", 0, 0.9, "0.2", "newest tokens at full precision, important"),
           RealKey("recent-low", 0, 0.9, "0.1", "newest tokens at full precision, other blocks"),
           WordKey("reference", "the ratios and the cut eleventh code of the authors' code")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<KvMix>(spec, context);
          },
          CalibrateImportance};
}

}  // namespace pmkvq
