// QAQ (arXiv 2403.04643): widths per token, from what an error of a key or value does to scores and
// outputs.
//
// A unit is a token and KV head, or a token and block. Keys ask for bits by their range alone,
// values by their range and the largest attention weight on the token in the last W rows
// (qaq_rule.h). A share of a unit's values, the largest and smallest, stays at full precision.
//
// The published method changes widths of old tokens at every step, from originals that it keeps in
// host memory. Here damage is final: blocks of 64 tokens get their widths when the newest W - 1
// tokens lie behind them, and each block has room for B bits a value on average, so that bytes
// follow from the length. Widths by the rule are lowered, or raised, until they fill the room
// (QaqFit). Newer tokens stay at full precision.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <deque>
#include <span>

#include "pmkvq/base/error.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/methods/qaq_rule.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

constexpr int64_t kQaqBlock = 64;
constexpr int64_t kTagBits = 4;
constexpr int64_t kOutlierIndexBytes = 2;
constexpr double kQuantile = 0.9;     // Of squared norms of queries.
constexpr char kQueryPower[] = "q2";  // [L]

struct QaqState final : MethodState {
  void Truncate(int64_t num_tokens) override {
    while (!queries.empty() && queries.back().token >= num_tokens) queries.pop_back();
  }

  struct Query {
    int64_t token = 0;
    std::vector<float> q;  // [H, D]
  };
  std::deque<Query> queries;  // Of the newest W tokens.
};

