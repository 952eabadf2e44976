// Coupled quantisation, CQ (arXiv 2405.03917, NeurIPS 2024): codebooks of neighbouring channels.
//
// The D channels of a KV head, in order, are D / c groups of c. Each group of each head, side (keys
// before RoPE, values) and block has a codebook of 2^b centroids; a token keeps the index of the
// nearest one, b bits for c channels, and nothing else. The newest W tokens may stay at full
// precision (`window`).
//
// Codebooks come from calibration: k-means over the tokens of the samples, where the weight of a
// token in a group is the sum of the squared gradients of the loss with respect to its c channels
// (the diagonal of the Fisher information), or 1.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <span>

#include "pmkvq/base/error.h"
#include "pmkvq/base/parallel.h"
#include "pmkvq/base/random.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/weighted_kmeans.h"
#include "pmkvq/research/methods/windows.h"

namespace pmkvq {
namespace {

constexpr char kFormName[] = "form";             // [2]: channels, bits.
constexpr char kKeyCodebooks[] = "k_codebooks";  // Per block [Hkv, D / c, 2^b, c].
constexpr char kValueCodebooks[] = "v_codebooks";
constexpr int64_t kTokensPerCentroid = 30;  // Codebooks of fewer tokens fit these tokens alone.
constexpr int64_t kLeastTokens = 8192;
constexpr uint64_t kStartSeed = 2405;
// Rows that calibration holds at once; more blocks than that take several passes over the samples.
constexpr int64_t kMaxRowBytes = int64_t{4} << 30;

// How many channels share a code, and its width.
struct Form {
  int64_t channels = 4;
  int64_t bits = 8;

  int64_t num_centroids() const { return int64_t{1} << bits; }
  std::string Describe() const { return fmt::format("channels={}+bits={}", channels, bits); }
};

Form FormOf(const MethodSpec& spec, const UniformKvGeometry& geometry, const Form& otherwise = {}) {
  const Form form{spec.Integer("channels", otherwise.channels),
                  spec.Integer("bits", otherwise.bits)};
  if (geometry.head_dim % form.channels != 0) {
    throw InvalidInput("--kv", fmt::format("'{}': channels={}, expected a divisor of head_dim {}",
                                           spec.text, form.channels, geometry.head_dim));
  }
  return form;
}

// ---- The cache.

// The form of the file; a form in the SPEC must be the same one.
Form FormOfFile(const MethodSpec& spec, const MethodContext& context) {
  if (context.data == nullptr) {
    throw InvalidInput("--kv", fmt::format("'{}': no codebooks, expected {}", spec.text,
                                           ExpectedMethodData(spec.name)));
  }
  const float* numbers = context.data->Get(kFormName, {2}).As<float>();
  const auto whole = [&](float x, float least, float most) {
    if (x >= least && x <= most && x == std::floor(x)) return static_cast<int64_t>(x);
    throw InvalidInput(context.data->path,
                       fmt::format("{}: found {}, expected a whole number in [{}, {}]", kFormName,
                                   x, least, most));
  };
  const Form made_with{whole(numbers[0], 1, 256), whole(numbers[1], 1, 12)};
  const Form form = FormOf(spec, context.geometry, made_with);
  if (form.channels != made_with.channels || form.bits != made_with.bits) {
    throw InvalidInput(context.data->path, fmt::format("made with {}, expected {}, as in the SPEC",
                                                       made_with.Describe(), form.Describe()));
  }
  return form;
}

class Cq final : public CacheMethod {
 public:
  Cq(const MethodSpec& spec, const MethodContext& context)
      : context_(context), form_(FormOfFile(spec, context)) {
    window_.recent = spec.Integer("window", 0);
    keys_ = ReadCodebooks(kKeyCodebooks);
    values_ = ReadCodebooks(kValueCodebooks);
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.keys_before_rope = true;
    return needs;
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    std::vector<float> distances(static_cast<size_t>(form_.num_centroids()));
    const int64_t end = window_.QuantizedEnd(block.num_tokens());
    for (int64_t token = window_.QuantizedEnd(tokens.first); token < end; ++token) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        Damage(keys_, layer, head, block.Key(token, head), distances);
        Damage(values_, layer, head, block.Value(token, head), distances);
      }
    }
  }

