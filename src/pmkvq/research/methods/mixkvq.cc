// MixKVQ (arXiv 2512.19206): each channel of the keys has one of three widths, by its weight in the
// products with queries.
//
// Keys after RoPE are quantised per channel in groups of G tokens, values per token in groups of G
// channels at 2 bits; both in blocks of R tokens, when one is full. In each block of R tokens every
// channel d of the keys gets a width by
//
//   A_d = I_d * S_d,   I_d = mean |q_d|,   S_d = (max k_d - min k_d) / (2^2 - 1)
//
// with I_d over all queries up to the block's end and over the query heads that share the KV head,
// and S_d over the block. 16 bits where A_d > tau16, else 4 where A_d > tau4, else 2.
//
// The paper searches the thresholds per model, so the number of channels above them depends on the
// data. A budget needs bytes that depend on the length alone. So here the channels of all KV heads
// are ranked by A_d: the first share `high` may have 16 bits, the next share `mid` 4, and their
// bytes are counted for these shares. The thresholds, 0 by default, lower the width of channels
// within a share.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/base/error.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

struct MixKvqState final : MethodState {
  // Queries that were seen stay in the mean.
  void Truncate(int64_t) override {}

  std::vector<double> query_sums;  // [Hkv, D], of |q|.
  int64_t num_queries = 0;         // Tokens; each has H / Hkv queries for a KV head.
};

class MixKvq final : public CacheMethod {
 public:
  MixKvq(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    ReadShares(spec);
    tau16_ = spec.Real("tau16", 0.0);
    tau4_ = spec.Real("tau4", 0.0);
    low_ = {2, context.float_type};
    mid_ = {4, context.float_type};
    key_group_ = spec.Integer("group", 32);
    value_group_ = std::min(key_group_, context.geometry.head_dim);
    CheckGroup(spec.text, value_group_, context.geometry.head_dim);
    window_.sink = spec.Integer("sink", 0);
    window_.block = ReadResidual(spec, 128, key_group_);
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.queries = true;
    return needs;
  }

  std::unique_ptr<MethodState> NewState(int64_t) const override {
    auto state = std::make_unique<MixKvqState>();
    state->query_sums.assign(static_cast<size_t>(context_.geometry.kv_dim()), 0.0);
    return state;
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    MixKvqState& state = static_cast<MixKvqState&>(*opaque);
    int64_t row = 0;
    const int64_t end = window_.QuantizedEnd(block.num_tokens());
    for (int64_t first = window_.QuantizedEnd(tokens.first); first < end; first += window_.block) {
      const int64_t block_end = first + window_.block - tokens.first;
      AddQueries(tokens, row, block_end, state);
      row = block_end;
      DamageBlock(first, state, block);
    }
    AddQueries(tokens, row, tokens.count, state);
    DamageValueTokens(low_, value_group_, window_, tokens.first, block);
  }

