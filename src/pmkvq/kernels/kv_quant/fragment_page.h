// Pages in fragment order (fragment_layout.h) from and to the CPU's planes, on the host: for tests,
// for saving what a device holds, and for expected errors that name values.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pmkvq {

// K, or V, of 128 tokens of all KV heads of a block, groups of the D values of a token,
// or two of 128 where D is 256.
struct FragmentPageShape {
  int64_t heads = 0;
  int64_t head_dim = 0;  // fragment::IsHeadDim; IsRowWidth where groups are rows.
  bool is_values = false;
  // Of keys below 16 bits: groups are the 128 tokens of a channel, and so are the planes' codes
  // (kv_quant.h). Codes lie in fragment order as ever.
  bool by_channel = false;
};

// A page of 16 bits (planes: 2-byte floats [Hkv, 128, D]), or the codes of one of 8, 4 or 2 bits.
// Metadata is the same in both layouts: [Hkv, 2, 128],
// or [Hkv, 2, 128, 2] where D is 256, or [Hkv, 2, D] by channel. `to` must not
// overlap `from`; both have Hkv * 16 * D * bits bytes.
void PlanesToFragments(const FragmentPageShape& shape, int bits, const std::byte* planes,
                       std::byte* fragments);
void FragmentsToPlanes(const FragmentPageShape& shape, int bits, const std::byte* fragments,
                       std::byte* planes);

// Of one value of a block in fragment order: its code, or the bits of its float.
uint32_t FragmentValue(const FragmentPageShape& shape, int bits, const std::byte* page,
                       int64_t head, int64_t token, int64_t dim);

}  // namespace pmkvq