  // Codebooks are weights, one set for all sequences. The codes of a token take whole bytes.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    const int64_t quantized = window_.NumQuantized(num_tokens);
    const int64_t code_bits = context_.geometry.kv_dim() / form_.channels * form_.bits;
    return 2 * (quantized * ((code_bits + 7) / 8) + context_.FloatBytes(num_tokens - quantized));
  }
  ByteGrowth Growth(int64_t) const override { return GrowthOf(window_, window_); }

 private:
  int64_t num_groups() const { return context_.geometry.head_dim / form_.channels; }

  // By block, head and group. Centroids are rounded to the float type, as they would be kept.
  std::vector<Codebook> ReadCodebooks(const char* name) const {
    const UniformKvGeometry& geometry = context_.geometry;
    const Shape shape = {geometry.num_kv_heads, num_groups(), form_.num_centroids(),
                         form_.channels};
    const int64_t size = form_.num_centroids() * form_.channels;
    std::vector<Codebook> codebooks;
    std::vector<float> rounded(static_cast<size_t>(size));
    for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
      const std::string tensor_name = BlockTensorName(name, layer);
      const float* centroids = context_.data->Get(tensor_name, shape).As<float>();
      for (int64_t i = 0; i < geometry.num_kv_heads * num_groups(); ++i, centroids += size) {
        internal::VisitFloatType(context_.float_type, [&]<class T>(T) {
          std::transform(centroids, centroids + size, rounded.begin(),
                         [](float x) { return ToFloat(FromFloat<T>(x)); });
        });
        for (const float x : rounded) {
          if (std::isfinite(x)) continue;
          throw InvalidInput(context_.data->path,
                             fmt::format("{}: a centroid does not fit {}, expected --kv-dtype bf16",
                                         tensor_name, NameOf(context_.float_type)));
        }
        codebooks.emplace_back(rounded.data(), form_.num_centroids(), form_.channels);
      }
    }
    return codebooks;
  }

  void Damage(const std::vector<Codebook>& codebooks, int64_t layer, int64_t head, float* row,
              std::vector<float>& distances) const {
    const int64_t first = (layer * context_.geometry.num_kv_heads + head) * num_groups();
    for (int64_t group = 0; group < num_groups(); ++group, row += form_.channels) {
      const Codebook& codebook = codebooks[static_cast<size_t>(first + group)];
      codebook.Read(codebook.Nearest(row, distances.data()), row);
    }
  }

  MethodContext context_;
  Form form_;
  TokenWindow window_;
  std::vector<Codebook> keys_;
  std::vector<Codebook> values_;
};

// ---- Calibration.

// Of one side of one block: rows of all tokens of all samples, by head and group.
struct Rows {
  std::vector<float> values;   // [Hkv, D / c, tokens, c]
  std::vector<float> weights;  // [Hkv, D / c, tokens]
};

class RowCollector {
 public:
  RowCollector(const UniformKvGeometry& geometry, const Form& form, bool use_gradients,
               const CalibrationContext& calibration)
      : geometry_(geometry), form_(form), use_gradients_(use_gradients), calibration_(calibration) {
    for (const auto& sample : calibration.samples->tokens) num_tokens_ += std::ssize(sample);
  }

  int64_t num_tokens() const { return num_tokens_; }
  // Of K and V of one block.
  int64_t BytesPerBlock() const {
    const int64_t groups = geometry_.kv_dim() / form_.channels;
    return 2 * num_tokens_ * groups * (form_.channels + 1) * static_cast<int64_t>(sizeof(float));
  }

