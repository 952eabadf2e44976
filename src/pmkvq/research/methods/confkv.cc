// CONF-KV (arXiv 2605.24786; no code published): after each token the budget of tokens follows from
// how sure the model is of the next one, and each KV head keeps as many: the sink, the newest
// tokens, and the best others by attention and recency. Kept tokens older than the newest are
// 8-bit.
//
// A <- 0.95 A + new attention per token and KV head; an append of many tokens adds its sum at once.
// A budget that rises again can only be filled by new tokens.
#include "pmkvq/research/methods/confkv.h"

#include <algorithm>
#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/eviction.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

constexpr double kDecay = 0.95;

struct ConfKvState : MethodState {
  void Truncate(int64_t num_tokens) override {
    for (auto& head : attention) head.resize(static_cast<size_t>(num_tokens));
    num_narrowed = std::min(num_narrowed, num_tokens);
  }
  std::vector<std::vector<double>> attention;  // By KV head and token.
  int64_t num_narrowed = 0;  // Of the first tokens, those behind the sink that have 8 bits.
};

class ConfKv final : public CacheMethod {
 public:
  ConfKv(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    rule_.min_budget = spec.Integer("min", rule_.min_budget);
    rule_.max_budget = spec.Integer("max", rule_.max_budget);
    rule_.sink = spec.Integer("sink", rule_.sink);
    rule_.window = spec.Integer("window", rule_.window);
    rule_.recency = spec.Real("recency", rule_.recency);
    rule_.num_layers = context.geometry.num_layers;
    if (rule_.max_budget < rule_.min_budget) {
      throw InvalidInput("--kv", "'" + spec.text + "': max is less than min, expected min or more");
    }
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.attention = true;
    needs.token_weights = true;
    needs.steps = true;
    needs.logits = true;
    needs.own_bytes = true;
    return needs;
  }

  std::unique_ptr<MethodState> NewState(int64_t) const override {
    auto state = std::make_unique<ConfKvState>();
    state->attention.resize(static_cast<size_t>(context_.geometry.num_kv_heads));
    return state;
  }

  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    auto& state = static_cast<ConfKvState&>(*opaque);
    const int64_t num_tokens = block.num_tokens();
    const double left = std::pow(kDecay, static_cast<double>(tokens.count));
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      std::vector<double>& attention = state.attention[static_cast<size_t>(head)];
      attention.resize(static_cast<size_t>(num_tokens), 0.0);
      const double* const sums = tokens.attention_sums + head * num_tokens;
      for (size_t i = 0; i < attention.size(); ++i) attention[i] = left * attention[i] + sums[i];
    }
    const int64_t end = num_tokens - rule_.window;
    for (int64_t token = std::max(state.num_narrowed, rule_.sink); token < end; ++token) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        if (!block.IsKept(token, head)) continue;
        DamageSymmetric8(context_.float_type, block.head_dim(), block.Key(token, head));
        DamageSymmetric8(context_.float_type, block.head_dim(), block.Value(token, head));
      }
    }
    state.num_narrowed = std::max(state.num_narrowed, end);
  }

  void OnStep(const StepInfo& step, std::span<SimulatedBlock> blocks,
              std::span<const std::unique_ptr<MethodState>> states) const override {
    // Within a prompt nothing is known of the next token: the largest budget.
    const double budget = step.logits.empty() ? static_cast<double>(rule_.max_budget)
                                              : rule_.Budget(ConfKvRule::Confidence(step.logits));
    for (size_t layer = 0; layer < blocks.size(); ++layer) {
      const int64_t kept = rule_.BlockBudget(budget, static_cast<int64_t>(layer));
      const auto& state = static_cast<const ConfKvState&>(*states[layer]);
      for (int64_t head = 0; head < blocks[layer].num_kv_heads(); ++head) {
        Evict(head, kept, state.attention[static_cast<size_t>(head)], blocks[layer]);
      }
    }
  }

  // Of the largest budget, and the token that is stored before the rule runs.
  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override {
    const int64_t most = LeastKept() + 1;
    const int64_t bound = rule_.BlockBudget(static_cast<double>(rule_.max_budget), layer) + 1;
    const int64_t kept = std::min(num_tokens, std::max(most, bound));
    return Bytes(kept * context_.geometry.num_kv_heads,
                 std::min(kept, LeastKept()) * context_.geometry.num_kv_heads);
  }
  ByteGrowth Growth(int64_t) const override { return {}; }

  int64_t BytesNow(int64_t, const SimulatedBlock& block, const MethodState*) const override {
    return Bytes(block.NumKept(), std::min(block.num_tokens(), LeastKept()) * block.num_kv_heads());
  }

 private:
  int64_t LeastKept() const { return rule_.sink + rule_.window; }

  // Of `kept` pairs of token and KV head, `wide` of them at full precision: values, a scale each of
  // K and V, and a float of attention.
  int64_t Bytes(int64_t kept, int64_t wide) const {
    const auto float_bytes = static_cast<int64_t>(SizeOf(context_.float_type));
    const int64_t narrow = kept - wide;
    return wide * HeadTokenBytes(context_) +
           narrow * 2 * (context_.geometry.head_dim + float_bytes) + 4 * kept;
  }

  void Evict(int64_t head, int64_t num_kept, const std::vector<double>& attention,
             SimulatedBlock& block) const {
    if (block.NumKept(head) <= num_kept) return;
    std::vector<int64_t> others;
    for (const int64_t token : KeptTokens(block, head, block.num_tokens() - rule_.window)) {
      if (token >= rule_.sink) others.push_back(token);
    }
    const std::vector<double> all = rule_.Scores(attention);
    std::vector<double> scores;
    for (const int64_t token : others) scores.push_back(all[static_cast<size_t>(token)]);
    KeepLargest(scores, others, num_kept - LeastKept(), head, block);
  }

  MethodContext context_;
  ConfKvRule rule_;
};

}  // namespace

