// Key scales of a cache: factors s per channel pair, by which keys are divided before they are
// stored and queries multiplied. q . k is unchanged; keys whose channels are of like size quantise
// better. Of a latent block there is a factor for each channel of c and of k_r, and outputs, which
// are sums of c, are multiplied by those of c.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pmkvq/kv/kv_geometry.h"
#include "pmkvq/tensor/tensor.h"

namespace pmkvq {

// Immutable, so that any number of stores and threads may share one object.
class KeyScales {
 public:
  // `scales`: s of every block (ShapeOf) f32, all values finite and above 0, as a plan holds them;
  // of a block without cache any. Null where there are none.
  // Throws InvalidInput naming the block: another number of blocks, shape or type, a wrong value.
  static std::shared_ptr<const KeyScales> Make(const KvGeometry& geometry,
                                               const std::vector<Tensor>& scales);

  // [Hkv, D/2]; of a latent block [r + dr], those of c first.
  static Shape ShapeOf(const KvBlockGeometry& block);

  // Factors for ApplyRope: s for each query head, [H, D/2]; 1 / s, [Hkv, D/2]. Of a latent block,
  // whose store applies them after RoPE, s and 1 / s as they are, [r + dr].
  const float* query_factors(int64_t layer) const {
    return query_factors_[static_cast<size_t>(layer)].data();
  }
  const float* key_factors(int64_t layer) const {
    return key_factors_[static_cast<size_t>(layer)].data();
  }

 private:
  KeyScales() = default;

  std::vector<std::vector<float>> query_factors_;
  std::vector<std::vector<float>> key_factors_;
};

}  // namespace pmkvq
