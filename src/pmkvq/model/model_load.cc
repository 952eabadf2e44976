#include <fmt/format.h>

#include <cmath>
#include <set>
#include <string>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/model/model_impl.h"

namespace pmkvq {
namespace {

RopeParams RopeParamsOf(const ModelConfig& config) {
  RopeParams params;
  params.head_dim = config.head_dim;
  params.theta = config.rope_theta;
  switch (config.rope_scaling.type) {
    case RopeScaling::Type::kDefault:
      params.scaling = RopeParams::Scaling::kDefault;
      break;
    case RopeScaling::Type::kLinear:
      params.scaling = RopeParams::Scaling::kLinear;
      break;
    case RopeScaling::Type::kLlama3:
      params.scaling = RopeParams::Scaling::kLlama3;
      break;
    case RopeScaling::Type::kYarn:
      params.scaling = RopeParams::Scaling::kYarn;
      break;
  }
  const RopeScaling& scaling = config.rope_scaling;
  params.factor = scaling.factor;
  params.low_freq_factor = scaling.low_freq_factor;
  params.high_freq_factor = scaling.high_freq_factor;
  params.original_max_position = scaling.original_max_position_embeddings;
  params.beta_fast = scaling.beta_fast;
  params.beta_slow = scaling.beta_slow;
  params.attention_factor = scaling.attention_factor;
  params.truncate = scaling.truncate;
  return params;
}

// Finds weights by their canonical names and remembers which ones were asked for.
class Binder {
 public:
  explicit Binder(const Checkpoint& checkpoint) : checkpoint_(checkpoint) {}

  WeightView Matrix(const std::string& name, int64_t rows, int64_t cols) {
    return Bind(name, {rows, cols}, rows, cols);
  }

  std::vector<float> Vector(const std::string& name, int64_t size) {
    const WeightView weight = Bind(name, {size}, 1, size);
    std::vector<float> values(static_cast<size_t>(size));
    ExpandRow(weight, 0, values.data());
    return values;
  }

  // The rest of the checkpoint must not hold weights of blocks: ignoring them would compute
  // another function than the one that was trained.
  void CheckNothingLeft() const {
    for (const StoredWeight& tensor : checkpoint_.weights().tensors()) {
      if (!tensor.of_block || bound_.contains(&tensor)) continue;
      const ModelConfig& config = checkpoint_.config();
      throw InvalidInput(
          tensor.file,
          fmt::format("tensor '{}': found here, expected only what config.json announces ({}, "
                      "{} blocks)",
                      tensor.stored_name, config.architecture, config.num_layers));
    }
  }

 private:
  WeightView Bind(const std::string& name, const Shape& shape, int64_t rows, int64_t cols) {
    const StoredWeight& tensor = checkpoint_.weights().Get(name, shape);
    bound_.insert(&tensor);
    return {tensor.data, *tensor.format, rows, cols};
  }

  const Checkpoint& checkpoint_;
  std::set<const StoredWeight*> bound_;
};

BlockWeights BindBlock(const ModelConfig& config, int64_t layer, Binder& binder) {
  const std::string attention = fmt::format("blocks.{}.attn.", layer);
  const std::string mlp = fmt::format("blocks.{}.mlp.", layer);
  const int64_t hidden = config.hidden_size;
  BlockWeights weights;
  weights.attention_norm = binder.Vector(attention + "norm", hidden);
  weights.q_proj = binder.Matrix(attention + "q", config.q_dim(), hidden);
  weights.k_proj = binder.Matrix(attention + "k", config.kv_dim(), hidden);
  weights.v_proj = binder.Matrix(attention + "v", config.kv_dim(), hidden);
  weights.o_proj = binder.Matrix(attention + "o", hidden, config.q_dim());
  if (config.qkv_bias) {
    weights.q_bias = binder.Vector(attention + "q.bias", config.q_dim());
    weights.k_bias = binder.Vector(attention + "k.bias", config.kv_dim());
    weights.v_bias = binder.Vector(attention + "v.bias", config.kv_dim());
  }
  if (config.o_bias) weights.o_bias = binder.Vector(attention + "o.bias", hidden);
  if (config.qk_norm) {
    weights.q_norm = binder.Vector(attention + "q_norm", config.head_dim);
    weights.k_norm = binder.Vector(attention + "k_norm", config.head_dim);
  }
  const int64_t inner = config.intermediate_size;
  weights.mlp_norm = binder.Vector(mlp + "norm", hidden);
  weights.gate_proj = binder.Matrix(mlp + "gate", inner, hidden);
  weights.up_proj = binder.Matrix(mlp + "up", inner, hidden);
  weights.down_proj = binder.Matrix(mlp + "down", hidden, inner);
  return weights;
}

}  // namespace

Model::Impl::Impl(Checkpoint opened, const ModelOptions& options)
    : checkpoint(std::move(opened)), rope(RopeParamsOf(checkpoint.config())) {
  const ModelConfig& config = checkpoint.config();
  Binder binder(checkpoint);
  embedding = binder.Matrix("embedding", config.vocab_size, config.hidden_size);
  output_head = config.tie_word_embeddings
                    ? embedding
                    : binder.Matrix("output_head", config.vocab_size, config.hidden_size);
  final_norm = binder.Vector("final_norm", config.hidden_size);
  blocks.reserve(static_cast<size_t>(config.num_layers));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    blocks.push_back(BindBlock(config, layer, binder));
  }
  binder.CheckNothingLeft();
  if (options.weights == WeightMode::kQ8) QuantizeWeights(options.num_threads);
  weights = options.weights;
}

