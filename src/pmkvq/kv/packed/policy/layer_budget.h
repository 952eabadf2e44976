// The paper's policy: all closed pages of a block step down together.
#pragma once

#include <vector>

#include "pmkvq/kv/packed/policy/block_pages.h"

namespace pmkvq {

// One step of the whole block: the wider side, V first on a tie; both sides at once where the plan
// gives them the same width. The widths are unchanged when both sides stand at the floor.
PageWidths NextLayerWidths(const BlockLimits& limits, const PageWidths& widths);

// Lowers `pages` (closed pages, oldest first), which stand at `present` or below, by as few steps
// as make the block fit its budget. False, with `pages` unchanged, when it does not fit at the
// floor. Cost O(pages).
[[nodiscard]] bool FitLayerBudget(const BlockLimits& limits, const PageWidths& present,
                                  std::vector<PageWidths>& pages);

}  // namespace pmkvq