class Qaq final : public CacheMethod {
 public:
  Qaq(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    rule_.reference = spec.words.contains("reference");
    rule_.key_error = spec.Real("eps-k", rule_.key_error);
    rule_.value_error = spec.Real("eps-v", rule_.value_error);
    rule_.outliers = spec.Real("outliers", rule_.outliers);
    rule_.metadata_type = context.float_type;
    bits_ = spec.Integer("bits", 4);
    by_head_ = spec.Text("unit", "head") == "head";
    num_rows_ = spec.Integer("rows", 5);
    window_.recent = num_rows_ - 1;
    window_.block = kQaqBlock;
    const int64_t num_layers = context.geometry.num_layers;
    query_powers_.assign(static_cast<size_t>(num_layers), spec.Real("q2", rule_.query_power));
    if (context.data == nullptr) return;
    if (spec.keys.contains("q2")) {
      throw InvalidInput(
          "--kv", fmt::format("'{}': q2={}, expected it or from=", spec.text, spec.keys.at("q2")));
    }
    const float* powers = context.data->Get(kQueryPower, {num_layers}).As<float>();
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      if (powers[layer] <= 0) {
        throw InvalidInput(
            context.data->path,
            fmt::format("{}: found {}, expected a number above 0", kQueryPower, powers[layer]));
      }
      query_powers_[static_cast<size_t>(layer)] = double{powers[layer]};
    }
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.queries = true;
    return needs;
  }
  std::unique_ptr<MethodState> NewState(int64_t) const override {
    return std::make_unique<QaqState>();
  }

  // Token by token, so that the cuts of a prompt do not matter.
  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    QaqState& state = static_cast<QaqState&>(*opaque);
    const int64_t width = context_.geometry.num_heads * context_.geometry.head_dim;
    for (int64_t i = 0; i < tokens.count; ++i) {
      const int64_t token = tokens.first + i;
      if (std::ssize(state.queries) == num_rows_) state.queries.pop_front();
      const float* q = tokens.q + i * width;
      state.queries.push_back({token, {q, q + width}});
      const int64_t first = window_.QuantizedEnd(token);
      if (window_.QuantizedEnd(token + 1) > first) {
        CloseBlock(layer, first, token + 1, state, block);
      }
    }
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    const UniformKvGeometry& geometry = context_.geometry;
    const int64_t quantized = window_.NumQuantized(num_tokens);
    const auto float_bytes = static_cast<int64_t>(SizeOf(context_.float_type));
    const int64_t units = by_head_ ? geometry.num_kv_heads : 1;
    const int64_t outliers = 2 * QaqOutliersPerEnd(rule_, geometry.kv_dim() / units);
    const int64_t token_bytes =
        units * (2 * float_bytes + outliers * (float_bytes + kOutlierIndexBytes));
    const int64_t block_bytes =
        kQaqBlock * geometry.kv_dim() * bits_ / 8 + (kQaqBlock * units * kTagBits + 7) / 8;
    const int64_t queries =
        std::min(num_tokens, num_rows_) * geometry.num_heads * geometry.head_dim * float_bytes;
    return 2 * (quantized / kQaqBlock * block_bytes + quantized * token_bytes +
                context_.FloatBytes(num_tokens - quantized)) +
           queries;
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(window_, window_); }

 private:
  // Largest weight of each token of the block in the last rows, by unit: [units, kQaqBlock].
  std::vector<double> LargestWeights(int64_t first, const QaqState& state,
                                     const SimulatedBlock& block) const {
    const UniformKvGeometry& geometry = context_.geometry;
    const int64_t group = geometry.num_heads / geometry.num_kv_heads;
    const int64_t units = by_head_ ? geometry.num_kv_heads : 1;
    // Of queries that a truncation took away nothing is known: such tokens get bits by their range.
    std::vector<double> largest(static_cast<size_t>(units * kQaqBlock),
                                state.queries.empty() ? 1.0 : 0.0);
    std::vector<double> weights;
    for (const QaqState::Query& query : state.queries) {
      for (int64_t head = 0; head < geometry.num_heads; ++head) {
        Softmax(query, head, head / group, block, weights);
        double* unit = largest.data() + (by_head_ ? head / group : 0) * kQaqBlock;
        for (int64_t i = 0; i < kQaqBlock; ++i) {
          unit[i] = std::max(unit[i], weights[static_cast<size_t>(first + i)]);
        }
      }
    }
    return largest;
  }

  // Weights of tokens 0 .. query.token.
  void Softmax(const QaqState::Query& query, int64_t head, int64_t kv_head,
               const SimulatedBlock& block, std::vector<double>& weights) const {
    const int64_t dim = context_.geometry.head_dim;
    const double scale = 1 / std::sqrt(static_cast<double>(dim));
    const float* q = query.q.data() + head * dim;
    weights.clear();
    for (int64_t token = 0; token <= query.token; ++token) {
      const float* key = block.Key(token, kv_head);
      double score = 0;
      for (int64_t i = 0; i < dim; ++i) score += double{q[i]} * double{key[i]};
      weights.push_back(score * scale);
    }
    const double most = *std::max_element(weights.begin(), weights.end());
    double sum = 0;
    for (double& weight : weights) sum += weight = std::exp(weight - most);
    for (double& weight : weights) weight /= sum;
  }

  void CloseBlock(int64_t layer, int64_t first, int64_t num_tokens, const QaqState& state,
                  SimulatedBlock& block) const {
    QaqRule rule = rule_;
    rule.query_power = query_powers_[static_cast<size_t>(layer)];
    const std::vector<double> weights = LargestWeights(first, state, block);
    const int64_t units = by_head_ ? block.num_kv_heads() : 1;
    for (int64_t unit = 0; unit < units; ++unit) {
      for (const bool keys : {true, false}) {
        DamageUnit(rule, first, num_tokens, unit, keys, weights.data() + unit * kQaqBlock, block);
      }
    }
  }

  void DamageUnit(const QaqRule& rule, int64_t first, int64_t num_tokens, int64_t unit, bool keys,
                  const double* weights, SimulatedBlock& block) const {
    const int64_t dim = block.head_dim();
    const int64_t first_head = by_head_ ? unit : 0;
    const int64_t end_head = by_head_ ? unit + 1 : block.num_kv_heads();
    const auto row = [&](int64_t token, int64_t head) {
      return keys ? block.Key(token, head) : block.Value(token, head);
    };
    std::vector<std::vector<float>> values;
    std::vector<QaqValues> looked_at;
    std::vector<int> wanted;
    for (int64_t i = 0; i < kQaqBlock; ++i) {
      std::vector<float> token;
      for (int64_t head = first_head; head < end_head; ++head) {
        token.insert(token.end(), row(first + i, head), row(first + i, head) + dim);
      }
      looked_at.push_back(QaqLookAt(rule, token));
      wanted.push_back(keys ? QaqKeyBits(rule, looked_at.back(), num_tokens)
                            : QaqValueBits(rule, looked_at.back(), num_tokens, weights[i]));
      values.push_back(std::move(token));
    }
    const std::vector<int> given = QaqFit(rule, wanted, kQaqBlock * bits_);
    for (size_t i = 0; i < values.size(); ++i) {
      QaqDamage(rule, looked_at[i], given[i], values[i]);
      for (int64_t head = first_head; head < end_head; ++head) {
        std::copy_n(values[i].begin() + (head - first_head) * dim, dim,
                    row(first + static_cast<int64_t>(i), head));
      }
    }
  }

  MethodContext context_;
  QaqRule rule_;
  int64_t bits_ = 4;
  int64_t num_rows_ = 5;
  bool by_head_ = true;
  TokenWindow window_;
  std::vector<double> query_powers_;  // Per block.
};

