#include "pmkvq/io/weights/hugging_face_names.h"

#include <optional>
#include <span>

namespace pmkvq {
namespace {

constexpr std::string_view kStoredBlocks = "model.layers.";
constexpr std::string_view kBlocks = "blocks.";

struct Names {
  std::string_view stored;
  std::string_view canonical;
};

constexpr Names kOutside[] = {{"model.embed_tokens.weight", "embedding"},
                              {"lm_head.weight", "output_head"},
                              {"model.norm.weight", "final_norm"}};

// Behind the number of the block.
constexpr Names kOfBlock[] = {
    {"input_layernorm.weight", "attn.norm"},    {"self_attn.q_proj.weight", "attn.q"},
    {"self_attn.k_proj.weight", "attn.k"},      {"self_attn.v_proj.weight", "attn.v"},
    {"self_attn.o_proj.weight", "attn.o"},      {"self_attn.q_proj.bias", "attn.q.bias"},
    {"self_attn.k_proj.bias", "attn.k.bias"},   {"self_attn.v_proj.bias", "attn.v.bias"},
    {"self_attn.o_proj.bias", "attn.o.bias"},   {"self_attn.q_norm.weight", "attn.q_norm"},
    {"self_attn.k_norm.weight", "attn.k_norm"}, {"post_attention_layernorm.weight", "mlp.norm"},
    {"mlp.gate_proj.weight", "mlp.gate"},       {"mlp.up_proj.weight", "mlp.up"},
    {"mlp.down_proj.weight", "mlp.down"}};

std::optional<std::string_view> Translate(std::span<const Names> names,
                                          std::string_view Names::*from,
                                          std::string_view Names::*to, std::string_view name) {
  for (const Names& each : names) {
    if (each.*from == name) return each.*to;
  }
  return std::nullopt;
}

// Translates `name` by one map or the other; blocks keep their number as it is spelt.
std::optional<std::string> Translate(std::string_view Names::*from, std::string_view from_blocks,
                                     std::string_view Names::*to, std::string_view to_blocks,
                                     std::string_view name) {
  if (!name.starts_with(from_blocks)) {
    const std::optional<std::string_view> outside = Translate(kOutside, from, to, name);
    if (!outside.has_value()) return std::nullopt;
    return std::string(*outside);
  }
  name.remove_prefix(from_blocks.size());
  const size_t digits = name.find_first_not_of("0123456789");
  if (digits == std::string_view::npos || digits == 0 || name[digits] != '.') return std::nullopt;
  const std::optional<std::string_view> rest =
      Translate(kOfBlock, from, to, name.substr(digits + 1));
  if (!rest.has_value()) return std::nullopt;
  std::string translated(to_blocks);
  translated.append(name.substr(0, digits + 1)).append(*rest);
  return translated;
}

}  // namespace

std::string CanonicalNameOfHuggingFace(std::string_view stored_name) {
  return Translate(&Names::stored, kStoredBlocks, &Names::canonical, kBlocks, stored_name)
      .value_or("");
}

std::string HuggingFaceName(std::string_view name) {
  return Translate(&Names::canonical, kBlocks, &Names::stored, kStoredBlocks, name)
      .value_or(std::string(name));
}

bool IsOfBlockOfHuggingFace(std::string_view stored_name) {
  // Old checkpoints store the RoPE frequencies; they follow from the config.
  return stored_name.starts_with(kStoredBlocks) && !stored_name.ends_with("rotary_emb.inv_freq");
}

}  // namespace pmkvq
