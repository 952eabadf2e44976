// Fast KVzip (arXiv 2601.17668; Janghyun1230/FastKVzip): a trained gate scores every token from the
// input of attention when it is stored, and one threshold over all blocks and KV heads decides who
// stays.
//
// At the end of a prompt and after every `every` tokens at most budget * L * Hkv pairs of token and
// KV head are kept, in each head the first tokens and the newest ones among them. Which pairs the
// blocks and heads keep follows from the scores alone, so they keep unlike numbers.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <optional>
#include <tuple>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kv/simulated/simulated_cache.h"
#include "pmkvq/research/methods/eviction.h"
#include "pmkvq/research/methods/fastkvzip_gate.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

constexpr int64_t kScoreBytes = 4;

std::string GatePrefix(int64_t layer) { return fmt::format("gate.{}.", layer); }

struct FastKvZipState : MethodState {
  void Truncate(int64_t num_tokens) override {
    scores.resize(std::min(scores.size(), static_cast<size_t>(num_tokens * num_kv_heads)));
  }
  int64_t num_kv_heads = 1;
  std::vector<float> scores;  // [tokens, Hkv]
};

class FastKvZip final : public CacheMethod {
 public:
  FastKvZip(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    budget_ = spec.Integer("capacity", 1024);
    every_ = spec.Integer("every", 128);
    window_ = spec.Integer("window", 128);
    first_ = spec.Integer("first", 4);
    CheckCapacity(spec, budget_, window_ + first_, "window and first");
    if (context.data == nullptr) {
      throw InvalidInput("--kv", fmt::format("'{}': found no gates, expected {}", spec.text,
                                             ExpectedMethodData("fastkvzip")));
    }
    const UniformKvGeometry& geometry = context.geometry;
    for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
      gates_.emplace_back(context.data->tensors, GatePrefix(layer), geometry.num_kv_heads,
                          geometry.num_heads / geometry.num_kv_heads, context.data->path);
    }
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.attention_input = true;
    needs.token_weights = true;
    needs.steps = true;
    needs.own_bytes = true;
    return needs;
  }

  std::unique_ptr<MethodState> NewState(int64_t) const override {
    auto state = std::make_unique<FastKvZipState>();
    state->num_kv_heads = context_.geometry.num_kv_heads;
    return state;
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    auto& state = static_cast<FastKvZipState&>(*opaque);
    const FastKvZipGate& gate = gates_[static_cast<size_t>(layer)];
    if (gate.width() != tokens.input_width) {
      throw InvalidInput(context_.data->path,
                         fmt::format("gates for inputs of {} values, expected {}", gate.width(),
                                     tokens.input_width));
    }
    state.scores.resize(static_cast<size_t>(block.num_tokens() * block.num_kv_heads()));
    gate.Score(tokens.attention_input, tokens.count,
               state.scores.data() + tokens.first * block.num_kv_heads());
  }

  void OnStep(const StepInfo& step, std::span<SimulatedBlock> blocks,
              std::span<const std::unique_ptr<MethodState>> states) const override {
    const int64_t num_tokens = step.first + step.count;
    if (!step.ends_prompt && num_tokens / every_ == step.first / every_) return;
    std::vector<Pair> pairs;
    int64_t num_kept = 0;
    for (size_t layer = 0; layer < blocks.size(); ++layer) {
      const auto& state = static_cast<const FastKvZipState&>(*states[layer]);
      num_kept += blocks[layer].NumKept();
      for (int64_t head = 0; head < blocks[layer].num_kv_heads(); ++head) {
        for (const int64_t token : KeptTokens(blocks[layer], head, num_tokens - window_)) {
          if (token < first_) continue;
          pairs.push_back({state.scores[static_cast<size_t>(token * state.num_kv_heads + head)],
                           layer, head, token});
        }
      }
    }
    const int64_t surplus = std::min(num_kept - Allowed(), std::ssize(pairs));
    if (surplus <= 0) return;
    // Of equal scores the older tokens go.
    const auto end = pairs.begin() + surplus;
    std::partial_sort(pairs.begin(), end, pairs.end(), [](const Pair& a, const Pair& b) {
      return std::tie(a.score, a.token, a.layer, a.head) <
             std::tie(b.score, b.token, b.layer, b.head);
    });
    for (auto pair = pairs.begin(); pair != end; ++pair) {
      blocks[pair->layer].Evict(pair->token, pair->head);
    }
  }

  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return num_tokens * context_.geometry.num_kv_heads * PairBytes();
  }
  ByteGrowth Growth(int64_t) const override { return {}; }
  int64_t BytesNow(int64_t, const SimulatedBlock& block, const MethodState*) const override {
    return block.NumKept() * PairBytes();
  }
  std::optional<int64_t> SequenceBytes(int64_t num_tokens) const override {
    return std::min(num_tokens, budget_ + every_) * NumHeads() * PairBytes();
  }

 private:
  struct Pair {
    float score;
    size_t layer;
    int64_t head;
    int64_t token;
  };

  // Of all blocks.
  int64_t NumHeads() const { return context_.geometry.num_layers * context_.geometry.num_kv_heads; }
  int64_t Allowed() const { return budget_ * NumHeads(); }
  int64_t PairBytes() const { return HeadTokenBytes(context_) + kScoreBytes; }

  MethodContext context_;
  std::vector<FastKvZipGate> gates_;  // Per block.
  int64_t budget_ = 0;
  int64_t every_ = 0;
  int64_t window_ = 0;
  int64_t first_ = 0;
};