double ConfKvRule::Confidence(std::span<const float> logits) {
  if (logits.size() < 2) return 1;
  const double largest = *std::max_element(logits.begin(), logits.end());
  double sum = 0;
  double weighted = 0;  // Of score and weight.
  for (const float logit : logits) {
    const double score = double{logit} - largest;
    const double weight = std::exp(score);
    sum += weight;
    if (weight > 0) weighted += weight * score;
  }
  const double entropy = std::log(sum) - weighted / sum;
  return 1 - entropy / std::log(static_cast<double>(logits.size()));
}

double ConfKvRule::Budget(double confidence) const {
  return static_cast<double>(min_budget) +
         (1 - confidence) * static_cast<double>(max_budget - min_budget);
}

int64_t ConfKvRule::BlockBudget(double budget, int64_t layer) const {
  const double ratio = num_layers == 1
                           ? 1.0
                           : 1.5 - static_cast<double>(layer) / static_cast<double>(num_layers - 1);
  return static_cast<int64_t>(std::floor(budget * ratio));
}

std::vector<double> ConfKvRule::Scores(std::span<const double> attention) const {
  const auto count = static_cast<double>(attention.size());
  const double largest =
      attention.empty() ? 0 : *std::max_element(attention.begin(), attention.end());
  std::vector<double> scores;
  for (size_t i = 0; i < attention.size(); ++i) {
    const double share = largest > 0 ? attention[i] / largest : 0;
    scores.push_back((1 - recency) * share + recency * static_cast<double>(i + 1) / count);
  }
  return scores;
}

void DamageSymmetric8(DType type, int64_t count, float* x) {
  CheckFinite(x, count);
  float largest = 0;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(x[i]));
  float scale = largest / 127;
  if (type == DType::kF16) scale = ToFloat(ToF16(scale));
  if (type == DType::kBF16) scale = ToFloat(ToBF16(scale));
  for (int64_t i = 0; i < count; ++i) {
    x[i] = scale > 0 ? std::clamp(std::nearbyint(x[i] / scale), -127.0f, 127.0f) * scale : 0.0f;
  }
}

SimulatedMethod ConfKvMethod() {
  return {"confkv",
          "evicts by attention, more where the model is sure of the next token; older tokens "
          "at 8 bits",
          {IntegerKey("min", 16, 1 << 20, "256", "tokens that are kept where it is sure"),
           IntegerKey("max", 16, 1 << 20, "1024", "tokens that are kept where it is not"),
           IntegerKey("sink", 0, 4096, "4", "first tokens, which are kept"),
           IntegerKey("window", 1, 4096, "64", "newest tokens, which are kept at full precision"),
           RealKey("recency", 0, 1, "0.1", "weight of a token's place against its attention")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<ConfKv>(spec, context);
          }};
}

}  // namespace pmkvq
