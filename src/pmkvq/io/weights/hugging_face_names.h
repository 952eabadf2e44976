// What checkpoints of Hugging Face call the weights that io/weights/weight_source.h names.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

// "model.layers.3.self_attn.q_proj.weight" -> "blocks.3.attn.q". Empty where the map has no entry.
// `has_post_norms`: "post_attention_layernorm" is the norm behind attention, as in Gemma, and not
// that in front of the MLP.
std::string CanonicalNameOfHuggingFace(std::string_view stored_name, bool has_post_norms = false);
// The reverse. A name that is not in the map stays as it is.
std::string HuggingFaceName(std::string_view name, bool has_post_norms = false);
// The tensor is only in checkpoints with norms behind attention and MLP.
bool ShowsPostNorms(std::string_view stored_name);
// Some checkpoints hold several matrices as one, rows behind rows: "self_attn.qkv_proj.weight" has
// the rows of q, k and v, "mlp.gate_up_proj.weight" those of gate and up. The canonical names of
// the parts, in order; empty for other tensors.
std::vector<std::string> FusedPartsOfHuggingFace(std::string_view stored_name);
// The tensor lies below the blocks ("model.layers.") and holds weights.
bool IsOfBlockOfHuggingFace(std::string_view stored_name);

}  // namespace pmkvq
