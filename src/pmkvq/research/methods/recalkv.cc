// ReCalKV (arXiv 2505.24357): keys and values of low rank, from weights.
//
// The projections of keys and values are replaced by products of low rank. Keys: similar KV heads
// form groups of 4, one factor for each; values: one factor for all heads. What the cache
// keeps of a token are the latents, at full precision: r_g numbers before RoPE for each group and
// r_v for the values, from which keys and values would be made anew at every step. Here the model
// runs with the products, so that keys and values are the approximated ones, and latents are
// counted. With bits= below 16 the latents of a token are turned by a Hadamard transform and
// quantised, each group's with one range.
//
// Calibration finds groups, factors and ranks (recalkv_rule.h). The importance of a projection is
// the mean over its inputs of the root of the mean squared gradient. The published method then
// fits both factors of the values to the text once more; on the text of the first step that changes
// nothing, since the truncated decomposition is the best already, and it is left out.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include <span>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/gemm/observed_products.h"
#include "pmkvq/kernels/linalg/hadamard.h"
#include "pmkvq/model/profile.h"
#include "pmkvq/research/calib/sample_loop.h"
#include "pmkvq/research/methods/affine.h"
#include "pmkvq/research/methods/recalkv_rule.h"
#include "pmkvq/research/methods/simulated_method.h"

namespace pmkvq {
namespace {

constexpr char kKeyWeights[] = "k";        // Per block [C, E].
constexpr char kValueWeights[] = "v";      // Likewise.
constexpr char kKeyRanks[] = "k_ranks";    // [L], all groups of a block together.
constexpr char kValueRanks[] = "v_ranks";  // [L]
constexpr char kKeyBasis[] =
    "k_basis";  // Per block [rank, C], orthonormal rows: latents = basis k.
constexpr char kValueBasis[] = "v_basis";  // Likewise.
constexpr char kFormName[] = "form";  // [2]: groups of keys, 1 where keys are more than products.
constexpr int kWhole = 16;            // Latents as they are.
constexpr int64_t kMaxMomentBytes = int64_t{4} << 30;

// x = H x in runs of the largest powers of two that fit; each run is its own inverse.
void HadamardRuns(std::vector<float>& x) {
  for (size_t begin = 0; begin < x.size();) {
    const size_t count = std::bit_floor(x.size() - begin);
    Hadamard(x.data() + begin, static_cast<int64_t>(count));
    begin += count;
  }
}

class ReCalKv final : public CacheMethod {
 public:
  ReCalKv(const MethodSpec& spec, const MethodContext& context) : context_(context) {
    if (context.data == nullptr) {
      throw InvalidInput("--kv", fmt::format("'{}': no weights, expected {}", spec.text,
                                             ExpectedMethodData(spec.name)));
    }
    bits_ = static_cast<int>(spec.Integer("bits", kWhole));
    const float* form = context.data->Get(kFormName, {2}).As<float>();
    if (bits_ < kWhole && form[1] != 0) {
      throw InvalidInput("--kv",
                         fmt::format("'{}': bits={}: a bias or norm follows the projections, "
                                     "expected 16",
                                     spec.text, bits_));
    }
    const int64_t most = context.geometry.kv_dim();
    num_groups_ = Whole(kFormName, form[0], context.geometry.num_kv_heads);
    const int64_t num_layers = context.geometry.num_layers;
    const float* keys = context.data->Get(kKeyRanks, {num_layers}).As<float>();
    const float* values = context.data->Get(kValueRanks, {num_layers}).As<float>();
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      Block block{Whole(kKeyRanks, keys[layer], most), Whole(kValueRanks, values[layer], most),
                  nullptr, nullptr};
      if (block.key_rank % num_groups_ != 0) {
        throw InvalidInput(context.data->path,
                           fmt::format("{}: found {}, expected a multiple of {} groups", kKeyRanks,
                                       block.key_rank, num_groups_));
      }
      block.keys = Basis(kKeyBasis, layer, block.key_rank);
      block.values = Basis(kValueBasis, layer, block.value_rank);
      blocks_.push_back(block);
    }
  }

  MethodNeeds needs() const override {
    MethodNeeds needs;
    needs.keys_before_rope = bits_ < kWhole;
    return needs;
  }

