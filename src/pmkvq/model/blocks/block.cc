#include "pmkvq/model/blocks/block.h"

#include "pmkvq/model/blocks/attention_gqa.h"
#include "pmkvq/model/blocks/attention_mla.h"
#include "pmkvq/model/blocks/mlp_dense.h"
#include "pmkvq/model/blocks/mlp_moe.h"

namespace pmkvq {

std::unique_ptr<Attention> MakeAttention(const ModelConfig& config, const RopeTable& rope,
                                         int64_t layer, const ModelShard* shard) {
  if (config.mla) return std::make_unique<AttentionMla>(config, rope, layer);
  return std::make_unique<AttentionGqa>(config, rope, layer, shard);
}

std::unique_ptr<Mlp> MakeMlp(const ModelConfig& config, int64_t layer, const ModelShard* shard) {
  if (config.moe && config.moe->IsIn(layer)) return std::make_unique<MlpMoe>(config, shard);
  return std::make_unique<MlpDense>(config, shard);
}

}  // namespace pmkvq
