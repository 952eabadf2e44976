// MiKV ("No Token Left Behind", arXiv 2402.18096): no token is evicted, unimportant ones are kept
// at few bits.
//
// A share `ratio` of the tokens is important: per KV head, half of them the newest, the others
// those with the largest accumulated attention (sum over queries, and over the query heads that
// share a KV head). A token that leaves the important set is quantised to `bits` and never comes
// back. Groups are half a head. Keys are stored as K * beta with beta = sqrt(max|q| / max|k|) per
// KV head and channel (the channel balancer), from the first tokens of the sequence.
//
// The paper takes beta from the whole prompt. A cache does not know where a prompt ends: beta is
// set by the append that brings the sequence to kBalancerTokens tokens or more (usually the
// prompt's first chunk). Until then all tokens are important.
//
// The word `reference` selects the re-implementation that PM-KVQ was compared with: no important
// tokens unless ratio says so, chosen for all heads together and without the newest half, and
// groups of a whole head.
#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

constexpr int64_t kBalancerTokens = 32;

// The tokens of one KV head, or of all of them where they are chosen together.
struct Choice {
  std::vector<double> scores;      // Accumulated attention by token.
  std::vector<uint8_t> important;  // By token.
};

struct MikvState final : MethodState {
  void Truncate(int64_t num_tokens) override {
    for (Choice& choice : choices) {
      choice.scores.resize(static_cast<size_t>(num_tokens));
      choice.important.resize(static_cast<size_t>(num_tokens));
    }
    num_narrowed = std::min(num_narrowed, num_tokens);
  }

  std::vector<Choice> choices;
  std::vector<float> max_q, max_k;  // [Hkv, D], up to the append that sets beta.
  std::vector<float> beta;          // [Hkv, D], empty until then.
  int64_t num_narrowed = 0;         // Tokens that have entered the important tier's width.
};

class Mikv final : public CacheMethod {
 public:
  Mikv(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    reference_ = spec.words.contains("reference");
    low_ = {static_cast<int>(spec.Integer("bits", 2)), context.float_type};
    high_ = {static_cast<int>(spec.Integer("high", 16)), context.float_type};
    ratio_ = spec.Real("ratio", reference_ ? 0.0 : 0.2);
    group_ = reference_ ? context.geometry.group()
                        : std::min<int64_t>(128, context.geometry.head_dim / 2);
    CheckGroup(spec.text, group_, context.geometry.head_dim);
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.attention = true;
    needs.queries = true;
    return needs;
  }

