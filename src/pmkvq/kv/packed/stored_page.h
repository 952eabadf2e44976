// A page as the cache's bookkeeping knows it: the slots that it lies in, its width and axis.
#pragma once

#include <array>

#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kv/packed/policy/block_pages.h"
#include "pmkvq/kv/packed/slot_allocator.h"
#include "pmkvq/kv/packed/slot_layout.h"

namespace pmkvq {

inline int WidthOf(const PageWidths& widths, Side side) {
  return side == kKeys ? widths.k : widths.v;
}

// K, or V, of 128 tokens of one block.
struct StoredPage {
  SlotHandle data = kNoSlot;
  SlotHandle metadata = kNoSlot;  // Of quantised pages.
  int bits = 16;
  QuantAxis axis = QuantAxis::kToken;  // Of its groups; kToken at 16 bits.
};

// Indexed by Side.
using PagePair = std::array<StoredPage, 2>;
inline PageWidths WidthsOf(const PagePair& page) { return {page[kKeys].bits, page[kValues].bits}; }

}  // namespace pmkvq
