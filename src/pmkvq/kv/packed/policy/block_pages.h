// The page table of one block as a precision policy sees it: widths and bytes, no memory.
#pragma once

#include <algorithm>
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

inline PageWidths Narrower(const PageWidths& a, const PageWidths& b) {
  return {std::min(a.k, b.k), std::min(a.v, b.v)};
}

// The inputs of a policy's decision: budget, bytes of pages, planned widths and floor.
struct BlockLimits {
  int64_t budget_bytes = 0;
  int64_t fixed_bytes = 0;                // Sink, window and open page: not the policy's.
  std::array<int64_t, 4> k_page_bytes{};  // Of one page per width, as in kWidths.
  std::array<int64_t, 4> v_page_bytes{};
  PageWidths floor = {2, 2};  // No page goes below it.
  // Widths that the plan chose, or the floor. A side (K or V) that has reached its own waits
  // there until the other side has too; only then both go on towards the floor.
  int planned_k_bits = 2;
  int planned_v_bits = 2;

  // Of the K page and the V page of the same tokens.
  int64_t BytesOf(const PageWidths& widths) const {
    return k_page_bytes[WidthIndex(widths.k)] + v_page_bytes[WidthIndex(widths.v)];
  }
};

// Bytes of the block with its closed pages at `pages`.
inline int64_t BytesOf(const BlockLimits& limits, const std::vector<PageWidths>& pages) {
  int64_t bytes = limits.fixed_bytes;
  for (const PageWidths& page : pages) {
    bytes += limits.BytesOf(page);
  }
  return bytes;
}

}  // namespace pmkvq
