// RotateKV (arXiv 2501.16383, IJCAI 2025): keys and values are rotated before they are quantised.
//
// Keys before RoPE: a Walsh-Hadamard transform over the channels of four KV heads at a time, then
// all channels of the block in the order of their sums, so that like channels share a group.
// Values: a transform of each head. Per token, groups of min(128, D), asymmetric with an integer
// zero point, bounds clipped to 0.8 of theirs at 2 bits. Up to `pivots` tokens of the prompt stay
// at full precision: those that hold the largest entries of the block's input. No window.
//
// The order comes from a calibration set (from=, the paper's way). Without one it comes from the
// append that brings the sequence to kFirstTokens tokens or more (usually the prompt's first
// chunk), and its bytes are counted. Pivots always come from that append. Before it nothing is
// quantised.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <span>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/kernels/linalg/hadamard.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

constexpr int64_t kFirstTokens = 32;
constexpr int64_t kRotatedHeads = 4;
constexpr char kSums[] = "channel_sums";  // Per block [Hkv * D]: see CalibrateOrder.

// KV heads that are transformed together. Throws InvalidInput naming --kv.
int64_t RotatedHeads(const MethodSpec& spec, const UniformKvGeometry& geometry) {
  const int64_t heads = std::min(kRotatedHeads, geometry.num_kv_heads);
  if (geometry.num_kv_heads % heads != 0 ||
      !std::has_single_bit(static_cast<uint64_t>(heads * geometry.head_dim)) ||
      !std::has_single_bit(static_cast<uint64_t>(geometry.head_dim))) {
    throw InvalidInput("--kv", fmt::format("'{}': {} KV heads of {}, expected powers of two, "
                                           "heads in fours",
                                           spec.text, geometry.num_kv_heads, geometry.head_dim));
  }
  return heads;
}

// Channel at each place, by ascending sums.
template <class Real>
std::vector<int64_t> OrderBy(std::span<const Real> sums) {
  std::vector<int64_t> order(sums.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return sums[static_cast<size_t>(a)] < sums[static_cast<size_t>(b)];
  });
  return order;
}

struct RotateKvState final : MethodState {
  void Truncate(int64_t num_tokens) override {
    num_quantized = std::min(num_quantized, num_tokens);
    std::erase_if(pivots, [&](int64_t token) { return token >= num_tokens; });
    std::erase_if(peaks, [&](const Peak& peak) { return peak.second >= num_tokens; });
    std::make_heap(peaks.begin(), peaks.end(), std::greater<>());
  }

  using Peak = std::pair<float, int64_t>;  // Magnitude, token.

  std::vector<Peak> peaks;      // The largest so far, a heap with the least in front.
  std::vector<int64_t> order;   // Channel at each place; empty until it is set.
  std::vector<int64_t> pivots;  // Tokens, ascending; set with the order.
  int64_t num_quantized = 0;    // Tokens dealt with, pivots included.
};

class RotateKv final : public CacheMethod {
 public:
  RotateKv(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    bits_ = static_cast<int>(spec.Integer("bits", 2));
    clip_ = static_cast<float>(spec.Real("clip", bits_ == 2 ? 0.8 : 1.0));
    num_pivots_ = spec.Integer("pivots", 20);
    const UniformKvGeometry& geometry = context.geometry;
    width_ = RotatedHeads(spec, geometry) * geometry.head_dim;
    for (int64_t layer = 0; context.data != nullptr && layer < geometry.num_layers; ++layer) {
      const Tensor& sums = context.data->Get(BlockTensorName(kSums, layer), {geometry.kv_dim()});
      orders_.push_back(OrderBy<float>({sums.As<float>(), static_cast<size_t>(geometry.kv_dim())}));
    }
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.keys_before_rope = true;
    needs.block_input = num_pivots_ > 0;
    return needs;
  }

