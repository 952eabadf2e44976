// What a Model owns. Private to this module.
#pragma once

#include <vector>

#include "pmkvq/model/model.h"

namespace pmkvq {

struct Model::Impl {
  explicit Impl(Checkpoint opened);

  Checkpoint checkpoint;
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
