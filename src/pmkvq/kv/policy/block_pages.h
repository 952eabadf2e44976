// The page table of one block as a precision policy sees it: widths and bytes, no memory.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "pmkvq/kv/kv_types.h"

namespace pmkvq {

// Widths of the K page and the V page of the same 128 tokens: 16, 8, 4 or 2.
struct PageWidths {
  int k = 16;
  int v = 16;
  bool operator==(const PageWidths&) const = default;
};

// Why a policy is asked, and by what it is bound.
struct BlockLimits {
  int64_t budget_bytes = 0;
  int64_t fixed_bytes = 0;              // Sink, window and open page: not the policy's.
  std::array<int64_t, 4> page_bytes{};  // Of one page (K or V) per width, as in kWidths.
  int floor_bits = 2;                   // No page goes below it.
  // Widths that the plan chose, or floor_bits. A side (K or V) that has reached its own waits
  // there until the other side has too; only then both go on towards the floor.
  int planned_k_bits = 2;
  int planned_v_bits = 2;
};

// Bytes of the block with its closed pages at `pages`.
inline int64_t BytesOf(const BlockLimits& limits, const std::vector<PageWidths>& pages) {
  int64_t bytes = limits.fixed_bytes;
  for (const PageWidths& page : pages) {
    bytes += limits.page_bytes[WidthIndex(page.k)] + limits.page_bytes[WidthIndex(page.v)];
  }
  return bytes;
}

}  // namespace pmkvq
