// Kitty (arXiv 2511.18643): two bits, and four for the channels of the keys that are largest.
//
// The first `sink` tokens stay at full precision. Keys after RoPE are quantised per channel over a
// page of 128 tokens: 2 bits, but 4 for the share `boost` of a head's channels whose mean |k| in
// that page is largest. Values are quantised per token, 2 bits, one group a head. New tokens wait
// in a buffer that is quantised as one page when it holds 128. Values pass through a ring of the
// newest 128 tokens first, so that these are at full precision at any time.
//
// Bytes are those of the authors' layout: a plane of 2-bit codes for all channels, a second one for
// the boosted, one byte a channel that says where in the second plane it is, and buffers that are
// allocated whole.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

constexpr int64_t kKittyPage = 128;  // Tokens of a page, of a buffer and of the ring.

class Kitty final : public CacheMethod {
 public:
  Kitty(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    low_ = {2, context.float_type};
    high_ = {4, context.float_type};
    const double boost = spec.Real("boost", 0.125);
    // Rounded down; the small term makes up for the rounding error of the product.
    const double boosted = boost * static_cast<double>(context.geometry.head_dim) + 1e-6;
    num_boosted_ = static_cast<int64_t>(boosted);
    sink_ = spec.Integer("sink", 32);
    keys_ = {.sink = sink_, .recent = 0, .block = kKittyPage};
    values_ = {.sink = sink_, .recent = kKittyPage, .block = kKittyPage};
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const int64_t end = keys_.QuantizedEnd(block.num_tokens());
    for (int64_t page = keys_.QuantizedEnd(tokens.first); page < end; page += kKittyPage) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) DamagePage(page, head, block);
    }
    DamageValueTokens(low_, block.head_dim(), values_, tokens.first, block);
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    if (num_tokens == 0) return 0;
    const UniformKvGeometry& geometry = context_.geometry;
    const int64_t boosted = geometry.num_kv_heads * num_boosted_;
    const int64_t key_page =
        AffineBytes(low_, kKittyPage * (geometry.kv_dim() - boosted), kKittyPage) +
        AffineBytes(high_, kKittyPage * boosted, kKittyPage) +
        (boosted > 0 ? geometry.kv_dim() : 0);  // Ranks.
    const int64_t value_page = AffineBytes(low_, kKittyPage * geometry.kv_dim(), geometry.head_dim);
    const int64_t buffers =
        2 * context_.FloatBytes(sink_ + kKittyPage) + context_.FloatBytes(kKittyPage);
    return keys_.NumQuantized(num_tokens) / kKittyPage * key_page +
           values_.NumQuantized(num_tokens) / kKittyPage * value_page + buffers;
  }
  ByteGrowth Growth(int64_t) const override { return {}; }

 private:
  void DamagePage(int64_t page, int64_t head, SimulatedBlock& block) const {
    const int64_t dim = block.head_dim();
    std::vector<double> sums(static_cast<size_t>(dim), 0.0);
    for (int64_t i = 0; i < kKittyPage; ++i) {
      const float* key = block.Key(page + i, head);
      for (size_t channel = 0; channel < sums.size(); ++channel) {
        sums[channel] += std::abs(double{key[channel]});
      }
    }
    std::vector<int64_t> order(sums.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      return sums[static_cast<size_t>(a)] > sums[static_cast<size_t>(b)];
    });
    for (int64_t rank = 0; rank < dim; ++rank) {
      DamageKeyChannel(rank < num_boosted_ ? high_ : low_, page, kKittyPage, head,
                       order[static_cast<size_t>(rank)], block);
    }
  }

  MethodContext context_;
  AffineFormat low_;
  AffineFormat high_;
  int64_t num_boosted_ = 0;  // Channels of a head.
  int64_t sink_ = 0;
  TokenWindow keys_;
  TokenWindow values_;
};

}  // namespace

SimulatedMethod KittyMethod() {
  return {"kitty",
          "2 bits, 4 for the largest key channels of each page",
          {RealKey("boost", 0, 1, "0.125", "share of the key channels at 4 bits"),
           IntegerKey("sink", 0, 4096, "32", "first tokens at full precision")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Kitty>(spec, context);
          }};
}

}  // namespace pmkvq