  // [blocks first .. last - 1][K, V]
  std::vector<Rows> Collect(int64_t first, int64_t last) {
    const auto groups = static_cast<size_t>(geometry_.kv_dim() / form_.channels);
    const auto tokens = static_cast<size_t>(num_tokens_);
    std::vector<Rows> all(static_cast<size_t>(2 * (last - first)));
    for (Rows& rows : all) {
      rows.values.resize(groups * tokens * static_cast<size_t>(form_.channels));
      rows.weights.assign(groups * tokens, 1.0f);
    }
    int64_t done = 0;
    Profile<float> profile(*calibration_.model, calibration_.num_threads);
    SampleLoopStep step;
    step.task = "cq blocks " + std::to_string(first) + " to " + std::to_string(last - 1);
    step.num_values = 1;  // The loss; rows are too many to be kept in a checkpoint.
    step.process = [&](std::span<const int32_t> sample, std::span<const int64_t> positions) {
      const auto visit = [&](const BlockStates<float>& states) {
        if (states.layer < first || states.layer >= last) return;
        Rows* rows = all.data() + 2 * (states.layer - first);
        Add(KeysBeforeRope(states, positions), KeyGradients(states, positions), done, rows[0]);
        Add({states.v, states.v + std::ssize(sample) * geometry_.kv_dim()}, ValueGradients(states),
            done, rows[1]);
      };
      const double loss = use_gradients_ ? profile.ForwardBackward(sample, positions, visit)
                                         : profile.Forward(sample, positions, visit);
      done += std::ssize(sample);
      return std::vector<double>{loss};
    };
    LoopOverSamples(calibration_, step);
    return all;
  }

 private:
  // The gradient's rotation is the inverse one times yarn's factor; keys have it twice then.
  std::vector<float> Rotated(const float* rows, const BlockStates<float>& states,
                             std::span<const int64_t> positions) const {
    std::vector<float> rotated(rows, rows + states.num_tokens * geometry_.kv_dim());
    ApplyRopeGrad(calibration_.model->rope(states.layer), positions.data(), states.num_tokens,
                  geometry_.num_kv_heads, rotated.data(), calibration_.num_threads);
    return rotated;
  }
  std::vector<float> KeysBeforeRope(const BlockStates<float>& states,
                                    std::span<const int64_t> positions) const {
    std::vector<float> keys = Rotated(states.k, states, positions);
    const double factor = calibration_.model->rope(states.layer).attention_factor();
    if (factor != 1.0) {
      for (float& x : keys) x = static_cast<float>(double{x} / (factor * factor));
    }
    return keys;
  }
  std::vector<float> KeyGradients(const BlockStates<float>& states,
                                  std::span<const int64_t> positions) const {
    return use_gradients_ ? Rotated(states.dk, states, positions) : std::vector<float>();
  }
  std::vector<float> ValueGradients(const BlockStates<float>& states) const {
    if (!use_gradients_) return {};
    return {states.dv, states.dv + states.num_tokens * geometry_.kv_dim()};
  }

  // Token t of this sample is token first_token + t of all. `gradients` may be empty.
  void Add(const std::vector<float>& x, const std::vector<float>& gradients, int64_t first_token,
           Rows& rows) const {
    const int64_t groups = geometry_.kv_dim() / form_.channels;
    for (int64_t at = 0; at * form_.channels < std::ssize(x); ++at) {
      const int64_t row = at % groups * num_tokens_ + first_token + at / groups;
      const auto begin = static_cast<std::ptrdiff_t>(at * form_.channels);
      std::copy_n(x.begin() + begin, form_.channels,
                  rows.values.begin() + static_cast<std::ptrdiff_t>(row * form_.channels));
      if (gradients.empty()) continue;
      double sum = 0;
      for (int64_t i = 0; i < form_.channels; ++i) {
        const double gradient = double{gradients[static_cast<size_t>(begin + i)]};
        sum += gradient * gradient;
      }
      // Squares of gradients near 1e-20 are no floats any more; only ratios matter.
      rows.weights[static_cast<size_t>(row)] = static_cast<float>(sum * 0x1p40);
    }
  }

  UniformKvGeometry geometry_;
  Form form_;
  bool use_gradients_;
  CalibrationContext calibration_;
  int64_t num_tokens_ = 0;
};

