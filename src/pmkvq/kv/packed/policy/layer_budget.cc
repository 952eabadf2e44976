#include "pmkvq/kv/packed/policy/layer_budget.h"

namespace pmkvq {
namespace {

int64_t BytesAtMost(const BlockLimits& limits, const PageWidths& widths,
                    const std::vector<PageWidths>& pages) {
  int64_t bytes = limits.fixed_bytes;
  for (const PageWidths& page : pages) {
    bytes += limits.BytesOf(Narrower(page, widths));
  }
  return bytes;
}

}  // namespace

PageWidths NextLayerWidths(const BlockLimits& limits, const PageWidths& widths) {
  const bool planned_reached =
      widths.k <= limits.planned_k_bits && widths.v <= limits.planned_v_bits;
  const int k_limit = planned_reached ? limits.floor.k : limits.planned_k_bits;
  const int v_limit = planned_reached ? limits.floor.v : limits.planned_v_bits;
  const bool k_can = widths.k > k_limit;
  const bool v_can = widths.v > v_limit;
  if (limits.planned_k_bits == limits.planned_v_bits) {
    return {k_can ? widths.k / 2 : widths.k, v_can ? widths.v / 2 : widths.v};
  }
  if (v_can && (widths.v >= widths.k || !k_can)) return {widths.k, widths.v / 2};
  if (k_can) return {widths.k / 2, widths.v};
  return widths;
}

bool FitLayerBudget(const BlockLimits& limits, const PageWidths& present,
                    std::vector<PageWidths>& pages) {
  PageWidths widths = present;
  while (BytesAtMost(limits, widths, pages) > limits.budget_bytes) {
    const PageWidths next = NextLayerWidths(limits, widths);
    if (next == widths) return false;
    widths = next;
  }
  for (PageWidths& page : pages) page = Narrower(page, widths);
  return true;
}

}  // namespace pmkvq
