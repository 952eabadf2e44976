// Halves only as many pages as needed: always the oldest of the block's widest closed pages.
//
// When: a page is opened in all blocks by the same token, and the room for it would be made at once
// by many halvings. What that token would convert beyond CacheConfig::most_bytes_per_token is done
// by the tokens right before it, each within the same limit (policy/spread.h): as late as the limit
// allows, so nothing changes where it fits one token. Only the page that closes then, and is 16
// bits wide until then, waits for it. At the moment when a page is opened the widths are those that
// they would be without a limit, and bytes are never more than they would be. The schedule depends
// on page sizes and token counts only.
#pragma once

#include <vector>

#include "pmkvq/kv/packed/policy/block_pages.h"

namespace pmkvq {

// Halves single pages of `pages` (closed pages, oldest first), one step at a time, until the block
// fits its budget: each time the oldest of the widest, V before K of the same tokens; pages at
// their side's planned width only when no page stands above its own. False, with `pages`
// unchanged, when the block does not fit at the floor. Cost O(pages).
[[nodiscard]] bool FitOldestFirst(const BlockLimits& limits, std::vector<PageWidths>& pages);

}  // namespace pmkvq