  std::unique_ptr<MethodState> NewState(int64_t) const override {
    return std::make_unique<RotateKvState>();
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    RotateKvState& state = static_cast<RotateKvState&>(*opaque);
    if (state.order.empty()) {
      if (num_pivots_ > 0) KeepPeaks(tokens, state.peaks);
      if (block.num_tokens() < kFirstTokens) return;
      state.order = orders_.empty() ? OrderOf(block) : orders_[static_cast<size_t>(layer)];
      SetPivots(state);
    }
    std::vector<float> scratch(static_cast<size_t>(context_.geometry.kv_dim()));
    for (int64_t token = state.num_quantized; token < block.num_tokens(); ++token) {
      if (std::binary_search(state.pivots.begin(), state.pivots.end(), token)) continue;
      QuantizeKey(token, state.order, scratch, block);
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        float* value = block.Value(token, head);
        Hadamard(value, block.head_dim());
        Quantize(value, block.head_dim());
        Hadamard(value, block.head_dim());
      }
    }
    state.num_quantized = block.num_tokens();
  }

  // Slots at full precision for all pivots and their positions (4 bytes), codes with a scale and
  // an int16 zero point for the others, and the channel order (int16) unless it is calibrated and
  // so one for all sequences. Before that is known: values at full precision and peaks.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    if (num_tokens == 0) return 0;
    const UniformKvGeometry& geometry = context_.geometry;
    const int64_t kv_dim = geometry.kv_dim();
    if (num_tokens < kFirstTokens) {
      return 2 * context_.FloatBytes(num_tokens) + 8 * num_pivots_;
    }
    const int64_t pivots = std::min(num_pivots_, num_tokens);
    const int64_t group_bytes =
        (geometry.group() * bits_ + 7) / 8 + static_cast<int64_t>(SizeOf(context_.float_type)) + 2;
    return 2 * context_.FloatBytes(pivots) + 4 * pivots +
           2 * (num_tokens - pivots) * (kv_dim / geometry.group()) * group_bytes +
           (orders_.empty() ? 2 * kv_dim : 0);
  }
  ByteGrowth Growth(int64_t) const override { return {kFirstTokens, 1}; }

 private:
  // The key of a token, all heads, rotated: [Hkv * D].
  void RotatedKey(int64_t token, const SimulatedBlock& block, std::vector<float>& rotated) const {
    const int64_t dim = block.head_dim();
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      std::copy_n(block.Key(token, head), dim, rotated.data() + head * dim);
    }
    HadamardHeads(rotated.data(), std::ssize(rotated), width_);
    CheckFinite(rotated.data(), static_cast<int64_t>(rotated.size()));
  }

  // Keeps the num_pivots_ largest entries seen.
  void KeepPeaks(const AppendedTokens& tokens, std::vector<RotateKvState::Peak>& peaks) const {
    for (int64_t i = 0; i < tokens.count * tokens.input_width; ++i) {
      const float magnitude = std::abs(tokens.block_input[i]);
      if (static_cast<int64_t>(peaks.size()) == num_pivots_) {
        if (magnitude <= peaks.front().first) continue;
        std::pop_heap(peaks.begin(), peaks.end(), std::greater<>());
        peaks.pop_back();
      }
      peaks.emplace_back(magnitude, tokens.first + i / tokens.input_width);
      std::push_heap(peaks.begin(), peaks.end(), std::greater<>());
    }
  }

  // By the sums over all tokens so far, none of which has been quantised.
  std::vector<int64_t> OrderOf(const SimulatedBlock& block) const {
    std::vector<float> rotated(static_cast<size_t>(context_.geometry.kv_dim()));
    std::vector<double> sums(rotated.size());
    for (int64_t token = 0; token < block.num_tokens(); ++token) {
      RotatedKey(token, block, rotated);
      for (size_t i = 0; i < sums.size(); ++i) sums[i] += double{rotated[i]};
    }
    return OrderBy<double>(sums);
  }

  static void SetPivots(RotateKvState& state) {
    for (const auto& [magnitude, token] : state.peaks) state.pivots.push_back(token);
    std::sort(state.pivots.begin(), state.pivots.end());
    state.pivots.erase(std::unique(state.pivots.begin(), state.pivots.end()), state.pivots.end());
  }

  void QuantizeKey(int64_t token, const std::vector<int64_t>& order, std::vector<float>& key,
                   SimulatedBlock& block) const {
    RotatedKey(token, block, key);
    std::vector<float> ordered(key.size());
    for (size_t i = 0; i < key.size(); ++i) ordered[i] = key[static_cast<size_t>(order[i])];
    Quantize(ordered.data(), static_cast<int64_t>(ordered.size()));
    for (size_t i = 0; i < key.size(); ++i) key[static_cast<size_t>(order[i])] = ordered[i];
    HadamardHeads(key.data(), std::ssize(key), width_);
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      std::copy_n(key.data() + head * block.head_dim(), block.head_dim(), block.Key(token, head));
    }
  }

  // All groups of `count` values in a row.
  void Quantize(float* x, int64_t count) const {
    const int64_t group = context_.geometry.group();
    for (int64_t begin = 0; begin < count; begin += group) QuantizeGroup(x + begin, group);
  }

  // code = round(x / scale) + zero. A group whose values are all equal keeps them. Throws
  // UnfitValues where the float type cannot hold the scale, or 16 bits the zero point.
  void QuantizeGroup(float* x, int64_t count) const {
    CheckFinite(x, count);
    const auto [lowest, highest] = std::minmax_element(x, x + count);
    const float low = clip_ * *lowest;
    const float max_code = internal::MaxCode(bits_);
    const float step = (clip_ * *highest - low) / max_code;
    const float scale = internal::VisitFloatType(
        context_.float_type, [&]<class T>(T) { return ToFloat(FromFloat<T>(step)); });
    if (!std::isfinite(scale)) {
      throw UnfitValues(UnfitRangeMessage("value", *lowest, *highest, context_.float_type));
    }
    if (scale <= 0.0f) return;
    constexpr float kLargestZero = std::numeric_limits<int16_t>::max();
    const float zero = std::nearbyint(-low / scale);
    if (!(std::abs(zero) <= kLargestZero)) {
      throw UnfitValues(
          fmt::format("the zero point of a group does not fit 16 bits: found {} for "
                      "values from {} to {}, expected at most {}",
                      zero, *lowest, *highest, kLargestZero));
    }
    for (int64_t i = 0; i < count; ++i) {
      const float code = std::clamp(std::nearbyint(x[i] / scale) + zero, 0.0f, max_code);
      x[i] = (code - zero) * scale;
    }
  }

  MethodContext context_;
  int bits_ = 2;
  float clip_ = 1.0f;
  int64_t num_pivots_ = 0;
  int64_t width_ = 0;                         // Channels that are transformed together.
  std::vector<std::vector<int64_t>> orders_;  // Per block, of from=; empty without.
};

