#include <fmt/format.h>

#include <set>
#include <string>
#include <utility>

#include "pmkvq/base/check.h"
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
    case RopeScaling::Type::kFactors:
      params.scaling = RopeParams::Scaling::kFactors;
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
  params.factors = scaling.factors;
  return params;
}

// Fills all places of `list`. The rest of the checkpoint must not hold weights of blocks: ignoring
// them would compute another function than the one that was trained.
void BindWeights(const Checkpoint& checkpoint, const WeightList& list) {
  std::set<const StoredWeight*> bound;
  for (const WeightSlot& slot : list.slots()) {
    const StoredWeight& stored = checkpoint.weights().Get(slot.name, slot.shape);
    bound.insert(&stored);
    const int64_t cols = slot.shape.back();
    const WeightView view{stored.data, *stored.format, NumElements(slot.shape) / cols, cols};
    if (slot.matrix != nullptr) {
      *slot.matrix = view;
    } else {
      slot.vector->resize(static_cast<size_t>(cols));
      ExpandRow(view, 0, slot.vector->data());
    }
  }
  for (const StoredWeight& tensor : checkpoint.weights().tensors()) {
    if (!tensor.of_block || bound.contains(&tensor)) continue;
    const ModelConfig& config = checkpoint.config();
    throw InvalidInput(
        tensor.file,
        fmt::format("tensor '{}': found here, expected only what config.json announces ({}, "
                    "{} blocks)",
                    tensor.stored_name, config.architecture, config.num_layers));
  }
}

}  // namespace

ModelParts::ModelParts(const ModelConfig& config, const RopeTable& rope) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    attentions.push_back(MakeAttention(config, rope, layer));
    mlps.push_back(MakeMlp(config, layer));
  }
}

void ModelParts::Declare(const ModelConfig& config, WeightList& list) {
  list.Matrix("embedding", config.vocab_size, config.hidden_size, embedding);
  if (!config.tie_word_embeddings) {
    list.Matrix("output_head", config.vocab_size, config.hidden_size, output_head);
  }
  list.Norm("final_norm", config.hidden_size, final_norm);
  for (size_t layer = 0; layer < attentions.size(); ++layer) {
    list.SetPrefix(fmt::format("blocks.{}.", layer));
    attentions[layer]->Declare(list);
    mlps[layer]->Declare(list);
  }
}

std::vector<WeightDeclaration> DeclaredWeights(const ModelConfig& config) {
  const RopeTable rope(RopeParamsOf(config));
  ModelParts parts(config, rope);
  WeightList list;
  parts.Declare(config, list);
  return {list.slots().begin(), list.slots().end()};
}

Model::Impl::Impl(Checkpoint opened, const ModelOptions& options)
    : checkpoint(std::move(opened)),
      weights(options.weights),
      rope(RopeParamsOf(checkpoint.config())),
      parts(checkpoint.config(), rope) {
  WeightList list;
  parts.Declare(checkpoint.config(), list);
  BindWeights(checkpoint, list);
  if (checkpoint.config().tie_word_embeddings) parts.output_head = parts.embedding;
  if (weights == WeightMode::kQ8) QuantizeWeights(list, options.num_threads);
}

void Model::Impl::QuantizeWeights(const WeightList& list, int num_threads) {
  const WeightSource& source = checkpoint.weights();
  const auto quantize = [&](const std::string& name, WeightView& weight) {
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
  for (const WeightSlot& slot : list.slots()) {
    if (slot.matrix == nullptr || slot.matrix == &parts.embedding) continue;
    quantize(slot.name, *slot.matrix);
  }
  if (checkpoint.config().tie_word_embeddings) quantize("embedding", parts.output_head);
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
const WeightView& Model::embedding() const { return impl_->parts.embedding; }
const WeightView& Model::output_head() const { return impl_->parts.output_head; }
const std::vector<float>& Model::final_norm() const { return impl_->parts.final_norm; }

KvGeometry Model::kv_geometry() const {
  return UniformKvGeometry{config().num_layers, config().num_heads, config().num_kv_heads,
                           config().head_dim};
}

const Attention& Model::attention(int64_t layer) const {
  PMKVQ_CHECK(layer >= 0 && layer < config().num_layers);
  return *impl_->parts.attentions[static_cast<size_t>(layer)];
}

const Mlp& Model::mlp(int64_t layer) const {
  PMKVQ_CHECK(layer >= 0 && layer < config().num_layers);
  return *impl_->parts.mlps[static_cast<size_t>(layer)];
}

double Model::attention_scale() const { return attention(0).scale(); }

}  // namespace pmkvq