void Model::Impl::QuantizeWeights(int num_threads) {
  const WeightSource& source = checkpoint.weights();
  const auto quantize = [&](WeightView& weight, const std::string& name) {
    const StoredWeight& stored = *source.Find(name);
    Q8Weight& made = quantized.emplace_back();
    if (!QuantizeWeight(weight, num_threads, made)) {
      throw InvalidInput(stored.file, fmt::format("tensor '{}': found a value that is not finite, "
                                                  "expected finite weights",
                                                  stored.stored_name));
    }
    source.DropPages(stored);
    weight = made.view();
  };
  for (size_t layer = 0; layer < blocks.size(); ++layer) {
    const std::string block = fmt::format("blocks.{}.", layer);
    BlockWeights& own = blocks[layer];
    quantize(own.q_proj, block + "attn.q");
    quantize(own.k_proj, block + "attn.k");
    quantize(own.v_proj, block + "attn.v");
    quantize(own.o_proj, block + "attn.o");
    quantize(own.gate_proj, block + "mlp.gate");
    quantize(own.up_proj, block + "mlp.up");
    quantize(own.down_proj, block + "mlp.down");
  }
  quantize(output_head, checkpoint.config().tie_word_embeddings ? "embedding" : "output_head");
}

Model::Model() = default;
Model::~Model() = default;

std::string NameOf(WeightMode mode) { return mode == WeightMode::kQ8 ? "q8" : "as-stored"; }

WeightMode ParseWeightMode(const std::string& name) {
  for (const WeightMode mode : {WeightMode::kAsStored, WeightMode::kQ8}) {
    if (name == NameOf(mode)) return mode;
  }
  throw InvalidInput("--weights", fmt::format("found '{}', expected as-stored or q8", name));
}

std::shared_ptr<const Model> Model::Load(const std::string& folder, const ModelOptions& options) {
  return FromCheckpoint(Checkpoint::Open(folder), options);
}

std::shared_ptr<const Model> Model::FromCheckpoint(Checkpoint checkpoint,
                                                   const ModelOptions& options) {
  const std::shared_ptr<Model> model(new Model());
  model->impl_ = std::make_unique<Impl>(std::move(checkpoint), options);
  return model;
}

const ModelConfig& Model::config() const { return impl_->checkpoint.config(); }
const Checkpoint& Model::checkpoint() const { return impl_->checkpoint; }
WeightMode Model::weights() const { return impl_->weights; }
const RopeTable& Model::rope() const { return impl_->rope; }
const WeightView& Model::embedding() const { return impl_->embedding; }
const WeightView& Model::output_head() const { return impl_->output_head; }
const std::vector<float>& Model::final_norm() const { return impl_->final_norm; }

KvGeometry Model::kv_geometry() const {
  return UniformKvGeometry{config().num_layers, config().num_heads, config().num_kv_heads,
                           config().head_dim};
}

const BlockWeights& Model::block(int64_t layer) const {
  PMKVQ_CHECK(layer >= 0 && layer < config().num_layers);
  return impl_->blocks[static_cast<size_t>(layer)];
}

double Model::attention_scale() const {
  return 1.0 / std::sqrt(static_cast<double>(config().head_dim));
}

}  // namespace pmkvq
