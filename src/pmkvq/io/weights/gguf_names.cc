#include "pmkvq/io/weights/gguf_names.h"

#include "pmkvq/io/weights/name_map.h"

namespace pmkvq {
namespace {

constexpr std::string_view kStoredBlocks = "blk.";

constexpr internal::NamePair kOutside[] = {{"token_embd.weight", "embedding"},
                                           {"output.weight", "output_head"},
                                           {"output_norm.weight", "final_norm"}};

constexpr internal::NamePair kOfBlock[] = {{"attn_norm.weight", "attn.norm"},
                                           {"attn_q.weight", "attn.q"},
                                           {"attn_k.weight", "attn.k"},
                                           {"attn_v.weight", "attn.v"},
                                           {"attn_output.weight", "attn.o"},
                                           {"attn_q.bias", "attn.q.bias"},
                                           {"attn_k.bias", "attn.k.bias"},
                                           {"attn_v.bias", "attn.v.bias"},
                                           {"attn_output.bias", "attn.o.bias"},
                                           {"attn_q_a.weight", "attn.q_a"},
                                           {"attn_q_a_norm.weight", "attn.q_a_norm"},
                                           {"attn_q_b.weight", "attn.q_b"},
                                           {"attn_kv_a_mqa.weight", "attn.kv_a"},
                                           {"attn_kv_a_norm.weight", "attn.kv_a_norm"},
                                           {"attn_kv_b.weight", "attn.kv_b"},
                                           {"attn_k_b.weight", "attn.k_b"},
                                           {"attn_v_b.weight", "attn.v_b"},
                                           {"attn_q_norm.weight", "attn.q_norm"},
                                           {"attn_k_norm.weight", "attn.k_norm"},
                                           {"ffn_norm.weight", "mlp.norm"},
                                           {"ffn_gate.weight", "mlp.gate"},
                                           {"ffn_up.weight", "mlp.up"},
                                           {"ffn_down.weight", "mlp.down"},
                                           {"ffn_gate_inp.weight", "mlp.router"},
                                           {"ffn_gate_exps.weight", "mlp.experts.*.gate"},
                                           {"ffn_up_exps.weight", "mlp.experts.*.up"},
                                           {"ffn_down_exps.weight", "mlp.experts.*.down"},
                                           {"exp_probs_b.bias", "mlp.router.bias"},
                                           {"ffn_gate_shexp.weight", "mlp.shared.gate"},
                                           {"ffn_up_shexp.weight", "mlp.shared.up"},
                                           {"ffn_down_shexp.weight", "mlp.shared.down"},
                                           // Files made before April 2024.
                                           {"ffn_gate.*.weight", "mlp.experts.*.gate"},
                                           {"ffn_up.*.weight", "mlp.experts.*.up"},
                                           {"ffn_down.*.weight", "mlp.experts.*.down"}};

constexpr internal::NameMap kMap{kStoredBlocks, kOutside, kOfBlock};

}  // namespace

std::string CanonicalNameOfGguf(std::string_view stored_name) {
  return kMap.CanonicalName(stored_name).value_or("");
}

std::string GgufName(std::string_view name) {
  return kMap.StoredName(name).value_or(std::string(name));
}

bool IsOfBlockOfGguf(std::string_view stored_name) {
  // Old converters stored the RoPE frequencies; they follow from the metadata.
  return stored_name.starts_with(kStoredBlocks) && !stored_name.ends_with(".attn_rot_embd") &&
         !stored_name.ends_with(".attn_rot_embd.weight");
}

}  // namespace pmkvq
