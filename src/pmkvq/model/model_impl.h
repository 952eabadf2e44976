// What a Model owns. Private to this module.
#pragma once

#include <vector>

#include "pmkvq/kernels/gemm/weight_q8.h"
#include "pmkvq/model/model.h"

namespace pmkvq {

struct Model::Impl {
  Impl(Checkpoint opened, const ModelOptions& options);

  // Replaces all matrices but the embedding by quantised ones.
  void QuantizeWeights(int num_threads);

  Checkpoint checkpoint;
  WeightMode weights = WeightMode::kAsStored;
  std::vector<Q8Weight> quantized;  // What the views below show with kQ8.
  RopeTable rope;
  std::vector<BlockWeights> blocks;
  WeightView embedding;
  WeightView output_head;
  std::vector<float> final_norm;

  // Per block, empty without key scales: s expanded to [H, D/2] for q, 1 / s [Hkv, D/2] for k.
  std::vector<std::vector<float>> query_scales;
  std::vector<std::vector<float>> key_scales;
};

}  // namespace pmkvq