  // Without bits= the model's weights do all of it.
  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    if (bits_ == kWhole) return;
    const Block& of_block = blocks_[static_cast<size_t>(layer)];
    for (int64_t token = tokens.first; token < tokens.first + tokens.count; ++token) {
      Damage(of_block.keys, of_block.key_rank, num_groups_, token, true, block);
      Damage(of_block.values, of_block.value_rank, 1, token, false, block);
    }
  }

  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override {
    const Block& block = blocks_[static_cast<size_t>(layer)];
    return num_tokens * (LatentBytes(block.key_rank / num_groups_) * num_groups_ +
                         LatentBytes(block.value_rank));
  }
  ByteGrowth Growth(int64_t) const override { return {}; }

 private:
  struct Block {
    int64_t key_rank = 0;  // Of all groups.
    int64_t value_rank = 0;
    const float* keys = nullptr;    // [key_rank, C], owned by the data of from=.
    const float* values = nullptr;  // [value_rank, C]
  };

  int64_t Whole(const char* name, float value, int64_t most) const {
    if (value >= 1 && value <= static_cast<float>(most) && value == std::floor(value)) {
      return static_cast<int64_t>(value);
    }
    throw InvalidInput(
        context_.data->path,
        fmt::format("{}: found {}, expected a whole number in [1, {}]", name, value, most));
  }
  const float* Basis(const char* name, int64_t layer, int64_t rank) const {
    return context_.data->Get(BlockTensorName(name, layer), {rank, context_.geometry.kv_dim()})
        .As<float>();
  }

  AffineFormat Format() const { return {bits_, context_.float_type}; }
  // Of one group of latents of a token.
  int64_t LatentBytes(int64_t rank) const {
    if (bits_ == kWhole) return rank * static_cast<int64_t>(SizeOf(context_.float_type));
    return AffineBytes(Format(), rank, rank);
  }

  void Damage(const float* basis, int64_t rank, int64_t num_groups, int64_t token, bool keys,
              SimulatedBlock& block) const {
    const int64_t dim = block.head_dim();
    const int64_t width = context_.geometry.kv_dim();
    std::vector<float> row;
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      const float* values = keys ? block.Key(token, head) : block.Value(token, head);
      CheckFinite(values, dim);
      row.insert(row.end(), values, values + dim);
    }
    std::vector<double> read(row.size());
    std::vector<float> latents(static_cast<size_t>(rank / num_groups));
    for (int64_t first = 0; first < rank; first += rank / num_groups) {
      const float* vectors = basis + first * width;
      for (size_t i = 0; i < latents.size(); ++i) {
        const float* vector = vectors + static_cast<int64_t>(i) * width;
        latents[i] = static_cast<float>(std::inner_product(row.begin(), row.end(), vector, 0.0));
      }
      HadamardRuns(latents);
      DamageGroup(Format(), std::ssize(latents), 1, latents.data());
      HadamardRuns(latents);
      for (size_t i = 0; i < latents.size(); ++i) {
        const float* vector = vectors + static_cast<int64_t>(i) * width;
        for (size_t j = 0; j < read.size(); ++j) read[j] += double{latents[i]} * double{vector[j]};
      }
    }
    for (int64_t head = 0; head < block.num_kv_heads(); ++head) {
      float* values = keys ? block.Key(token, head) : block.Value(token, head);
      for (int64_t i = 0; i < dim; ++i) {
        values[i] = static_cast<float>(read[static_cast<size_t>(head * dim + i)]);
      }
    }
  }

  MethodContext context_;
  int bits_ = kWhole;
  int64_t num_groups_ = 1;
  std::vector<Block> blocks_;
};

std::string WeightName(int64_t layer, const char* side) {
  return fmt::format("blocks.{}.attn.{}", layer, side);
}

