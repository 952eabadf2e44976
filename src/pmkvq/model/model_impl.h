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
};

}  // namespace pmkvq
