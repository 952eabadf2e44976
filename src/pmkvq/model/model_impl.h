// What a Model owns. Private to this module.
#pragma once

#include <memory>
#include <vector>

#include "pmkvq/kernels/gemm/weight_q8.h"
#include "pmkvq/model/blocks/block.h"
#include "pmkvq/model/model.h"

namespace pmkvq {

// The graph of a config and the places of its weights. `config` and `rope` must outlive it.
struct ModelParts {
  ModelParts(const ModelConfig& config, const RopeTable& rope);
  void Declare(const ModelConfig& config, WeightList& list);

  WeightView embedding;
  WeightView output_head;  // Not declared when it is the embedding.
  std::vector<float> final_norm;
  std::vector<std::unique_ptr<Attention>> attentions;  // Per block.
  std::vector<std::unique_ptr<Mlp>> mlps;
};

struct Model::Impl {
  Impl(Checkpoint opened, const ModelOptions& options);

  // Replaces all matrices but the embedding by quantised ones.
  void QuantizeWeights(const WeightList& list, int num_threads);

  Checkpoint checkpoint;
  WeightMode weights = WeightMode::kAsStored;
  std::vector<Q8Weight> quantized;  // What the views of `parts` show with kQ8.
  RopeTable rope;
  ModelParts parts;
};

}  // namespace pmkvq