// Codebooks of one side of one block.
Tensor CodebooksOf(const Rows& rows, const MethodSpec& spec, const UniformKvGeometry& geometry,
                   const Form& form, uint64_t side, const CalibrationContext& calibration) {
  const int64_t groups = geometry.head_dim / form.channels;
  const int64_t size = form.num_centroids() * form.channels;
  Tensor tensor(DType::kF32, {geometry.num_kv_heads, groups, form.num_centroids(), form.channels});
  const bool spread = spec.Text("start", "tokens") == "spread";
  const int64_t rounds = spec.Integer("rounds", 30);
  const int64_t num_codebooks = geometry.num_kv_heads * groups;
  const int64_t num_tokens = std::ssize(rows.weights) / num_codebooks;
  const CancelScope cancel(calibration.cancel, "calibrate");
  ParallelFor(calibration.num_threads, num_codebooks, [&](int64_t i, int) {
    const WeightedSamples samples{rows.values.data() + i * num_tokens * form.channels,
                                  rows.weights.data() + i * num_tokens, num_tokens, form.channels};
    const uint64_t seed = StreamSeed(kStartSeed + side, static_cast<uint64_t>(i));
    std::vector<float> centroids = spread ? DrawSpreadSamples(samples, form.num_centroids(), seed)
                                          : DrawSamples(samples, form.num_centroids(), seed);
    WeightedKMeans(samples, rounds, EmptyCluster::kRefill, centroids);
    std::copy(centroids.begin(), centroids.end(), tensor.As<float>() + i * size);
  });
  return tensor;
}

std::map<std::string, Tensor> Calibrate(const MethodSpec& spec, const MethodContext& context,
                                        const CalibrationContext& calibration) {
  const UniformKvGeometry& geometry = context.geometry;
  const Form form = FormOf(spec, geometry);
  CalibrationContext without_checkpoint = calibration;
  without_checkpoint.checkpoint_path.clear();  // All rows: too many to keep.
  RowCollector collector(geometry, form, spec.Text("weights", "fisher") == "fisher",
                         without_checkpoint);
  const int64_t wanted = std::max(kLeastTokens, kTokensPerCentroid * form.num_centroids());
  if (collector.num_tokens() < form.num_centroids()) {
    throw InvalidInput("--n-samples",
                       fmt::format("{} tokens for codebooks of {}, expected {} or more",
                                   collector.num_tokens(), form.num_centroids(), wanted));
  }
  if (collector.num_tokens() < wanted && calibration.log != nullptr) {
    calibration.log->Warning(fmt::format(
        "--n-samples: {} tokens for codebooks of {} fit these tokens alone; take {} or more",
        collector.num_tokens(), form.num_centroids(), wanted));
  }
  std::map<std::string, Tensor> tensors;
  Tensor numbers(DType::kF32, {2});
  numbers.As<float>()[0] = static_cast<float>(form.channels);
  numbers.As<float>()[1] = static_cast<float>(form.bits);
  tensors.emplace(kFormName, std::move(numbers));
  const int64_t at_once = std::max<int64_t>(1, kMaxRowBytes / collector.BytesPerBlock());
  for (int64_t first = 0; first < geometry.num_layers; first += at_once) {
    const int64_t last = std::min(first + at_once, geometry.num_layers);
    const std::vector<Rows> rows = collector.Collect(first, last);
    for (int64_t layer = first; layer < last; ++layer) {
      for (const int64_t side : {0, 1}) {
        tensors.emplace(
            BlockTensorName(side == 0 ? kKeyCodebooks : kValueCodebooks, layer),
            CodebooksOf(rows[static_cast<size_t>(2 * (layer - first) + side)], spec, geometry, form,
                        static_cast<uint64_t>(2 * layer + side), calibration));
      }
    }
  }
  return tensors;
}

}  // namespace

SimulatedMethod CqMethod() {
  return {"cq",
          "codebooks of neighbouring channels, keys before RoPE",
          {FromKey("the codebooks"),
           IntegerKey("channels", 1, 256, "4; with from= the file's", "channels that share a code"),
           IntegerKey("bits", 1, 12, "8; with from= the file's", "width of a code"),
           IntegerKey("window", 0, 4096, "0", "newest tokens at full precision"),
           ChoiceKey("weights", {"fisher", "uniform"}, "fisher",
                     "calibration: weight of a token by its squared gradients, or 1"),
           ChoiceKey("start", {"tokens", "spread"}, "tokens",
                     "calibration: k-means begins with any tokens, or as k-means++"),
           IntegerKey("rounds", 1, 1000, "30", "calibration: most rounds of k-means")},
          [](const MethodSpec& spec, const MethodContext& context)
              -> std::shared_ptr<const CacheMethod> { return std::make_shared<Cq>(spec, context); },
          Calibrate};
}

}  // namespace pmkvq
