#include "pmkvq/kv/packed/policy/oldest_first.h"

namespace pmkvq {
namespace {

// Halves `width` if it equals `level` and is above `limit`. Returns the bytes that this frees.
int64_t HalveAt(const std::array<int64_t, 4>& page_bytes, int level, int limit, int& width) {
  if (width != level || level <= limit) return 0;
  width /= 2;
  return page_bytes[WidthIndex(level)] - page_bytes[WidthIndex(level / 2)];
}

// Halves pages down to the given widths, level by level, until `excess` bytes are freed. A page
// halved from one level is among the oldest of the next, so each level is one walk.
int64_t HalveDownTo(const BlockLimits& limits, int k_limit, int v_limit, int64_t excess,
                    std::vector<PageWidths>& pages) {
  for (const int level : {16, 8, 4}) {
    for (PageWidths& page : pages) {
      if (excess <= 0) return excess;
      excess -= HalveAt(limits.v_page_bytes, level, v_limit, page.v);
      if (excess <= 0) return excess;
      excess -= HalveAt(limits.k_page_bytes, level, k_limit, page.k);
    }
  }
  return excess;
}

}  // namespace

bool FitOldestFirst(const BlockLimits& limits, std::vector<PageWidths>& pages) {
  int64_t floor_bytes = limits.fixed_bytes;
  for (const PageWidths& page : pages) {
    floor_bytes += limits.BytesOf(Narrower(page, limits.floor));
  }
  if (floor_bytes > limits.budget_bytes) return false;

  int64_t excess = BytesOf(limits, pages) - limits.budget_bytes;
  excess = HalveDownTo(limits, limits.planned_k_bits, limits.planned_v_bits, excess, pages);
  HalveDownTo(limits, limits.floor.k, limits.floor.v, excess, pages);
  return true;
}

}  // namespace pmkvq