std::map<std::string, Tensor> Replacements(const MethodSpec& spec, const MethodContext& context) {
  const ReCalKv checked(spec, context);
  std::map<std::string, Tensor> weights;
  for (int64_t layer = 0; layer < context.geometry.num_layers; ++layer) {
    for (const char* side : {kKeyWeights, kValueWeights}) {
      const std::string name = BlockTensorName(side, layer);
      const auto found = context.data->tensors.find(name);
      const Shape shape = found == context.data->tensors.end() ? Shape{} : found->second.shape();
      if (shape.size() != 2 || shape[0] != context.geometry.kv_dim()) {
        throw InvalidInput(context.data->path, fmt::format("no matrix '{}' of {} rows", name,
                                                           context.geometry.kv_dim()));
      }
      Tensor weight(DType::kF32, shape);
      std::copy_n(found->second.As<float>(), weight.num_elements(), weight.As<float>());
      weights.emplace(WeightName(layer, side), std::move(weight));
    }
  }
  return weights;
}

// ---- Calibration.

// The key and value projections of the model.
class Projections {
 public:
  explicit Projections(const Model& model) : matrices_(model.matrices()) {}

  const WeightView& At(int64_t layer, const char* side) const {
    const std::string name = WeightName(layer, side);
    const auto found = std::find_if(matrices_.begin(), matrices_.end(),
                                    [&](const auto& matrix) { return matrix.name == name; });
    if (found == matrices_.end()) {
      throw InvalidInput("--model", fmt::format("no matrix '{}', expected separate projections of "
                                                "keys and values",
                                                name));
    }
    return found->view;
  }
  std::vector<float> Values(int64_t layer, const char* side) const {
    const WeightView& view = At(layer, side);
    std::vector<float> values(static_cast<size_t>(view.rows * view.cols));
    for (int64_t row = 0; row < view.rows; ++row) {
      ExpandRow(view, row, values.data() + row * view.cols);
    }
    return values;
  }

 private:
  std::vector<Model::NamedMatrix> matrices_;
};

// Per block first .. last - 1: the sum of the inputs of its key projection [E], then of their
// products [E, E].
class InputMoments final : public ProductObserver {
 public:
  InputMoments(const Projections& projections, int64_t first, int64_t last, int64_t width)
      : width_(width) {
    for (int64_t layer = first; layer < last; ++layer) {
      wanted_.push_back(projections.At(layer, kKeyWeights).data);
    }
  }
  size_t num_values() const {
    return wanted_.size() * static_cast<size_t>(width_ + width_ * width_);
  }
  // Where the next sample's sums go.
  void Begin(std::vector<double>& sums) { sums_ = &sums; }

  void See(const float* x, int64_t num_rows,
           std::span<const Projection<float>> projections) override {
    for (const Projection<float>& projection : projections) {
      const auto found = std::find(wanted_.begin(), wanted_.end(), projection.weight->data);
      if (found == wanted_.end()) continue;
      const std::vector<double> rows(x, x + num_rows * width_);
      double* sums = sums_->data() + (found - wanted_.begin()) * (width_ + width_ * width_);
      for (size_t i = 0; i < rows.size(); ++i) sums[i % static_cast<size_t>(width_)] += rows[i];
      BlasGemm<double>(true, false, width_, width_, num_rows, 1.0, rows.data(), width_, rows.data(),
                       width_, 0.0, sums + width_, width_);
    }
  }

 private:
  int64_t width_;  // E
  std::vector<const std::byte*> wanted_;
  std::vector<double>* sums_ = nullptr;
};

std::vector<double> MomentsOf(const Projections& projections, int64_t first, int64_t last,
                              const CalibrationContext& calibration) {
  InputMoments moments(projections, first, last, calibration.model->config().hidden_size);
  Profile<float> profile(*calibration.model, calibration.num_threads);
  SampleLoopStep step;
  step.task = fmt::format("recalkv inputs of blocks {} to {}", first, last - 1);
  step.num_values = moments.num_values();
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> sums(step.num_values);
    moments.Begin(sums);
    const ObservedProducts observed(moments);
    profile.Forward(tokens, positions, nullptr);
    return sums;
  };
  return LoopOverSamples(calibration, step);
}

