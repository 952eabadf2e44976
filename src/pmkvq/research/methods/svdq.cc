// SVDq (arXiv 2502.15304): keys as latents in a basis of singular vectors, widths by singular
// value.
//
// Keys of a block, all KV heads together (C channels): their mean, and the right singular vectors
// of the differences from it; latent = (k - mean) V. Latent channels, by falling singular value in
// eight equal groups, have the widths of `widths`; a width of 0 drops them. Latents are quantised
// per channel. Values stay at full precision.
//
// basis=prompt: mean and basis come from the prompt, when its last token is there; its latents have
// one range per channel. Until then all is at full precision. With from=FILE they come from
// calibration. Other tokens are quantised in groups of G as soon as one is full.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <span>
#include <string_view>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"
#include "pmkvq/kernels/linalg/eigen.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/simulated_method.h"
#include "pmkvq/research/methods/stored_float.h"

namespace pmkvq {
namespace {

constexpr char kMean[] = "mean";      // Per block [C].
constexpr char kBasis[] = "basis";    // Per block [C, C]: row i is the vector of the i-th value.
constexpr char kRopeSide[] = "rope";  // [1]: 1 before RoPE, 0 after.
constexpr int64_t kNumWidths = 8;
// Directions whose singular value is below this share of the largest one are noise of rounding.
constexpr double kLeastShare = 1e-6;

using Widths = std::array<int, kNumWidths>;

// The digits of the key, widest first.
Widths ReadWidths(const MethodSpec& spec) {
  int64_t digits = spec.Integer("widths", 84211000);
  Widths widths{};
  for (auto width = widths.rbegin(); width != widths.rend(); ++width, digits /= 10) {
    *width = static_cast<int>(digits % 10);
  }
  if (!std::is_sorted(widths.rbegin(), widths.rend()) || widths.front() > 8) {
    throw InvalidInput("--kv", fmt::format("'{}': widths={}, expected eight digits from 8 to 0, "
                                           "none larger than the one before",
                                           spec.text, spec.Text("widths", "")));
  }
  return widths;
}

bool IsBeforeRope(const MethodSpec& spec) { return spec.Text("rope", "after") == "before"; }

// Mean and stored directions; floats as they are kept.
struct Basis {
  std::vector<float> mean;            // [C]
  std::vector<float> vectors;         // [r, C]
  std::vector<AffineFormat> formats;  // [r]
};

struct SvdqState final : MethodState {
  void Truncate(int64_t num_tokens) override {
    num_prompt = std::min(num_prompt, num_tokens);
    num_coded = std::min(num_coded, num_tokens);
  }

  Basis basis;             // Without from=; no mean yet: the prompt has not ended.
  int64_t num_prompt = 0;  // Tokens that share a range.
  int64_t num_coded = 0;
};

class Svdq final : public CacheMethod {
 public:
  Svdq(const MethodSpec& spec, const MethodContext& context)
      : context_(context), widths_(ReadWidths(spec)) {
    before_rope_ = IsBeforeRope(spec);
    group_ = spec.Integer("group", 32);
    eta_ = static_cast<float>(spec.Real("eta1", 1.0 / 6));
    if (context.data == nullptr) return;
    if (spec.keys.contains("basis")) {
      throw InvalidInput("--kv",
                         fmt::format("'{}': basis=prompt, expected it or from=", spec.text));
    }
    const float side = context.data->Get(kRopeSide, {1}).As<float>()[0];
    if ((side != 0) != before_rope_) {
      throw InvalidInput(context.data->path,
                         fmt::format("made with rope={}, expected {}, as in the SPEC",
                                     side != 0 ? "before" : "after", spec.Text("rope", "after")));
    }
    const int64_t width = context.geometry.kv_dim();
    for (int64_t layer = 0; layer < context.geometry.num_layers; ++layer) {
      const float* mean = context.data->Get(BlockTensorName(kMean, layer), {width}).As<float>();
      const float* basis =
          context.data->Get(BlockTensorName(kBasis, layer), {width, width}).As<float>();
      bases_.push_back(StoredBasis({mean, mean + width}, {basis, basis + width * width}, width));
    }
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.keys_before_rope = before_rope_;
    needs.own_bytes = bases_.empty();
    return needs;
  }
  std::unique_ptr<MethodState> NewState(int64_t) const override {
    return std::make_unique<SvdqState>();
  }

  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* opaque) const override {
    SvdqState& state = static_cast<SvdqState&>(*opaque);
    if (bases_.empty() && state.basis.mean.empty()) {
      if (!tokens.ends_prompt) return;
      state.basis = BasisOf(block);
      state.num_prompt = block.num_tokens();
      Damage(state.basis, 0, block.num_tokens(), block);
      state.num_coded = block.num_tokens();
    }
    const Basis& basis = bases_.empty() ? state.basis : bases_[static_cast<size_t>(layer)];
    for (; state.num_coded + group_ <= block.num_tokens(); state.num_coded += group_) {
      Damage(basis, state.num_coded, group_, block);
    }
  }

