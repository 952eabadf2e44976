// A DeepSeek checkpoint as a GGUF file (deepseek2), as llama.cpp's converter writes it.
#pragma once

#include <cstring>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "pmkvq/io/checkpoint.h"
#include "pmkvq/io/weights/gguf_names.h"
#include "support/gguf_writer.h"

namespace pmkvq::testing_support {

// The metadata. `is_new`: as since April 2025, with the lengths of what is cached.
inline GgufWriter DeepSeekMetadata(const ModelConfig& config, bool is_new) {
  GgufWriter writer;
  const MlaConfig& mla = *config.mla;
  const std::string a = "deepseek2.";
  const auto number = [&](const char* key, int64_t value) {
    writer.U32(a + key, static_cast<uint32_t>(value));
  };
  writer.Text("general.architecture", "deepseek2");
  number("block_count", config.num_layers);
  number("context_length", config.max_position_embeddings);
  number("embedding_length", config.hidden_size);
  number("feed_forward_length", config.intermediate_size);
  number("attention.head_count", config.num_heads);
  number("attention.head_count_kv", is_new ? 1 : config.num_heads);
  if (mla.query_rank > 0) number("attention.q_lora_rank", mla.query_rank);
  number("attention.kv_lora_rank", mla.latent);
  number("attention.key_length", is_new ? mla.latent + mla.rope_dim : config.head_dim);
  number("attention.value_length", is_new ? mla.latent : mla.value_dim);
  if (is_new) {
    number("attention.key_length_mla", config.head_dim);
    number("attention.value_length_mla", mla.value_dim);
  }
  number("rope.dimension_count", mla.rope_dim);
  writer.F32(a + "attention.layer_norm_rms_epsilon", static_cast<float>(config.rms_norm_eps));
  writer.F32(a + "rope.freq_base", static_cast<float>(config.rope_theta));
  const RopeScaling& rope = config.rope_scaling;
  if (rope.type == RopeScaling::Type::kYarn) {
    writer.Text(a + "rope.scaling.type", "yarn");
    writer.F32(a + "rope.scaling.factor", static_cast<float>(rope.factor));
    number("rope.scaling.original_context_length", rope.original_max_position_embeddings);
    writer.F32(a + "rope.scaling.yarn_log_multiplier",
               static_cast<float>(0.1 * rope.mscale_all_dim));
  }
  if (config.moe) {
    const MoeConfig& moe = *config.moe;
    number("expert_count", moe.num_experts);
    number("expert_used_count", moe.num_chosen);
    number("expert_feed_forward_length", moe.expert_size);
    number("expert_shared_count", moe.shared_size / moe.expert_size);
    number("expert_gating_func", moe.score == ExpertScore::kSigmoid ? 2 : 1);
    number("expert_group_count", moe.num_groups);
    number("expert_group_used_count", moe.num_chosen_groups);
    writer.F32(a + "expert_weights_scale", static_cast<float>(moe.weight_factor));
    writer.Bool(a + "expert_weights_norm", moe.normalize);
  }
  return writer;
}

// The rows of a head's keys, or of its values, of an F32 kv_b: matrices [H, dn, r] or [H, dv, r]
// behind each other; those of keys transposed, [H, r, dn].
inline std::string HeadsOf(const StoredWeight& kv_b, const ModelConfig& config, bool of_keys) {
  const MlaConfig& mla = *config.mla;
  const int64_t rows = of_keys ? mla.nope_dim : mla.value_dim;
  const auto* values = reinterpret_cast<const float*>(kv_b.data);
  std::string data;
  for (int64_t head = 0; head < config.num_heads; ++head) {
    const float* matrix =
        values +
        (head * (mla.nope_dim + mla.value_dim) + (of_keys ? 0 : mla.nope_dim)) * mla.latent;
    for (int64_t i = 0; i < rows * mla.latent; ++i) {
      AppendBytes(data, of_keys ? matrix[i % rows * mla.latent + i / rows] : matrix[i]);
    }
  }
  return data;
}

// All tensors of an F32 checkpoint. Experts of a block become one tensor; with `is_new`, so do the
// matrices that make keys, and those that make values.
inline GgufWriter GgufOfDeepSeek(const Checkpoint& checkpoint, bool is_new) {
  const ModelConfig& config = checkpoint.config();
  const MlaConfig& mla = *config.mla;
  GgufWriter writer = DeepSeekMetadata(config, is_new);
  const auto size = [](int64_t value) { return static_cast<uint64_t>(value); };
  std::set<std::string> written;
  for (const StoredWeight& tensor : checkpoint.weights().tensors()) {
    const std::string stored = GgufName(tensor.name);
    const std::string block = stored.substr(0, stored.find("attn_kv_b"));
    const auto bytes = [](const StoredWeight& weight) {
      return std::string(reinterpret_cast<const char*>(weight.data), weight.num_bytes);
    };
    if (is_new && tensor.name.ends_with(".attn.kv_b")) {
      writer.Tensor(block + "attn_k_b.weight",
                    {size(mla.nope_dim), size(mla.latent), size(config.num_heads)},
                    GgufTensorType::kF32, HeadsOf(tensor, config, true));
      writer.Tensor(block + "attn_v_b.weight",
                    {size(mla.latent), size(mla.value_dim), size(config.num_heads)},
                    GgufTensorType::kF32, HeadsOf(tensor, config, false));
      continue;
    }
    std::vector<uint64_t> sizes;
    for (auto at = tensor.shape.rbegin(); at != tensor.shape.rend(); ++at) {
      sizes.push_back(size(*at));
    }
    const size_t experts = tensor.name.find(".experts.");
    if (experts == std::string::npos) {
      writer.Tensor(stored, sizes, GgufTensorType::kF32, bytes(tensor));
      continue;
    }
    if (!written.insert(stored).second) continue;
    sizes.push_back(size(config.moe->num_experts));
    const size_t number = experts + std::strlen(".experts.");
    std::string data;
    for (int64_t i = 0; i < config.moe->num_experts; ++i) {
      std::string name = tensor.name;
      name.replace(number, name.find('.', number) - number, std::to_string(i));
      data += bytes(*checkpoint.weights().Find(name));
    }
    writer.Tensor(stored, sizes, GgufTensorType::kF32, data);
  }
  return writer;
}

}  // namespace pmkvq::testing_support