// [block][K, V]: the mean over inputs of the root of the squared gradient, averaged over rows and
// samples.
std::vector<double> ImportanceOf(const UniformKvGeometry& geometry,
                                 const CalibrationContext& calibration) {
  const int64_t width = calibration.model->config().hidden_size;
  Profile<float> profile(*calibration.model, calibration.num_threads);
  SampleLoopStep step;
  step.task = "recalkv importance";
  step.num_values = static_cast<size_t>(2 * geometry.num_layers * width);
  step.process = [&](std::span<const int32_t> tokens, std::span<const int64_t> positions) {
    std::vector<double> sums(step.num_values);
    profile.ProjectionBackward(
        tokens, positions, [&](const Profile<float>::ProjectionGradients& gradients) {
          double* block = sums.data() + 2 * gradients.layer * width;
          for (int64_t i = 0; i < geometry.kv_dim() * width; ++i) {
            block[i % width] += double{gradients.k[i]} * double{gradients.k[i]};
            block[width + i % width] += double{gradients.v[i]} * double{gradients.v[i]};
          }
        });
    return sums;
  };
  const std::vector<double> sums = LoopOverSamples(calibration, step);
  const double count = static_cast<double>(calibration.samples->tokens.size()) *
                       static_cast<double>(geometry.kv_dim());
  std::vector<double> importance(static_cast<size_t>(2 * geometry.num_layers));
  for (size_t i = 0; i < sums.size(); ++i) {
    importance[i / static_cast<size_t>(width)] +=
        std::sqrt(sums[i] / count) / static_cast<double>(width);
  }
  return importance;
}

// Adds 1e-6 of the mean eigenvalue, so that directions without inputs have an order.
void AddRidge(std::span<double> moment, int64_t width) {
  double trace = 0;
  for (int64_t i = 0; i < width; ++i) trace += moment[static_cast<size_t>(i * (width + 1))];
  for (int64_t i = 0; i < width; ++i) {
    moment[static_cast<size_t>(i * (width + 1))] += 1e-6 * trace / static_cast<double>(width);
  }
}

// Keys of one block by groups of heads; `rank` for each group. Vectors are over all channels.
LowRankWeight LowRankKeys(const std::vector<float>& weight,
                          const std::vector<std::vector<int64_t>>& groups,
                          std::span<const double> moment, int64_t dim, int64_t width,
                          int64_t rank) {
  const int64_t kv_dim = std::ssize(weight) / width;
  LowRankWeight low{std::vector<float>(weight.size()), {}};
  for (const std::vector<int64_t>& heads : groups) {
    std::vector<float> rows;
    for (const int64_t head : heads) {
      const auto begin = weight.begin() + head * dim * width;
      rows.insert(rows.end(), begin, begin + dim * width);
    }
    const int64_t num_rows = std::ssize(heads) * dim;
    const LowRankWeight of_group = LowRank(rows, num_rows, moment, rank);
    const auto first = std::ssize(low.vectors);
    low.vectors.resize(low.vectors.size() + static_cast<size_t>(rank * kv_dim));
    for (int64_t i = 0; i < std::ssize(heads); ++i) {
      const int64_t head = heads[static_cast<size_t>(i)];
      std::copy_n(of_group.weight.begin() + i * dim * width, dim * width,
                  low.weight.begin() + head * dim * width);
      for (int64_t latent = 0; latent < rank; ++latent) {
        std::copy_n(of_group.vectors.begin() + latent * num_rows + i * dim, dim,
                    low.vectors.begin() + first + latent * kv_dim + head * dim);
      }
    }
  }
  return low;
}

int64_t GroupSize(const MethodSpec& spec, const UniformKvGeometry& geometry) {
  const int64_t group = std::min(spec.Integer("heads", 4), geometry.num_kv_heads);
  if (geometry.num_kv_heads % group == 0) return group;
  throw InvalidInput("--kv", fmt::format("'{}': heads={}, expected a divisor of {} KV heads",
                                         spec.text, group, geometry.num_kv_heads));
}