  // With a basis of the prompt a bound, as a prompt is of any length: nothing coded, and the basis.
  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override {
    if (num_tokens == 0) return 0;
    if (bases_.empty()) {
      const int64_t stored = NumStored(context_.geometry.kv_dim());
      return 2 * context_.FloatBytes(num_tokens) + BasisBytes(stored) + RangeBytes(stored);
    }
    const Basis& basis = bases_[static_cast<size_t>(layer)];
    const int64_t coded = num_tokens / group_ * group_;
    return CodedBytes(basis, coded, coded / group_) + context_.FloatBytes(2 * num_tokens - coded);
  }
  ByteGrowth Growth(int64_t) const override { return {1, bases_.empty() ? 1 : group_}; }

  int64_t BytesNow(int64_t layer, const SimulatedBlock& block,
                   const MethodState* opaque) const override {
    if (!bases_.empty()) return BlockBytes(layer, block.num_tokens());
    const SvdqState& state = static_cast<const SvdqState&>(*opaque);
    if (block.num_tokens() == 0) return 0;
    if (state.basis.mean.empty()) return 2 * context_.FloatBytes(block.num_tokens());
    const int64_t later = state.num_coded - state.num_prompt;
    const int64_t ranges = (state.num_prompt > 0 ? 1 : 0) + (later + group_ - 1) / group_;
    return CodedBytes(state.basis, state.num_coded, ranges) +
           BasisBytes(std::ssize(state.basis.formats)) +
           context_.FloatBytes(2 * block.num_tokens() - state.num_coded);
  }

 private:
  int WidthOf(int64_t channel) const {
    return widths_[static_cast<size_t>(channel * kNumWidths / context_.geometry.kv_dim())];
  }
  // Latent channels with bits, of the first `rank` ones.
  int64_t NumStored(int64_t rank) const {
    int64_t stored = 0;
    while (stored < rank && WidthOf(stored) > 0) ++stored;
    return stored;
  }
  int64_t RangeBytes(int64_t stored) const {
    return stored * 2 * static_cast<int64_t>(SizeOf(context_.float_type));
  }
  // Vectors and the mean.
  int64_t BasisBytes(int64_t stored) const { return context_.FloatBytes(stored + 1); }
  int64_t CodedBytes(const Basis& basis, int64_t num_tokens, int64_t num_ranges) const {
    int64_t bits = 0;
    for (const AffineFormat& format : basis.formats) bits += format.bits;
    return num_tokens * ((bits + 7) / 8) + num_ranges * RangeBytes(std::ssize(basis.formats));
  }

  // `vectors` [rank, C]; those with bits are kept.
  Basis StoredBasis(const std::vector<float>& mean, const std::vector<float>& vectors,
                    int64_t rank) const {
    const int64_t width = context_.geometry.kv_dim();
    Basis basis;
    for (const float x : mean) basis.mean.push_back(StoredAs(context_.float_type, x, "mean"));
    for (int64_t channel = 0; channel < NumStored(rank); ++channel) {
      basis.formats.push_back({WidthOf(channel), context_.float_type});
      for (int64_t i = 0; i < width; ++i) {
        basis.vectors.push_back(StoredAs(context_.float_type,
                                         vectors[static_cast<size_t>(channel * width + i)],
                                         "entry of the basis"));
      }
    }
    return basis;
  }

