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

// Finds weights by their Hugging Face names and remembers which ones were asked for.
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
    for (const SafetensorsFile& file : checkpoint_.files()) {
      for (const auto& [name, tensor] : file.tensors()) {
        const bool of_block = name.starts_with("model.layers.");
        // Old checkpoints store the RoPE frequencies; they follow from the config.
        if (!of_block || name.ends_with("rotary_emb.inv_freq") || bound_.contains(name)) continue;
        const ModelConfig& config = checkpoint_.config();
        throw InvalidInput(
            file.path(),
            fmt::format("tensor '{}': found here, expected only what config.json announces ({}, "
                        "{} blocks)",
                        name, config.architecture, config.num_layers));
      }
    }
  }

 private:
  WeightView Bind(const std::string& name, const Shape& shape, int64_t rows, int64_t cols) {
    const TensorView& tensor = checkpoint_.Get(name, shape);
    bound_.insert(name);
    return {tensor.data, tensor.dtype, rows, cols};
  }

  const Checkpoint& checkpoint_;
  std::set<std::string> bound_;
};

BlockWeights BindBlock(const ModelConfig& config, int64_t layer, Binder& binder) {
  const std::string block = fmt::format("model.layers.{}.", layer);
  const std::string attention = block + "self_attn.";
  const int64_t hidden = config.hidden_size;
  BlockWeights weights;
  weights.attention_norm = binder.Vector(block + "input_layernorm.weight", hidden);
  weights.q_proj = binder.Matrix(attention + "q_proj.weight", config.q_dim(), hidden);
  weights.k_proj = binder.Matrix(attention + "k_proj.weight", config.kv_dim(), hidden);
  weights.v_proj = binder.Matrix(attention + "v_proj.weight", config.kv_dim(), hidden);
  weights.o_proj = binder.Matrix(attention + "o_proj.weight", hidden, config.q_dim());
  if (config.qkv_bias) {
    weights.q_bias = binder.Vector(attention + "q_proj.bias", config.q_dim());
    weights.k_bias = binder.Vector(attention + "k_proj.bias", config.kv_dim());
    weights.v_bias = binder.Vector(attention + "v_proj.bias", config.kv_dim());
  }
  if (config.o_bias) weights.o_bias = binder.Vector(attention + "o_proj.bias", hidden);
  if (config.qk_norm) {
    weights.q_norm = binder.Vector(attention + "q_norm.weight", config.head_dim);
    weights.k_norm = binder.Vector(attention + "k_norm.weight", config.head_dim);
  }
  const int64_t inner = config.intermediate_size;
  weights.mlp_norm = binder.Vector(block + "post_attention_layernorm.weight", hidden);
  weights.gate_proj = binder.Matrix(block + "mlp.gate_proj.weight", inner, hidden);
  weights.up_proj = binder.Matrix(block + "mlp.up_proj.weight", inner, hidden);
  weights.down_proj = binder.Matrix(block + "mlp.down_proj.weight", hidden, inner);
  return weights;
}

}  // namespace

Model::Impl::Impl(Checkpoint opened, const ModelOptions& options)
    : checkpoint(std::move(opened)), rope(RopeParamsOf(checkpoint.config())) {
  const ModelConfig& config = checkpoint.config();
  Binder binder(checkpoint);
  embedding = binder.Matrix("model.embed_tokens.weight", config.vocab_size, config.hidden_size);
  output_head = config.tie_word_embeddings
                    ? embedding
                    : binder.Matrix("lm_head.weight", config.vocab_size, config.hidden_size);
  final_norm = binder.Vector("model.norm.weight", config.hidden_size);
  blocks.reserve(static_cast<size_t>(config.num_layers));
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    blocks.push_back(BindBlock(config, layer, binder));
  }
  binder.CheckNothingLeft();
  if (options.weights == WeightMode::kQ8) QuantizeWeights(options.num_threads);
  weights = options.weights;
}

void Model::Impl::QuantizeWeights(int num_threads) {
  const auto quantize = [&](WeightView& weight, const std::string& what) {
    Q8Weight& made = quantized.emplace_back();
    if (!QuantizeWeight(weight, num_threads, made)) {
      throw InvalidInput(checkpoint.folder(),
                         what + ": found a value that is not finite, expected finite weights");
    }
    checkpoint.DropPages({weight.data, weight.dtype, {weight.rows, weight.cols}});
    weight = made.view();
  };
  for (size_t layer = 0; layer < blocks.size(); ++layer) {
    const std::string block = fmt::format("block {} ", layer);
    BlockWeights& own = blocks[layer];
    quantize(own.q_proj, block + "q_proj");
    quantize(own.k_proj, block + "k_proj");
    quantize(own.v_proj, block + "v_proj");
    quantize(own.o_proj, block + "o_proj");
    quantize(own.gate_proj, block + "gate_proj");
    quantize(own.up_proj, block + "up_proj");
    quantize(own.down_proj, block + "down_proj");
  }
  quantize(output_head, "output head");
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