// Per block, the 0.9 quantile over tokens and heads of |q|^2 / D: queries as scores have them. The
// published code leaves the division out.
std::map<std::string, Tensor> Calibrate(const MethodSpec&, const MethodContext& context,
                                        const CalibrationContext& calibration) {
  const UniformKvGeometry& geometry = context.geometry;
  CalibrationContext without_checkpoint = calibration;
  without_checkpoint.checkpoint_path.clear();  // A number for each token, head and block.
  std::vector<std::vector<float>> powers(static_cast<size_t>(geometry.num_layers));
  Profile<float> profile(*calibration.model, calibration.num_threads);
  SampleLoopStep step;
  step.task = "qaq";
  step.num_values = 1;  // The loss.
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    const double loss = profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
      const float* q = states.q;
      for (int64_t i = 0; i < states.num_tokens * geometry.num_heads; ++i) {
        double squares = 0;
        for (int64_t j = 0; j < geometry.head_dim; ++j, ++q) squares += double{*q} * double{*q};
        powers[static_cast<size_t>(states.layer)].push_back(
            static_cast<float>(squares / static_cast<double>(geometry.head_dim)));
      }
    });
    return std::vector<double>{loss};
  };
  LoopOverSamples(without_checkpoint, step);

  Tensor tensor(DType::kF32, {geometry.num_layers});
  for (size_t layer = 0; layer < powers.size(); ++layer) {
    std::vector<float>& of_block = powers[layer];
    const auto place = static_cast<size_t>(kQuantile * static_cast<double>(of_block.size() - 1));
    const auto at = of_block.begin() + static_cast<std::ptrdiff_t>(place);
    std::nth_element(of_block.begin(), at, of_block.end());
    tensor.As<float>()[layer] = *at;
  }
  std::map<std::string, Tensor> tensors;
  tensors.emplace(kQueryPower, std::move(tensor));
  return tensors;
}

}  // namespace

SimulatedMethod QaqMethod() {
  return {"qaq",
          "widths per token by range and attention, within a fixed room",
          {IntegerKey("bits", 1, 8, "4", "average width that blocks of 64 tokens have room for"),
           ChoiceKey("unit", {"head", "layer"}, "head", "part of a token that one width is for"),
           RealKey("outliers", 0, 0.5, "0.01", "share of values at full precision"),
           RealKey("eps-k", 1e-6, 1e6, "3", "error of scores that is allowed"),
           RealKey("eps-v", 1e-6, 1e6, "0.05", "error of outputs that is allowed"),
           RealKey("q2", 1e-6, 1e12, "300", "squared norm of large queries, in place of from="),
           FromKey("the squared norm of large queries in each block"),
           IntegerKey("rows", 1, 64, "5", "newest rows of attention that are looked at"),
           WordKey("reference", "the authors' code where it differs from the paper")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<Qaq>(spec, context);
          },
          Calibrate};
}

}  // namespace pmkvq
