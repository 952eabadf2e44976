#include "pmkvq/kv/key_scales.h"

#include <fmt/format.h>

#include <cmath>
#include <string>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

void CheckBlock(const Tensor& scales, size_t layer, const Shape& expected) {
  const std::string where = fmt::format("key scales of block {}", layer);
  if (scales.dtype() != DType::kF32 || scales.shape() != expected) {
    throw InvalidInput(where, fmt::format("found {} {}, expected F32 {}", NameOf(scales.dtype()),
                                          ToString(scales.shape()), ToString(expected)));
  }
  const float* values = scales.As<float>();
  for (int64_t i = 0; i < scales.num_elements(); ++i) {
    if (!(std::isfinite(values[i]) && values[i] > 0.0f)) {
      throw InvalidInput(
          where, fmt::format("found {} at index {}, expected finite values above 0", values[i], i));
    }
  }
}

}  // namespace

Shape KeyScales::ShapeOf(const KvBlockGeometry& block) {
  if (block.is_latent()) return {block.latent_width() + block.rope_width()};
  return {block.k().heads, block.k().width / 2};
}

std::shared_ptr<const KeyScales> KeyScales::Make(const KvGeometry& geometry,
                                                 const std::vector<Tensor>& scales) {
  if (scales.empty()) return nullptr;
  if (static_cast<int64_t>(scales.size()) != geometry.num_layers()) {
    throw InvalidInput("key scales", fmt::format("found scales of {} blocks, expected {}",
                                                 scales.size(), geometry.num_layers()));
  }
  const std::shared_ptr<KeyScales> made(new KeyScales());
  for (size_t layer = 0; layer < scales.size(); ++layer) {
    std::vector<float>& queries = made->query_factors_.emplace_back();
    std::vector<float>& keys = made->key_factors_.emplace_back();
    const KvBlockGeometry& block = geometry.blocks[layer];
    if (!block.has_cache()) continue;
    CheckBlock(scales[layer], layer, ShapeOf(block));
    if (block.is_latent()) {
      const float* const values = scales[layer].As<float>();
      queries.assign(values, values + scales[layer].num_elements());
      for (const float value : queries) keys.push_back(1.0f / value);
      continue;
    }
    const int64_t pairs = block.k().width / 2;
    for (int64_t kv_head = 0; kv_head < block.k().heads; ++kv_head) {
      const float* head = scales[layer].As<float>() + kv_head * pairs;
      for (int64_t i = 0; i < pairs; ++i) keys.push_back(1.0f / head[i]);
      for (int64_t h = 0; h < block.num_heads / block.k().heads; ++h) {
        queries.insert(queries.end(), head, head + pairs);
      }
    }
  }
  return made;
}

}  // namespace pmkvq
