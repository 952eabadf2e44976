// Bit widths per block under a memory budget: a multiple-choice knapsack, solved exactly.
//
//   minimise  sum_i s_i(choice_i)   subject to  sum_i bytes_i(choice_i) <= budget     (eq. 6 - 8)
#pragma once

#include <cstdint>
#include <vector>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/plan.h"

namespace pmkvq {

struct KnapsackItem {
  std::vector<double> cost;    // Per choice, finite.
  std::vector<int64_t> bytes;  // Per choice, >= 0; the same number of choices (>= 1) as cost.
};
struct KnapsackResult {
  bool feasible = false;
  std::vector<int> choice;  // Per item.
  double cost = 0;          // Summed from the last item to the first.
  int64_t bytes = 0;
  int64_t smallest_bytes = 0;  // The least budget that would be feasible.
};
// Exact dynamic programming over the (bytes, cost) states of each suffix of the items that no other
// state beats in both. Among optimal solutions the one whose first item has the smaller bytes, then
// the second, and so on; at equal bytes the lower index. "Optimal" and "equal" are meant for the
// sums as computed, in double and from the last item to the first.
//
// Cost: O(states x choices) per item. All sums of bytes are multiples of the greatest common
// divisor of the differences between one item's choices, so there are at most
// (budget - smallest bytes) / gcd + 1 states: for blocks of one geometry the gcd is one page's
// metadata times the pages per block, and 128 blocks with K and V apart (16 choices) keep about
// 10^4 states. Memory: 16 bytes x states x items. Throws Cancelled (base/interrupt.h).
KnapsackResult SolveKnapsack(const std::vector<KnapsackItem>& items, int64_t budget_bytes);

struct AllocationOptions {
  CacheConfig cache;  // Geometry, float type, sink, window, rope_floor_bits; the rest is not used.
  int64_t max_len = 32768;
  int64_t memory_budget_bytes = 0;  // For one sequence, all blocks.
  // In any order; repeated ones count once. Of k_r those below rope_floor_bits become it.
  std::vector<int> fbit_choices = {4, 2};
  bool separate_kv = false;           // K and V of a block may differ; c and k_r always may.
  bool reference_accounting = false;  // Payload only: ReferenceBlockBytes.
  // Block i is judged by the sensitivities of block L - 1 - i, as the reference's code does by
  // accident. For comparison only.
  bool mirrored = false;
};
struct Allocation {
  std::vector<int> k_bits;
  std::vector<int> v_bits;
  std::vector<int64_t> budget_bytes;
  double objective = 0;
  int64_t total_bytes = 0;
};
// Sensitivities are means over the values of a stream, so those of c and k_r are weighed by how
// many values they have (ShareOfValues). Ties go to the lower width in the first block, then in the
// second, and so on; with separate_kv, between (k, v) pairs of equal bytes, to the lower width of
// V. Throws InvalidInput when impossible, naming the smallest budget that works; when a width is
// not 16, 8, 4 or 2; when the sensitivities do not have one value per block and width asked for.
Allocation Allocate(const Sensitivity& sensitivity, const AllocationOptions& options);

// Throws where Allocate would throw for these options with any sensitivities. Called first, so that
// no hours of calibration are spent on an impossible budget.
void CheckAllocationOptions(const AllocationOptions& options);

}  // namespace pmkvq
