// What checkpoints of Hugging Face call the weights that io/weights/weight_source.h names.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

// Where the names of families differ.
enum class HuggingFaceNaming : uint8_t {
  kUsual,
  kPostNorms,  // Gemma: "post_attention_layernorm" is the norm behind attention, and not that in
               // front of the MLP.
  kSparseMoe,  // Mixtral: experts are "block_sparse_moe.experts.7.w1" instead of
               // "mlp.experts.7.gate_proj".
};

// The naming that only checkpoints with such a tensor have; kUsual for tensors of any.
HuggingFaceNaming NamingShownBy(std::string_view stored_name);
// "model.layers.3.self_attn.q_proj.weight" -> "blocks.3.attn.q". Empty where the map has no entry.
// Tensors of all experts have '*' in the place of the expert (expert_stacks.h).
std::string CanonicalNameOfHuggingFace(std::string_view stored_name,
                                       HuggingFaceNaming naming = HuggingFaceNaming::kUsual);
// The reverse. A name that is not in the map stays as it is.
std::string HuggingFaceName(std::string_view name,
                            HuggingFaceNaming naming = HuggingFaceNaming::kUsual);
// Some checkpoints hold several matrices as one, rows behind rows: "self_attn.qkv_proj.weight" has
// the rows of q, k and v, "mlp.gate_up_proj.weight" those of gate and up. The canonical names of
// the parts, in order; empty for other tensors.
std::vector<std::string> FusedPartsOfHuggingFace(std::string_view stored_name);
// The same of a matrix of one expert by its canonical name: the rows of "mlp.experts.3.gate_up" are
// those of "mlp.experts.3.gate" and "mlp.experts.3.up".
std::vector<std::string> PartsOfExpert(std::string_view name);
// The number of the block that a tensor lies in, as far as its name says one; else -1.
int64_t BlockOfHuggingFace(std::string_view stored_name);
// The tensor lies below the blocks ("model.layers.") and holds weights.
bool IsOfBlockOfHuggingFace(std::string_view stored_name);

}  // namespace pmkvq
