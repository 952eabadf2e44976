// What GGUF files call the weights that io/weights/weight_source.h names.
#pragma once

#include <string>
#include <string_view>

namespace pmkvq {

// "blk.3.attn_q.weight" -> "blocks.3.attn.q". Empty where the map has no entry. A tensor of all
// experts of a block has '*' in the place of the expert: "blocks.3.mlp.experts.*.gate".
std::string CanonicalNameOfGguf(std::string_view stored_name);
// The reverse. A name that is not in the map stays as it is.
std::string GgufName(std::string_view name);
// The tensor lies below the blocks ("blk.") and holds weights.
bool IsOfBlockOfGguf(std::string_view stored_name);

// A tensor outside of the blocks that no weight is: one factor for each RoPE frequency.
inline constexpr std::string_view kGgufRopeFactors = "rope_freqs.weight";

}  // namespace pmkvq
