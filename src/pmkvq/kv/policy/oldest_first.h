// Halves only as many pages as needed: always the oldest of the block's widest closed pages.
#pragma once

#include <vector>

#include "pmkvq/kv/policy/block_pages.h"

namespace pmkvq {

// Halves single pages of `pages` (closed pages, oldest first), one step at a time, until the block
// fits its budget: each time the oldest of the widest, V before K of the same tokens; pages at
// their side's planned width only when no page stands above its own. False, with `pages`
// unchanged, when the block does not fit at the floor. Cost O(pages).
[[nodiscard]] bool FitOldestFirst(const BlockLimits& limits, std::vector<PageWidths>& pages);

}  // namespace pmkvq
