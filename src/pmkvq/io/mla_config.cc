#include "pmkvq/io/mla_config.h"

#include <cmath>

#include "pmkvq/io/model_bounds.h"

namespace pmkvq::internal {
namespace {

constexpr int64_t kGroup = 128;

int64_t HeadPart(const JsonValue& json, const char* key) {
  return json.At(key).AsInt(1, kMaxHidden);
}

// Other forms of attention of the same family.
void RefuseOtherAttention(const JsonValue& json) {
  for (const char* key : {"attention_bias", "mla_use_nope"}) {
    if (json.BoolOr(key, false)) json.At(key).Refuse("false");
  }
  // DeepSeek-V3.2 attends to the tokens that an indexer chooses.
  for (const char* key : {"index_topk", "index_n_heads", "index_head_dim"}) {
    if (!json.Find(key).IsNull()) json.At(key).Refuse("no such field: attention to all tokens");
  }
}

}  // namespace

bool IsLatentWidth(int64_t width) {
  return width > 0 && (width <= kGroup ? width % 8 == 0 : width % kGroup == 0);
}

bool IsRopeKeyWidth(int64_t width) { return width > 0 && width <= kGroup && width % 8 == 0; }

double FactorOfScores(const RopeScaling& scaling) {
  if (scaling.type != RopeScaling::Type::kYarn || scaling.factor <= 1) return 1;
  const double m = 0.1 * scaling.mscale_all_dim * std::log(scaling.factor) + 1;
  return m * m;
}

MlaConfig ParseMlaConfig(const JsonValue& json, const ModelConfig& config) {
  RefuseOtherAttention(json);
  MlaConfig mla;
  const JsonValue query_rank = json.Find("q_lora_rank");
  // Absent means 1536 to transformers: a config that forgets it is more likely wrong.
  if (query_rank.IsMissing()) query_rank.Fail("an integer, or null");
  if (!query_rank.IsNull()) mla.query_rank = query_rank.AsInt(1, kMaxHidden);
  const JsonValue latent = json.At("kv_lora_rank");
  mla.latent = latent.AsInt(1, kMaxHidden);
  if (!IsLatentWidth(mla.latent)) {
    latent.Refuse("a multiple of 8 up to 128, or a multiple of 128 (whole quantisation groups)");
  }
  const JsonValue rope = json.At("qk_rope_head_dim");
  mla.rope_dim = rope.AsInt(1, kMaxHidden);
  if (!IsRopeKeyWidth(mla.rope_dim)) {
    rope.Refuse("a multiple of 8 up to 128 (one quantisation group)");
  }
  mla.nope_dim = HeadPart(json, "qk_nope_head_dim");
  mla.value_dim = HeadPart(json, "v_head_dim");
  mla.rope_in_pairs = json.BoolOr("rope_interleave", true);
  const JsonValue kv_heads = json.Find("num_key_value_heads");
  if (!kv_heads.IsNull() && kv_heads.AsInt() != config.num_heads) {
    kv_heads.Fail("num_attention_heads: latents give every query head separate keys and values");
  }
  return mla;
}

}  // namespace pmkvq::internal