// Signed sums over all calibration tokens of the keys before RoPE, transformed, divided by the
// number of tokens. The transform is linear, so it is applied to the sums.
std::map<std::string, Tensor> CalibrateOrder(const MethodSpec& spec, const MethodContext& context,
                                             const CalibrationContext& calibration) {
  const UniformKvGeometry& geometry = context.geometry;
  const int64_t width = RotatedHeads(spec, geometry) * geometry.head_dim;
  const int64_t kv_dim = geometry.kv_dim();
  Profile<float> profile(*calibration.model, calibration.num_threads);
  SampleLoopStep step;
  step.task = "rotatekv";
  step.num_values = static_cast<size_t>(geometry.num_layers * kv_dim);
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> sums(step.num_values);
    std::vector<float> keys;
    profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
      keys.assign(states.k, states.k + states.num_tokens * kv_dim);
      // The rotation back; times the square of yarn's factor, which changes no order.
      ApplyRopeGrad(calibration.model->rope(states.layer), positions.data(), states.num_tokens,
                    geometry.num_kv_heads, keys.data(), calibration.num_threads);
      double* block_sums = sums.data() + states.layer * kv_dim;
      for (size_t i = 0; i < keys.size(); ++i) {
        block_sums[i % static_cast<size_t>(kv_dim)] += double{keys[i]};
      }
    });
    return sums;
  };
  const std::vector<double> sums = LoopOverSamples(calibration, step);

  double num_tokens = 0;
  for (const auto& sample : calibration.samples->tokens) {
    num_tokens += static_cast<double>(sample.size());
  }
  std::map<std::string, Tensor> tensors;
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    const auto begin = sums.begin() + layer * kv_dim;
    std::vector<double> block(begin, begin + kv_dim);
    HadamardHeads(block.data(), std::ssize(block), width);
    Tensor tensor(DType::kF32, {kv_dim});
    std::transform(block.begin(), block.end(), tensor.As<float>(),
                   [&](double sum) { return static_cast<float>(sum / num_tokens); });
    tensors.emplace(BlockTensorName(kSums, layer), std::move(tensor));
  }
  return tensors;
}

}  // namespace

SimulatedMethod RotateKvMethod() {
  return {"rotatekv",
          "rotated keys (before RoPE) and values, per token",
          {ChoiceKey("bits", {"4", "3", "2"}, "2", "width of codes"),
           RealKey("clip", 0.1, 1, "0.8 at 2 bits, else 1", "share of a range that is kept"),
           IntegerKey("pivots", 0, 1024, "20", "tokens of massive activations at full precision"),
           FromKey("the order of channels; without it each sequence finds one")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<RotateKv>(spec, context);
          },
          CalibrateOrder};
}

}  // namespace pmkvq
