#include "pmkvq/io/weights/hugging_face_names.h"

#include "pmkvq/io/weights/name_map.h"

namespace pmkvq {
namespace {

constexpr std::string_view kStoredBlocks = "model.layers.";

constexpr internal::NamePair kOutside[] = {{"model.embed_tokens.weight", "embedding"},
                                           {"lm_head.weight", "output_head"},
                                           {"model.norm.weight", "final_norm"}};

// Behind the number of the block.
constexpr internal::NamePair kOfBlock[] = {
    {"input_layernorm.weight", "attn.norm"},    {"self_attn.q_proj.weight", "attn.q"},
    {"self_attn.k_proj.weight", "attn.k"},      {"self_attn.v_proj.weight", "attn.v"},
    {"self_attn.o_proj.weight", "attn.o"},      {"self_attn.q_proj.bias", "attn.q.bias"},
    {"self_attn.k_proj.bias", "attn.k.bias"},   {"self_attn.v_proj.bias", "attn.v.bias"},
    {"self_attn.o_proj.bias", "attn.o.bias"},   {"self_attn.q_norm.weight", "attn.q_norm"},
    {"self_attn.k_norm.weight", "attn.k_norm"}, {"post_attention_layernorm.weight", "mlp.norm"},
    {"mlp.gate_proj.weight", "mlp.gate"},       {"mlp.up_proj.weight", "mlp.up"},
    {"mlp.down_proj.weight", "mlp.down"}};

// Where there are norms behind attention and MLP, the first of them has the name that the norm in
// front of the MLP has elsewhere. Looked up before kOfBlock.
constexpr internal::NamePair kOfBlockWithPostNorms[] = {
    {"post_attention_layernorm.weight", "attn.post_norm"},
    {"pre_feedforward_layernorm.weight", "mlp.norm"},
    {"post_feedforward_layernorm.weight", "mlp.post_norm"}};

constexpr internal::NameMap kMap{kStoredBlocks, kOutside, kOfBlock};
constexpr internal::NameMap kPostNormMap{kStoredBlocks, {}, kOfBlockWithPostNorms};

constexpr std::string_view kPartsOfQkv[] = {"attn.q", "attn.k", "attn.v"};
constexpr std::string_view kPartsOfGateUp[] = {"mlp.gate", "mlp.up"};

struct Fused {
  std::string_view stored;
  std::span<const std::string_view> parts;
};
constexpr Fused kFused[] = {{"self_attn.qkv_proj.weight", kPartsOfQkv},
                            {"mlp.gate_up_proj.weight", kPartsOfGateUp}};

}  // namespace

bool ShowsPostNorms(std::string_view stored_name) {
  return stored_name.starts_with(kStoredBlocks) &&
         stored_name.ends_with(".pre_feedforward_layernorm.weight");
}

std::string CanonicalNameOfHuggingFace(std::string_view stored_name, bool has_post_norms) {
  if (has_post_norms) {
    const std::optional<std::string> name = kPostNormMap.CanonicalName(stored_name);
    if (name.has_value()) return *name;
  }
  return kMap.CanonicalName(stored_name).value_or("");
}

std::string HuggingFaceName(std::string_view name, bool has_post_norms) {
  if (has_post_norms) {
    const std::optional<std::string> stored = kPostNormMap.StoredName(name);
    if (stored.has_value()) return *stored;
  }
  return kMap.StoredName(name).value_or(std::string(name));
}

std::vector<std::string> FusedPartsOfHuggingFace(std::string_view stored_name) {
  if (!stored_name.starts_with(kStoredBlocks)) return {};
  const std::string_view behind = stored_name.substr(kStoredBlocks.size());
  const size_t digits = behind.find_first_not_of("0123456789");
  if (digits == std::string_view::npos || digits == 0 || behind[digits] != '.') return {};
  std::vector<std::string> names;
  for (const Fused& fused : kFused) {
    if (behind.substr(digits + 1) != fused.stored) continue;
    for (const std::string_view part : fused.parts) {
      names.push_back(std::string("blocks.").append(behind.substr(0, digits + 1)).append(part));
    }
  }
  return names;
}

bool IsOfBlockOfHuggingFace(std::string_view stored_name) {
  // Old checkpoints store the RoPE frequencies; they follow from the config.
  return stored_name.starts_with(kStoredBlocks) && !stored_name.ends_with("rotary_emb.inv_freq");
}

}  // namespace pmkvq
