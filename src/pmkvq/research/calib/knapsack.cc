#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>

#include "pmkvq/base/check.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/research/calib/allocate.h"

namespace pmkvq {
namespace {

// What a suffix of the items can reach: bytes ascending, cost strictly descending.
struct State {
  int64_t bytes;
  double cost;
};
using Front = std::vector<State>;

// One CancelPoint per 65,536 states, about every millisecond.
constexpr size_t kCancelMask = 0xffff;

// Both fronts in order of bytes, without states that another one beats or equals.
Front Merge(const Front& a, const Front& b) {
  Front merged;
  merged.reserve(a.size() + b.size());
  size_t i = 0;
  size_t j = 0;
  while (i < a.size() || j < b.size()) {
    if (((i + j) & kCancelMask) == 0) CancelPoint();
    const bool take_a =
        j == b.size() || (i < a.size() && (a[i].bytes < b[j].bytes ||
                                           (a[i].bytes == b[j].bytes && a[i].cost <= b[j].cost)));
    const State& next = take_a ? a[i++] : b[j++];
    if (merged.empty() || next.cost < merged.back().cost) merged.push_back(next);
  }
  return merged;
}

// The front of one item more, without states of more than `limit_bytes`.
Front Extend(const Front& suffix, const KnapsackItem& item, int64_t limit_bytes) {
  Front front;
  Front shifted;
  for (size_t c = 0; c < item.cost.size(); ++c) {
    shifted.clear();
    for (size_t s = 0; s < suffix.size(); ++s) {
      if ((s & kCancelMask) == 0) CancelPoint();
      const State& state = suffix[s];
      // Compared by difference: sums near a huge budget must not overflow.
      if (state.bytes > limit_bytes - item.bytes[c]) break;
      const State next{state.bytes + item.bytes[c], item.cost[c] + state.cost};
      // Rounding may make two costs equal that were not.
      if (shifted.empty() || next.cost < shifted.back().cost) shifted.push_back(next);
    }
    front = Merge(front, shifted);
  }
  return front;
}

// The least cost within `capacity`, null when nothing fits.
const State* Best(const Front& front, int64_t capacity) {
  const auto above =
      std::upper_bound(front.begin(), front.end(), capacity,
                       [](int64_t bytes, const State& state) { return bytes < state.bytes; });
  return above == front.begin() ? nullptr : &*(above - 1);
}

int64_t SmallestBytes(const KnapsackItem& item) {
  return *std::min_element(item.bytes.begin(), item.bytes.end());
}

// Choices by (bytes, index).
std::vector<int> ByBytes(const KnapsackItem& item) {
  std::vector<int> order(item.bytes.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) {
    return item.bytes[static_cast<size_t>(a)] < item.bytes[static_cast<size_t>(b)];
  });
  return order;
}

// The cost of all items, added from the last one on: those of the first items, `cost` of the
// others.
double TotalCost(const std::vector<double>& first_costs, double cost) {
  for (size_t i = first_costs.size(); i-- > 0;) cost = first_costs[i] + cost;
  return cost;
}

// The first choice in the written order with which all items can still have the optimum, within
// `capacity`. Dominated states were dropped, but a rounded sum does not decrease with its summands,
// so the optimum is always reached through the best state of the rest. Sums of all items are
// compared: two choices may differ in the sum of the rest and, by rounding, not in that of all.
int PickChoice(const KnapsackItem& item, const Front& rest, int64_t capacity,
               const std::vector<double>& first_costs, double optimum) {
  for (const int c : ByBytes(item)) {
    const auto index = static_cast<size_t>(c);
    const State* best = Best(rest, capacity - item.bytes[index]);
    if (best != nullptr && TotalCost(first_costs, item.cost[index] + best->cost) == optimum) {
      return c;
    }
  }
  PMKVQ_CHECK_MSG(false, "no choice reaches the optimum");
  return -1;
}

}  // namespace

KnapsackResult SolveKnapsack(const std::vector<KnapsackItem>& items, int64_t budget_bytes) {
  KnapsackResult result;
  for (const KnapsackItem& item : items) {
    PMKVQ_CHECK(!item.cost.empty() && item.cost.size() == item.bytes.size());
    for (const double cost : item.cost) PMKVQ_CHECK(std::isfinite(cost));
    PMKVQ_CHECK(SmallestBytes(item) >= 0);
    result.smallest_bytes = CheckedSum("allocate", {result.smallest_bytes, SmallestBytes(item)});
  }
  if (result.smallest_bytes > budget_bytes) return result;
  result.feasible = true;

  // fronts[i]: items i and later, within the budget minus the smallest choices of items before i.
  std::vector<Front> fronts(items.size() + 1);
  fronts[items.size()] = {State{0, 0.0}};
  int64_t before = result.smallest_bytes;
  for (size_t i = items.size(); i-- > 0;) {
    before -= SmallestBytes(items[i]);
    fronts[i] = Extend(fronts[i + 1], items[i], budget_bytes - before);
  }

  result.cost = Best(fronts[0], budget_bytes)->cost;
  int64_t capacity = budget_bytes;
  std::vector<double> costs;
  for (size_t i = 0; i < items.size(); ++i) {
    const int choice = PickChoice(items[i], fronts[i + 1], capacity, costs, result.cost);
    const auto index = static_cast<size_t>(choice);
    const int64_t bytes = items[i].bytes[index];
    result.choice.push_back(choice);
    result.bytes += bytes;
    costs.push_back(items[i].cost[index]);
    capacity -= bytes;
  }
  return result;
}

}  // namespace pmkvq
