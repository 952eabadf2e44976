// SubGen (arXiv 2402.06082): attention estimated from two samples of the tokens.
//
// The newest W tokens are exact. An older token's key joins a cluster, of which t sampled keys are
// kept; its pair of key and value may take some of s slots, by the square of the value's norm
// (subgen_rule.h). With scores x,
//   out = sum over slots mu / (s |v|^2) e^x v / sum over clusters count / t sum over samples e^x,
// which the cache computes with log weights. Random numbers depend on seed, block, head and token
// alone, so that the cuts of a prompt do not matter.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "pmkvq/base/random.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/subgen_rule.h"

namespace pmkvq {
namespace {

constexpr int64_t kCountBytes = 4;
constexpr int64_t kMuBytes = 4;

struct SubGenState final : MethodState {
  void Truncate(int64_t num_tokens) override {
    num_sampled = std::min(num_sampled, num_tokens);
    for (SubGenHead& head : heads) head.Truncate(num_tokens);
    for (std::vector<int64_t>& of_head : weighed) {
      std::erase_if(of_head, [&](int64_t token) { return token >= num_tokens; });
    }
  }

  int64_t num_sampled = 0;  // Tokens that have left the window.
  std::vector<SubGenHead> heads;
  std::vector<std::vector<int64_t>> weighed;  // By head: sampled tokens that attention sees.
};

class SubGen final : public CacheMethod {
 public:
  SubGen(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    rule_.samples_per_cluster = spec.Integer("samples", 4);
    rule_.value_samples = spec.Integer("values", 64);
    rule_.most_clusters = spec.Integer("clusters", 64);
    rule_.delta = spec.Real("delta", 4);
    window_ = spec.Integer("recent", 128);
    seed_ = static_cast<uint64_t>(spec.Integer("seed", 1));
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.token_weights = true;
    needs.own_bytes = true;
    return needs;
  }
  std::unique_ptr<MethodState> NewState(int64_t) const override {
    auto state = std::make_unique<SubGenState>();
    state->heads.resize(static_cast<size_t>(context_.geometry.num_kv_heads));
    state->weighed.resize(state->heads.size());
    return state;
  }

  void OnAppend(int64_t layer, const AppendedTokens&, SimulatedBlock& block,
                MethodState* opaque) const override {
    SubGenState& state = static_cast<SubGenState&>(*opaque);
    const int64_t begin = state.num_sampled;
    const int64_t end = block.num_tokens() - window_;
    if (end <= begin) return;
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      SubGenHead& samples = state.heads[static_cast<size_t>(head)];
      for (int64_t token = begin; token < end; ++token) {
        Sample(layer, head, token, std::as_const(block), samples);
      }
      Weigh(begin, end, head, samples, state.weighed[static_cast<size_t>(head)], block);
    }
    state.num_sampled = end;
  }

  // A bound: as many clusters as there may be.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    const int64_t sampled = std::max<int64_t>(0, num_tokens - window_);
    return SampleBytes(context_.geometry.num_kv_heads * std::min(sampled, rule_.most_clusters),
                       sampled > 0) +
           2 * context_.FloatBytes(num_tokens - sampled);
  }
  ByteGrowth Growth(int64_t) const override { return {}; }

  int64_t BytesNow(int64_t, const SimulatedBlock& block, const MethodState* opaque) const override {
    const SubGenState& state = static_cast<const SubGenState&>(*opaque);
    int64_t clusters = 0;
    for (const SubGenHead& head : state.heads) clusters += std::ssize(head.clusters());
    return SampleBytes(clusters, state.num_sampled > 0) +
           2 * context_.FloatBytes(block.num_tokens() - state.num_sampled);
  }

 private:
  // A cluster: its centre, count and samples. Slots: keys and values; and mu, for each head.
  int64_t SampleBytes(int64_t num_clusters, bool has_slots) const {
    const int64_t row_bytes = context_.FloatBytes(1) / context_.geometry.num_kv_heads;
    const int64_t slots =
        context_.geometry.num_kv_heads * (rule_.value_samples * 2 * row_bytes + kMuBytes);
    return num_clusters * ((rule_.samples_per_cluster + 1) * row_bytes + kCountBytes) +
           (has_slots ? slots : 0);
  }

  void Sample(int64_t layer, int64_t head, int64_t token, const SimulatedBlock& block,
              SubGenHead& samples) const {
    const UniformKvGeometry& geometry = context_.geometry;
    const int64_t stream = (token * geometry.num_layers + layer) * geometry.num_kv_heads + head;
    Random random(StreamSeed(seed_, static_cast<uint64_t>(stream)));
    const auto coins = [&](int64_t count) {
      std::vector<double> drawn;
      for (int64_t i = 0; i < count; ++i) drawn.push_back(random.Uniform());
      return drawn;
    };
    const auto dim = static_cast<size_t>(geometry.head_dim);
    const float* key = block.Key(token, head);
    const float* value = block.Value(token, head);
    CheckFinite(key, geometry.head_dim);
    CheckFinite(value, geometry.head_dim);
    samples.AddKey(rule_, token, {key, dim}, coins(rule_.samples_per_cluster));
    samples.AddValue(rule_, token, {value, dim}, coins(rule_.value_samples));
  }

  // Tokens that were sampled before, or begin .. end - 1 now, have the weights of the samples.
  void Weigh(int64_t begin, int64_t end, int64_t head, const SubGenHead& samples,
             std::vector<int64_t>& weighed, SimulatedBlock& block) const {
    for (const int64_t token : weighed) block.Evict(token, head);
    for (int64_t token = begin; token < end; ++token) block.Evict(token, head);
    weighed.clear();
    for (const SubGenHead::LogWeights& weight : samples.Weights(rule_)) {
      block.SetLogWeights(weight.token, head, static_cast<float>(weight.numerator),
                          static_cast<float>(weight.denominator));
      weighed.push_back(weight.token);
    }
  }

  MethodContext context_;
  SubGenRule rule_;
  int64_t window_ = 128;
  uint64_t seed_ = 1;
};

}  // namespace

SimulatedMethod SubGenMethod() {
  return {"subgen",
          "attention estimated from sampled keys and values behind a window",
          {IntegerKey("samples", 1, 64, "4", "sampled keys of a cluster"),
           IntegerKey("values", 1, 4096, "64", "slots of sampled values"),
           IntegerKey("clusters", 1, 4096, "64", "most clusters of a head"),
           RealKey("delta", 0, 1e6, "4", "largest distance of a key to its cluster"),
           IntegerKey("recent", 0, 65536, "128", "newest tokens that are exact"),
           IntegerKey("seed", 0, 1000000000, "1", "of the random numbers")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<SubGen>(spec, context);
          }};
}

}  // namespace pmkvq
