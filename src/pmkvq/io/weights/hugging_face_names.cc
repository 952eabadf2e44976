#include "pmkvq/io/weights/hugging_face_names.h"

#include <charconv>

#include "pmkvq/io/weights/name_map.h"

namespace pmkvq {
namespace {

constexpr std::string_view kStoredBlocks = "model.layers.";

constexpr internal::NamePair kOutside[] = {{"model.embed_tokens.weight", "embedding"},
                                           {"lm_head.weight", "output_head"},
                                           {"model.norm.weight", "final_norm"}};

// Behind the number of the block.
constexpr internal::NamePair kOfBlock[] = {
    {"input_layernorm.weight", "attn.norm"},
    {"self_attn.q_proj.weight", "attn.q"},
    {"self_attn.k_proj.weight", "attn.k"},
    {"self_attn.v_proj.weight", "attn.v"},
    {"self_attn.o_proj.weight", "attn.o"},
    {"self_attn.q_proj.bias", "attn.q.bias"},
    {"self_attn.k_proj.bias", "attn.k.bias"},
    {"self_attn.v_proj.bias", "attn.v.bias"},
    {"self_attn.o_proj.bias", "attn.o.bias"},
    {"self_attn.q_a_proj.weight", "attn.q_a"},
    {"self_attn.q_a_layernorm.weight", "attn.q_a_norm"},
    {"self_attn.q_b_proj.weight", "attn.q_b"},
    {"self_attn.kv_a_proj_with_mqa.weight", "attn.kv_a"},
    {"self_attn.kv_a_layernorm.weight", "attn.kv_a_norm"},
    {"self_attn.kv_b_proj.weight", "attn.kv_b"},
    {"self_attn.q_norm.weight", "attn.q_norm"},
    {"self_attn.k_norm.weight", "attn.k_norm"},
    {"post_attention_layernorm.weight", "mlp.norm"},
    {"mlp.gate_proj.weight", "mlp.gate"},
    {"mlp.up_proj.weight", "mlp.up"},
    {"mlp.down_proj.weight", "mlp.down"},
    {"mlp.gate.weight", "mlp.router"},
    {"mlp.gate.e_score_correction_bias", "mlp.router.bias"},
    {"mlp.shared_experts.gate_proj.weight", "mlp.shared.gate"},
    {"mlp.shared_experts.up_proj.weight", "mlp.shared.up"},
    {"mlp.shared_experts.down_proj.weight", "mlp.shared.down"},
    {"mlp.experts.*.gate_proj.weight", "mlp.experts.*.gate"},
    {"mlp.experts.*.up_proj.weight", "mlp.experts.*.up"},
    {"mlp.experts.*.down_proj.weight", "mlp.experts.*.down"},
    // Of all experts at once, as transformers holds them in memory. Behind the names of one expert,
    // which is what a canonical name leads back to.
    {"mlp.experts.gate_up_proj", "mlp.experts.*.gate_up"},
    {"mlp.experts.down_proj", "mlp.experts.*.down"}};

// Where there are norms behind attention and MLP, the first of them has the name that the norm in
// front of the MLP has elsewhere. Looked up before kOfBlock.
constexpr internal::NamePair kOfBlockWithPostNorms[] = {
    {"post_attention_layernorm.weight", "attn.post_norm"},
    {"pre_feedforward_layernorm.weight", "mlp.norm"},
    {"post_feedforward_layernorm.weight", "mlp.post_norm"}};

// Mixtral's names of a mixture of experts.
constexpr internal::NamePair kOfBlockWithSparseMoe[] = {
    {"block_sparse_moe.gate.weight", "mlp.router"},
    {"block_sparse_moe.experts.*.w1.weight", "mlp.experts.*.gate"},
    {"block_sparse_moe.experts.*.w3.weight", "mlp.experts.*.up"},
    {"block_sparse_moe.experts.*.w2.weight", "mlp.experts.*.down"}};

constexpr internal::NameMap kMap{kStoredBlocks, kOutside, kOfBlock};
constexpr internal::NameMap kPostNormMap{kStoredBlocks, {}, kOfBlockWithPostNorms};
constexpr internal::NameMap kSparseMoeMap{kStoredBlocks, {}, kOfBlockWithSparseMoe};

// What a naming has besides the names of all, and before them; null: nothing.
const internal::NameMap* SpecialNames(HuggingFaceNaming naming) {
  switch (naming) {
    case HuggingFaceNaming::kUsual:
      return nullptr;
    case HuggingFaceNaming::kPostNorms:
      return &kPostNormMap;
    case HuggingFaceNaming::kSparseMoe:
      return &kSparseMoeMap;
  }
  return nullptr;
}

constexpr std::string_view kPartsOfQkv[] = {"attn.q", "attn.k", "attn.v"};
constexpr std::string_view kPartsOfGateUp[] = {"mlp.gate", "mlp.up"};

struct Fused {
  std::string_view stored;
  std::span<const std::string_view> parts;
};
constexpr Fused kFused[] = {{"self_attn.qkv_proj.weight", kPartsOfQkv},
                            {"mlp.gate_up_proj.weight", kPartsOfGateUp}};

}  // namespace

HuggingFaceNaming NamingShownBy(std::string_view stored_name) {
  if (!stored_name.starts_with(kStoredBlocks)) return HuggingFaceNaming::kUsual;
  if (stored_name.ends_with(".pre_feedforward_layernorm.weight")) {
    return HuggingFaceNaming::kPostNorms;
  }
  return stored_name.find(".block_sparse_moe.") == std::string_view::npos
             ? HuggingFaceNaming::kUsual
             : HuggingFaceNaming::kSparseMoe;
}

std::string CanonicalNameOfHuggingFace(std::string_view stored_name, HuggingFaceNaming naming) {
  if (const internal::NameMap* const special = SpecialNames(naming)) {
    const std::optional<std::string> name = special->CanonicalName(stored_name);
    if (name.has_value()) return *name;
  }
  return kMap.CanonicalName(stored_name).value_or("");
}

std::string HuggingFaceName(std::string_view name, HuggingFaceNaming naming) {
  if (const internal::NameMap* const special = SpecialNames(naming)) {
    const std::optional<std::string> stored = special->StoredName(name);
    if (stored.has_value()) return *stored;
  }
  return kMap.StoredName(name).value_or(std::string(name));
}

std::vector<std::string> PartsOfExpert(std::string_view name) {
  constexpr std::string_view kBoth = ".gate_up";
  if (name.find(".mlp.experts.") == std::string_view::npos || !name.ends_with(kBoth)) return {};
  const std::string expert(name.substr(0, name.size() - kBoth.size()));
  return {expert + ".gate", expert + ".up"};
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

int64_t BlockOfHuggingFace(std::string_view stored_name) {
  if (!stored_name.starts_with(kStoredBlocks)) return -1;
  const std::string_view behind = stored_name.substr(kStoredBlocks.size());
  int64_t block = -1;
  const auto [end, error] = std::from_chars(behind.data(), behind.data() + behind.size(), block);
  const bool is_number = error == std::errc() && end != behind.data() + behind.size() &&
                         *end == '.' && behind.front() != '-';
  return is_number ? block : -1;
}

bool IsOfBlockOfHuggingFace(std::string_view stored_name) {
  // Old checkpoints store the RoPE frequencies; they follow from the config.
  return stored_name.starts_with(kStoredBlocks) && !stored_name.ends_with("rotary_emb.inv_freq");
}

}  // namespace pmkvq