  std::unique_ptr<MethodState> NewState(int64_t) const override {
    auto state = std::make_unique<MikvState>();
    state->choices.resize(static_cast<size_t>(NumChoices()));
    state->max_q.assign(static_cast<size_t>(context_.geometry.kv_dim()), 0.0f);
    state->max_k = state->max_q;
    return state;
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    MikvState& state = static_cast<MikvState&>(*opaque);
    const int64_t num_tokens = block.num_tokens();
    AddScores(tokens, num_tokens, state);
    if (state.beta.empty()) {
      UpdateMaxima(tokens, block, state);
      if (num_tokens < kBalancerTokens) return;
      SetBalancer(state);
    }
    if (high_.bits < 16) {
      for (int64_t token = state.num_narrowed; token < num_tokens; ++token) {
        for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
          Quantize(high_, state, token, head, block);
        }
      }
    }
    state.num_narrowed = num_tokens;
    for (int64_t i = 0; i < NumChoices(); ++i) Demote(i, block, state);
  }

  // Codes and floats of both tiers, one tag a token and choice, one float score an important
  // token, and the balancer (before it is set: the two maxima it comes from).
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    if (num_tokens == 0) return 0;
    const int64_t kv_dim = context_.geometry.kv_dim();
    const bool balanced = num_tokens >= kBalancerTokens;
    const int64_t important = balanced ? NumImportant(num_tokens) : num_tokens;
    const int64_t low = AffineBytes(low_, (num_tokens - important) * kv_dim, group_);
    const int64_t high = balanced && high_.bits < 16
                             ? AffineBytes(high_, important * kv_dim, group_)
                             : context_.FloatBytes(important);
    const int64_t tags = ratio_ > 0 ? (num_tokens * NumChoices() + 7) / 8 : 0;
    const int64_t scores = ratio_ > 0 ? important * NumChoices() * 4 : 0;
    const int64_t balancer = context_.FloatBytes(balanced ? 1 : 2);
    return 2 * (low + high) + tags + scores + balancer;
  }
  ByteGrowth Growth(int64_t) const override { return {kBalancerTokens, 1}; }

 private:
  int64_t NumChoices() const { return reference_ ? 1 : context_.geometry.num_kv_heads; }
  int64_t NumImportant(int64_t num_tokens) const {
    return static_cast<int64_t>(std::floor(ratio_ * static_cast<double>(num_tokens)));
  }

  void AddScores(const AppendedTokens& tokens, int64_t num_tokens, MikvState& state) const {
    for (Choice& choice : state.choices) {
      choice.scores.resize(static_cast<size_t>(num_tokens), 0.0);
      choice.important.resize(static_cast<size_t>(num_tokens), 1);
    }
    for (int64_t head = 0; head < context_.geometry.num_kv_heads; ++head) {
      std::vector<double>& scores =
          state.choices[static_cast<size_t>(reference_ ? 0 : head)].scores;
      const double* sums = tokens.attention_sums + head * num_tokens;
      for (size_t token = 0; token < scores.size(); ++token) scores[token] += sums[token];
    }
  }

  void UpdateMaxima(const AppendedTokens& tokens, const SimulatedBlock& block,
                    MikvState& state) const {
    const UniformKvGeometry& geometry = context_.geometry;
    const int64_t dim = geometry.head_dim;
    const int64_t heads_per_kv_head = geometry.num_heads / geometry.num_kv_heads;
    const auto raise = [&](float& most, float x) { most = std::max(most, std::abs(x)); };
    for (int64_t row = 0; row < tokens.count; ++row) {
      for (int64_t head = 0; head < geometry.num_heads; ++head) {
        const float* q = tokens.q + (row * geometry.num_heads + head) * dim;
        float* most = state.max_q.data() + head / heads_per_kv_head * dim;
        for (int64_t i = 0; i < dim; ++i) raise(most[i], q[i]);
      }
      for (int64_t head = 0; head < geometry.num_kv_heads; ++head) {
        const float* k = block.Key(tokens.first + row, head);
        float* most = state.max_k.data() + head * dim;
        for (int64_t i = 0; i < dim; ++i) raise(most[i], k[i]);
      }
    }
  }

  // A channel that is zero everywhere needs no balance.
  static void SetBalancer(MikvState& state) {
    for (size_t i = 0; i < state.max_q.size(); ++i) {
      const bool usable = state.max_q[i] > 0 && state.max_k[i] > 0;
      state.beta.push_back(usable ? std::sqrt(state.max_q[i] / state.max_k[i]) : 1.0f);
    }
  }

  void Quantize(const AffineFormat& format, const MikvState& state, int64_t token, int64_t head,
                SimulatedBlock& block) const {
    const int64_t dim = block.head_dim();
    const float* beta = state.beta.data() + head * dim;
    float* key = block.Key(token, head);
    for (int64_t i = 0; i < dim; ++i) key[i] *= beta[i];
    DamageRow(format, group_, dim, key);
    for (int64_t i = 0; i < dim; ++i) key[i] /= beta[i];
    DamageRow(format, group_, dim, block.Value(token, head));
  }

  // Quantises tokens that are no longer important. The newest stay important, and of the others
  // those with the largest scores; of two equal scores the older token is quantised.
  void Demote(int64_t index, SimulatedBlock& block, MikvState& state) const {
    Choice& choice = state.choices[static_cast<size_t>(index)];
    const int64_t num_tokens = block.num_tokens();
    const int64_t num_important = NumImportant(num_tokens);
    const int64_t num_newest = reference_ ? 0 : (num_important + 1) / 2;
    std::vector<int64_t> candidates;
    for (int64_t token = 0; token < num_tokens - num_newest; ++token) {
      if (choice.important[static_cast<size_t>(token)] != 0) candidates.push_back(token);
    }
    const int64_t num_demoted =
        static_cast<int64_t>(candidates.size()) - (num_important - num_newest);
    if (num_demoted <= 0) return;
    const auto end = candidates.begin() + num_demoted;
    std::partial_sort(candidates.begin(), end, candidates.end(), [&](int64_t a, int64_t b) {
      const double of_a = choice.scores[static_cast<size_t>(a)];
      const double of_b = choice.scores[static_cast<size_t>(b)];
      return of_a != of_b ? of_a < of_b : a < b;
    });
    for (auto token = candidates.begin(); token != end; ++token) {
      choice.important[static_cast<size_t>(*token)] = 0;
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        if (reference_ || head == index) Quantize(low_, state, *token, head, block);
      }
    }
  }

  MethodContext context_;
  AffineFormat low_;
  AffineFormat high_;
  double ratio_ = 0;
  int64_t group_ = 0;
  bool reference_ = false;
};

}  // namespace

SimulatedMethod MikvMethod() {
  return {"mikv",
          "important tokens wide, the others narrow",
          {ChoiceKey("bits", {"4", "3", "2"}, "2", "width of the other tokens"),
           ChoiceKey("high", {"16", "8"}, "16", "width of important tokens"),
           RealKey("ratio", 0, 1, "0.2", "share of important tokens"),
           WordKey("reference", "as PM-KVQ's authors compared it")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Mikv>(spec, context);
          }};
}

}  // namespace pmkvq