  // Of K in a block of R tokens: channels at 16, 4 and 2 bits, and two bits a channel that say
  // which. Of V: groups at 2 bits. And the mean of |q| as a float per channel.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    if (num_tokens == 0) return 0;
    const int64_t channels = context_.geometry.kv_dim();
    const int64_t block = window_.block;
    const auto value_bytes = static_cast<int64_t>(SizeOf(context_.float_type));
    const int64_t keys = num_high_ * block * value_bytes +
                         AffineBytes(mid_, num_mid_ * block, key_group_) +
                         AffineBytes(low_, (channels - num_high_ - num_mid_) * block, key_group_) +
                         (channels * 2 + 7) / 8;
    const int64_t quantized = window_.NumQuantized(num_tokens);
    return quantized / block * keys + context_.FloatBytes(num_tokens - quantized) +
           WindowedBytes(context_, low_, value_group_, window_, num_tokens) + channels * 4;
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(window_, window_); }

 private:
  void ReadShares(const MethodSpec& spec) {
    const double high = spec.Real("high", 0.0625);
    const double mid = spec.Real("mid", 0.25);
    const auto channels = static_cast<double>(context_.geometry.kv_dim());
    num_high_ = std::lround(high * channels);
    num_mid_ = std::lround(mid * channels);
    if (num_high_ + num_mid_ > context_.geometry.kv_dim()) {
      throw InvalidInput("--kv", fmt::format("'{}': high {} and mid {} are shares of the channels, "
                                             "expected at most 1 together",
                                             spec.text, high, mid));
    }
  }

  // Of rows first_row .. end_row - 1 of an append.
  void AddQueries(const AppendedTokens& tokens, int64_t first_row, int64_t end_row,
                  MixKvqState& state) const {
    const UniformKvGeometry& geometry = context_.geometry;
    const int64_t dim = geometry.head_dim;
    const int64_t heads_per_kv_head = geometry.num_heads / geometry.num_kv_heads;
    for (int64_t row = first_row; row < end_row; ++row) {
      for (int64_t head = 0; head < geometry.num_heads; ++head) {
        const float* q = tokens.q + (row * geometry.num_heads + head) * dim;
        double* sums = state.query_sums.data() + head / heads_per_kv_head * dim;
        for (int64_t i = 0; i < dim; ++i) sums[i] += std::abs(double{q[i]});
      }
    }
    state.num_queries += end_row - first_row;
  }

  // A_d of every channel, [Hkv, D], in a block of R tokens.
  std::vector<double> Salience(int64_t first, const MixKvqState& state,
                               const SimulatedBlock& block) const {
    const UniformKvGeometry& geometry = context_.geometry;
    const double num_queries =
        static_cast<double>(state.num_queries * (geometry.num_heads / geometry.num_kv_heads));
    std::vector<double> salience;
    for (int64_t head = 0; head < geometry.num_kv_heads; ++head) {
      for (int64_t channel = 0; channel < geometry.head_dim; ++channel) {
        float lowest = block.Key(first, head)[channel];
        float highest = lowest;
        for (int64_t i = 1; i < window_.block; ++i) {
          const float key = block.Key(first + i, head)[channel];
          lowest = std::min(lowest, key);
          highest = std::max(highest, key);
        }
        const double importance = state.query_sums[salience.size()] / num_queries;
        salience.push_back(importance * (double{highest} - double{lowest}) / 3);
      }
    }
    return salience;
  }

  // Keys of one block of R tokens. Of channels that are equal the first ranks first.
  void DamageBlock(int64_t first, const MixKvqState& state, SimulatedBlock& block) const {
    const std::vector<double> salience = Salience(first, state, block);
    std::vector<size_t> order(salience.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return salience[a] > salience[b]; });
    for (size_t rank = 0; rank < order.size(); ++rank) {
      const auto place = static_cast<int64_t>(rank);
      const double a = salience[order[rank]];
      if (place < num_high_ && a > tau16_) continue;
      const AffineFormat& format = place < num_high_ + num_mid_ && a > tau4_ ? mid_ : low_;
      const auto index = static_cast<int64_t>(order[rank]);
      for (int64_t i = 0; i < window_.block; i += key_group_) {
        DamageKeyChannel(format, first + i, key_group_, index / block.head_dim(),
                         index % block.head_dim(), block);
      }
    }
  }

  MethodContext context_;
  AffineFormat low_;
  AffineFormat mid_;
  int64_t num_high_ = 0;  // Channels of all KV heads.
  int64_t num_mid_ = 0;
  double tau16_ = 0;
  double tau4_ = 0;
  int64_t key_group_ = 0;    // Tokens.
  int64_t value_group_ = 0;  // Channels.
  TokenWindow window_;       // Of keys and of values.
};

}  // namespace

SimulatedMethod MixKvqMethod() {
  return {"mixkvq",
          "key channels at 16, 4 and 2 bits by range and queries",
          {RealKey("high", 0, 1, "0.0625", "share of key channels with room at 16 bits"),
           RealKey("mid", 0, 1, "0.25", "share of key channels with room at 4 bits"),
           RealKey("tau16", 0, 1e6, "0", "threshold below which a channel leaves 16 bits"),
           RealKey("tau4", 0, 1e6, "0", "threshold below which a channel leaves 4 bits"),
           ChoiceKey("group", {"128", "64", "32"}, "32", "tokens, or channels, of one range"),
           ResidualKey("128"), IntegerKey("sink", 0, 4096, "0", "first tokens at full precision")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<MixKvq>(spec, context);
          }};
}

}  // namespace pmkvq