std::map<std::string, Tensor> Calibrate(const MethodSpec& spec, const MethodContext& context,
                                        const CalibrationContext& calibration) {
  const UniformKvGeometry& geometry = context.geometry;
  const int64_t width = calibration.model->config().hidden_size;
  const int64_t kv_dim = geometry.kv_dim();
  const int64_t group = GroupSize(spec, geometry);
  const int64_t num_groups = geometry.num_kv_heads / group;
  const Projections projections(*calibration.model);
  CalibrationContext without_checkpoint = calibration;
  without_checkpoint.checkpoint_path.clear();  // E^2 numbers a block: too many to keep.
  const std::vector<int64_t> ranks =
      RanksByImportance(ImportanceOf(geometry, without_checkpoint), spec.Real("keep", 0.5), kv_dim,
                        spec.Integer("step", 32));
  double num_rows = 0;
  for (const auto& sample : calibration.samples->tokens) {
    num_rows += static_cast<double>(sample.size());
  }
  std::map<std::string, Tensor> tensors;
  Tensor key_ranks(DType::kF32, {geometry.num_layers});
  Tensor value_ranks(DType::kF32, {geometry.num_layers});
  const auto add = [&](const char* name, const char* basis, int64_t layer,
                       const LowRankWeight& low) {
    Tensor weight(DType::kF32, {kv_dim, width});
    std::copy(low.weight.begin(), low.weight.end(), weight.As<float>());
    tensors.emplace(BlockTensorName(name, layer), std::move(weight));
    Tensor vectors(DType::kF32, {std::ssize(low.vectors) / kv_dim, kv_dim});
    std::copy(low.vectors.begin(), low.vectors.end(), vectors.As<float>());
    tensors.emplace(BlockTensorName(basis, layer), std::move(vectors));
  };
  const ModelConfig& config = calibration.model->config();
  Tensor form(DType::kF32, {2});
  form.As<float>()[0] = static_cast<float>(num_groups);
  form.As<float>()[1] = config.qkv_bias || config.qk_norm ? 1.0f : 0.0f;
  tensors.emplace(kFormName, std::move(form));
  const int64_t size = width + width * width;
  const int64_t at_once =
      std::max<int64_t>(1, kMaxMomentBytes / (2 * size * static_cast<int64_t>(sizeof(double))));
  for (int64_t first = 0; first < geometry.num_layers; first += at_once) {
    const int64_t last = std::min(first + at_once, geometry.num_layers);
    std::vector<double> moments = MomentsOf(projections, first, last, without_checkpoint);
    for (int64_t layer = first; layer < last; ++layer) {
      double* sums = moments.data() + (layer - first) * size;
      std::vector<double> mean(sums, sums + width);
      for (double& x : mean) x /= num_rows;
      const std::span<double> moment(sums + width, static_cast<size_t>(width * width));
      AddRidge(moment, width);
      const std::vector<float> keys = projections.Values(layer, kKeyWeights);
      const std::vector<float> values = projections.Values(layer, kValueWeights);
      const auto groups =
          GroupHeads(HeadAlignment(keys, geometry.num_kv_heads, moment, mean, num_rows),
                     geometry.num_kv_heads, group);
      const int64_t key_rank =
          std::max<int64_t>(1, ranks[static_cast<size_t>(2 * layer)] / num_groups);
      const int64_t value_rank = ranks[static_cast<size_t>(2 * layer + 1)];
      key_ranks.As<float>()[layer] = static_cast<float>(key_rank * num_groups);
      value_ranks.As<float>()[layer] = static_cast<float>(value_rank);
      add(kKeyWeights, kKeyBasis, layer,
          LowRankKeys(keys, groups, moment, geometry.head_dim, width, key_rank));
      add(kValueWeights, kValueBasis, layer, LowRank(values, kv_dim, moment, value_rank));
    }
  }
  tensors.emplace(kKeyRanks, std::move(key_ranks));
  tensors.emplace(kValueRanks, std::move(value_ranks));
  return tensors;
}

}  // namespace

SimulatedMethod ReCalKvMethod() {
  SimulatedMethod method{
      "recalkv",
      "keys and values of low rank, from the model's weights",
      {FromKey("the weights"),
       ChoiceKey("bits", {"16", "8", "4", "3", "2"}, "16", "width of latents"),
       RealKey("keep", 0.01, 1, "0.5", "calibration: share of all ranks that is kept"),
       IntegerKey("heads", 1, 64, "4", "calibration: KV heads of a group of keys"),
       IntegerKey("step", 1, 256, "32", "calibration: ranks are multiples of it")},
      [](const MethodSpec& spec,
         const MethodContext& context) -> std::shared_ptr<const CacheMethod> {
        return std::make_shared<ReCalKv>(spec, context);
      },
      Calibrate};
  method.replacements = Replacements;
  return method;
}

}  // namespace pmkvq