  // Mean and singular vectors of all keys. The right singular vectors of X are the eigenvectors of
  // X^T X.
  Basis BasisOf(const SimulatedBlock& block) const {
    const int64_t width = context_.geometry.kv_dim();
    const int64_t count = block.num_tokens();
    std::vector<double> rows;  // [n, C]
    std::vector<double> mean(static_cast<size_t>(width));
    for (int64_t token = 0; token < count; ++token) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        const float* key = block.Key(token, head);
        CheckFinite(key, block.head_dim());
        rows.insert(rows.end(), key, key + block.head_dim());
      }
    }
    for (size_t i = 0; i < rows.size(); ++i) mean[i % mean.size()] += rows[i];
    for (double& x : mean) x /= static_cast<double>(count);
    for (size_t i = 0; i < rows.size(); ++i) rows[i] -= mean[i % mean.size()];
    std::vector<double> gram(static_cast<size_t>(width * width));
    BlasGemm<double>(true, false, width, width, count, 1.0, rows.data(), width, rows.data(), width,
                     0.0, gram.data(), width);
    const SymmetricEigen eigen = EigenOfSymmetric(gram.data(), width);
    const double largest = std::sqrt(std::max(eigen.values.back(), 0.0));
    std::vector<float> vectors;
    int64_t rank = 0;
    for (; rank < width; ++rank) {  // The largest value first.
      const auto from = static_cast<size_t>(width - 1 - rank);
      if (std::sqrt(std::max(eigen.values[from], 0.0)) <= kLeastShare * largest) break;
      const double* vector = eigen.vectors.data() + from * static_cast<size_t>(width);
      vectors.insert(vectors.end(), vector, vector + width);
    }
    return StoredBasis({mean.begin(), mean.end()}, vectors, rank);
  }

  // One latent channel of a group of tokens.
  void DamageLatent(const AffineFormat& format, std::vector<float>& latent) const {
    const AffineGrid grid = GridOf(format, std::ssize(latent), 1, latent.data());
    const float eta = format.bits == 1 ? eta_ : 0;
    const float step = grid.step * (1 - 2 * eta);
    const float min = grid.min + grid.max_code * grid.step * eta;
    for (float& x : latent) {
      const uint32_t code =
          grid.step > 0 ? internal::CodeOf(x, grid.min, grid.step, grid.max_code) : 0;
      x = static_cast<float>(code) * step + min;
    }
  }

  // Keys of tokens first .. first + count - 1, with one range per latent channel.
  void Damage(const Basis& basis, int64_t first, int64_t count, SimulatedBlock& block) const {
    const int64_t width = context_.geometry.kv_dim();
    const int64_t dim = block.head_dim();
    std::vector<double> rows;  // [count, C], less the mean.
    for (int64_t token = first; token < first + count; ++token) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        const float* key = std::as_const(block).Key(token, head);
        CheckFinite(key, dim);
        for (int64_t i = 0; i < dim; ++i) {
          rows.push_back(double{key[i]} - double{basis.mean[static_cast<size_t>(head * dim + i)]});
        }
      }
    }
    std::vector<double> read(rows.size());
    std::vector<float> latent(static_cast<size_t>(count));
    for (size_t channel = 0; channel < basis.formats.size(); ++channel) {
      const float* vector = basis.vectors.data() + channel * static_cast<size_t>(width);
      for (size_t t = 0; t < latent.size(); ++t) {
        const double* row = rows.data() + t * static_cast<size_t>(width);
        double sum = 0;
        for (int64_t i = 0; i < width; ++i) sum += row[i] * double{vector[i]};
        latent[t] = static_cast<float>(sum);
      }
      DamageLatent(basis.formats[channel], latent);
      for (size_t t = 0; t < latent.size(); ++t) {
        double* row = read.data() + t * static_cast<size_t>(width);
        for (int64_t i = 0; i < width; ++i) row[i] += double{latent[t]} * double{vector[i]};
      }
    }
    for (int64_t t = 0; t < count; ++t) {
      for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
        float* key = block.Key(first + t, head);
        for (int64_t i = 0; i < dim; ++i) {
          const auto at = static_cast<size_t>(head * dim + i);
          key[i] = static_cast<float>(read[static_cast<size_t>(t * width) + at] +
                                      double{basis.mean[at]});
        }
      }
    }
  }

  MethodContext context_;
  Widths widths_;
  bool before_rope_ = false;
  int64_t group_ = 32;
  float eta_ = 0;
  std::vector<Basis> bases_;  // Per block, of from=; empty without.
};

// ---- Calibration.