// Keeps what gates are trained with: the inputs of attention of the first half of a text that is
// repeated, and the largest attention weight that the repetition gives each of its tokens.
class Recorder final : public CacheMethod {
 public:
  explicit Recorder(const UniformKvGeometry& geometry) : geometry_(geometry) {}

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.attention_input = true;
    needs.queries = true;
    return needs;
  }
  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    const int64_t half = tokens.count / 2;
    width = tokens.input_width;
    inputs[layer].assign(tokens.attention_input, tokens.attention_input + half * width);
    std::vector<float>& of_layer = targets[layer];
    of_layer.assign(static_cast<size_t>(half * geometry_.num_kv_heads), 0.0f);
    for (int64_t head = 0; head < geometry_.num_heads; ++head) {
      AddHead(head, half, tokens, block, of_layer);
    }
  }
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override { return num_tokens; }
  ByteGrowth Growth(int64_t) const override { return {}; }

  mutable int64_t width = 0;
  mutable std::map<int64_t, std::vector<float>> inputs;   // By block, [half, E]
  mutable std::map<int64_t, std::vector<float>> targets;  // By block, [half, Hkv]

 private:
  void AddHead(int64_t head, int64_t half, const AppendedTokens& tokens,
               const SimulatedBlock& block, std::vector<float>& of_layer) const {
    const int64_t dim = geometry_.head_dim;
    const int64_t kv_head = head / (geometry_.num_heads / geometry_.num_kv_heads);
    std::vector<float> keys;
    for (int64_t token = 0; token < 2 * half; ++token) {
      const float* const k = block.Key(token, kv_head);
      keys.insert(keys.end(), k, k + dim);
    }
    constexpr int64_t kRows = 128;  // Of queries at a time.
    std::vector<float> scores(static_cast<size_t>(kRows * 2 * half));
    const int64_t stride = geometry_.num_heads * dim;
    for (int64_t first = 0; first < half; first += kRows) {
      CancelPoint();
      const int64_t count = std::min(kRows, half - first);
      BlasGemm(false, true, count, 2 * half, dim, 1.0f / std::sqrt(static_cast<float>(dim)),
               tokens.q + (half + first) * stride + head * dim, stride, keys.data(), dim, 0.0f,
               scores.data(), 2 * half);
      for (int64_t row = 0; row < count; ++row) {
        RaiseTargets(scores.data() + row * 2 * half, half, half + first + row + 1, kv_head,
                     of_layer);
      }
    }
  }

  // By the scores of one query of the repetition, which sees `visible` tokens.
  void RaiseTargets(const float* scores, int64_t half, int64_t visible, int64_t kv_head,
                    std::vector<float>& of_layer) const {
    const float largest = *std::max_element(scores, scores + visible);
    double sum = 0;
    for (int64_t i = 0; i < visible; ++i) sum += std::exp(double{scores[i] - largest});
    for (int64_t token = 0; token < half; ++token) {
      float& target = of_layer[static_cast<size_t>(token * geometry_.num_kv_heads + kv_head)];
      target =
          std::max(target, static_cast<float>(std::exp(double{scores[token] - largest}) / sum));
    }
  }

  UniformKvGeometry geometry_;
};

struct TrainingSet {
  int64_t width = 0;
  std::vector<std::vector<float>> inputs;   // By block, [tokens, E]
  std::vector<std::vector<float>> targets;  // By block, [tokens, Hkv]
};