// Per block: the sums of keys [C], then of their products [C, C].
std::vector<double> KeyMoments(const UniformKvGeometry& geometry, bool before_rope,
                               const CalibrationContext& calibration) {
  const int64_t width = geometry.kv_dim();
  const int64_t size = width + width * width;
  Profile<float> profile(*calibration.model, calibration.num_threads);
  SampleLoopStep step;
  step.task = "svdq";
  step.options = before_rope ? "before rope" : "after rope";
  step.num_values = static_cast<size_t>(geometry.num_layers * size);
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> sums(step.num_values);
    std::vector<double> rows;
    std::vector<float> keys;
    profile.Forward(tokens, positions, [&](const BlockStates<float>& states) {
      keys.assign(states.k, states.k + states.num_tokens * width);
      double factor = 1;
      if (before_rope) {
        // The rotation back, times the square of yarn's factor.
        const RopeTable& rope = calibration.model->rope(states.layer);
        ApplyRopeGrad(rope, positions.data(), states.num_tokens, geometry.num_kv_heads, keys.data(),
                      calibration.num_threads);
        factor = 1 / (rope.attention_factor() * rope.attention_factor());
      }
      rows.assign(keys.begin(), keys.end());
      for (double& x : rows) x *= factor;
      double* block = sums.data() + states.layer * size;
      for (size_t i = 0; i < rows.size(); ++i) block[i % static_cast<size_t>(width)] += rows[i];
      BlasGemm<double>(true, false, width, width, states.num_tokens, 1.0, rows.data(), width,
                       rows.data(), width, 0.0, block + width, width);
    });
    return sums;
  };
  return LoopOverSamples(calibration, step);
}

std::map<std::string, Tensor> Calibrate(const MethodSpec& spec, const MethodContext& context,
                                        const CalibrationContext& calibration) {
  const UniformKvGeometry& geometry = context.geometry;
  const int64_t width = geometry.kv_dim();
  CalibrationContext without_checkpoint = calibration;
  without_checkpoint.checkpoint_path.clear();  // C^2 numbers a block: as text, too many to keep.
  std::vector<double> moments = KeyMoments(geometry, IsBeforeRope(spec), without_checkpoint);
  double num_tokens = 0;
  for (const auto& sample : calibration.samples->tokens) {
    num_tokens += static_cast<double>(sample.size());
  }
  std::map<std::string, Tensor> tensors;
  Tensor side(DType::kF32, {1});
  side.As<float>()[0] = IsBeforeRope(spec) ? 1.0f : 0.0f;
  tensors.emplace(kRopeSide, std::move(side));
  for (int64_t layer = 0; layer < geometry.num_layers; ++layer) {
    double* sums = moments.data() + layer * (width + width * width);
    double* products = sums + width;
    for (int64_t i = 0; i < width; ++i) {
      for (int64_t j = 0; j < width; ++j) products[i * width + j] -= sums[i] * sums[j] / num_tokens;
    }
    const SymmetricEigen eigen = EigenOfSymmetric(products, width);
    Tensor mean(DType::kF32, {width});
    Tensor basis(DType::kF32, {width, width});
    for (int64_t i = 0; i < width; ++i) {
      mean.As<float>()[i] = static_cast<float>(sums[i] / num_tokens);
      const double* vector = eigen.vectors.data() + (width - 1 - i) * width;
      std::transform(vector, vector + width, basis.As<float>() + i * width,
                     [](double x) { return static_cast<float>(x); });
    }
    tensors.emplace(BlockTensorName(kMean, layer), std::move(mean));
    tensors.emplace(BlockTensorName(kBasis, layer), std::move(basis));
  }
  return tensors;
}

}  // namespace

SimulatedMethod SvdqMethod() {
  return {
      "svdq",
      "keys in a basis of singular vectors, widths by singular value; values as they are",
      {IntegerKey("widths", 10000000, 88888888, "84211000",
                  "bits of eight equal groups of latent channels, one digit each"),
       ChoiceKey("basis", {"prompt"}, "prompt", "what gives mean and basis, unless from= does"),
       FromKey("mean and basis"), IntegerKey("group", 8, 4096, "32", "later tokens of one range"),
       ChoiceKey("rope", {"after", "before"}, "after", "which keys have a basis"),
       RealKey("eta1", 0, 0.499, "1/6", "share by which 1-bit levels move inwards")},
      [](const MethodSpec& spec, const MethodContext& context)
          -> std::shared_ptr<const CacheMethod> { return std::make_shared<Svdq>(spec, context); },
      Calibrate};
}

}  // namespace pmkvq