// Each sample followed by itself, as one text.
TrainingSet Record(const MethodContext& context, const CalibrationContext& calibration) {
  TrainingSet set;
  set.inputs.resize(static_cast<size_t>(context.geometry.num_layers));
  set.targets = set.inputs;
  const Model& model = *calibration.model;
  for (const std::vector<int32_t>& sample : calibration.samples->tokens) {
    CancelPoint();
    const auto half =
        std::min<int64_t>(std::ssize(sample), model.config().max_position_embeddings / 2);
    std::vector<int32_t> tokens(sample.begin(), sample.begin() + half);
    tokens.insert(tokens.end(), sample.begin(), sample.begin() + half);
    const auto recorder = std::make_shared<Recorder>(context.geometry);
    SimulatedConfig config;
    config.geometry = context.geometry;
    config.float_type = DType::kF32;
    config.budget_bytes.assign(set.inputs.size(), 2 * half);
    config.num_threads = calibration.num_threads;
    SimulatedKvCache store(config, recorder);
    ForwardChunk chunk;
    chunk.seq = store.Open().value();
    chunk.tokens = tokens;
    chunk.logits = ForwardChunk::Logits::kNone;
    (void)store.Reserve(chunk.seq, 2 * half);
    ForwardWorkspace workspace;
    ThrowIfFailed(model.Forward({&chunk, 1}, store, workspace, calibration.num_threads));
    set.width = recorder->width;
    for (size_t layer = 0; layer < set.inputs.size(); ++layer) {
      const auto at = static_cast<int64_t>(layer);
      const auto append = [](const std::vector<float>& from, std::vector<float>& to) {
        to.insert(to.end(), from.begin(), from.end());
      };
      append(recorder->inputs.at(at), set.inputs[layer]);
      append(recorder->targets.at(at), set.targets[layer]);
    }
    if (calibration.progress != nullptr) calibration.progress->Advance(1);
  }
  return set;
}

// Steps of at most 1000 tokens each, drawn from all samples.
void Train(const std::vector<float>& inputs, const std::vector<float>& targets,
           int64_t num_kv_heads, int64_t num_steps, uint64_t seed, FastKvZipGate& gate) {
  constexpr int64_t kMostTokens = 1000;
  constexpr float kRate = 0.2f;
  constexpr float kMomentum = 0.9f;
  const int64_t width = gate.width();
  const int64_t num_tokens = std::ssize(inputs) / width;
  const int64_t count = std::min(num_tokens, kMostTokens);
  Random random(seed);
  std::vector<float> h(static_cast<size_t>(count * width));
  std::vector<float> wanted(static_cast<size_t>(count * num_kv_heads));
  for (int64_t step = 0; step < num_steps; ++step) {
    CancelPoint();
    for (int64_t row = 0; row < count; ++row) {
      const auto token = static_cast<int64_t>(random.Below(static_cast<uint64_t>(num_tokens)));
      std::copy_n(inputs.data() + token * width, width, h.data() + row * width);
      std::copy_n(targets.data() + token * num_kv_heads, num_kv_heads,
                  wanted.data() + row * num_kv_heads);
    }
    gate.Step(h.data(), count, wanted.data(), kRate, kMomentum);
  }
}

std::map<std::string, Tensor> CalibrateGates(const MethodSpec& spec, const MethodContext& context,
                                             const CalibrationContext& calibration) {
  const CancelScope cancellable(calibration.cancel, "fastkvzip");
  const UniformKvGeometry& geometry = context.geometry;
  const int64_t num_steps = spec.Integer("steps", 1000);
  const auto num_samples = std::ssize(calibration.samples->tokens);
  if (calibration.progress != nullptr) {
    calibration.progress->Begin("fastkvzip samples, then blocks", num_samples + geometry.num_layers,
                                0);
  }
  const TrainingSet set = Record(context, calibration);
  std::map<std::string, Tensor> tensors;
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    const auto index = static_cast<size_t>(layer);
    const uint64_t seed = StreamSeed(0x6a7e, static_cast<uint64_t>(layer));
    FastKvZipGate gate(geometry.num_kv_heads, geometry.num_heads / geometry.num_kv_heads, set.width,
                       seed);
    Train(set.inputs[index], set.targets[index], geometry.num_kv_heads, num_steps, seed + 1, gate);
    gate.WriteTo(GatePrefix(layer), tensors);
    if (calibration.progress != nullptr) calibration.progress->Advance(1);
  }
  if (calibration.progress != nullptr) calibration.progress->End();
  return tensors;
}

}  // namespace

SimulatedMethod FastKvZipMethod() {
  return {"fastkvzip",
          "a trained gate scores tokens; one threshold over all blocks and heads evicts",
          {FromKey("gates"), CapacityKey("1024"),
           EveryKey("128", "tokens after which the surplus is evicted"),
           IntegerKey("window", 0, 4096, "128", "newest tokens, which are kept"),
           IntegerKey("first", 0, 4096, "4", "first tokens, which are kept"),
           IntegerKey("steps", 1, 1000000, "1000", "of training, for calibrate")},
          [](const MethodSpec& spec,
             const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
            return std::make_shared<FastKvZip>(spec, context);
          },
          CalibrateGates};
}

}  // namespace pmkvq
