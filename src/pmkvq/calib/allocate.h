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
  std::vector<double> cost;    // Per choice.
  std::vector<int64_t> bytes;  // Per choice, >= 0; the same number of choices as cost.
};
struct KnapsackResult {
  bool feasible = false;
  std::vector<int> choice;  // Per item.
  double cost = 0;
  int64_t bytes = 0;
  int64_t smallest_bytes = 0;  // The least budget that would be feasible.
};
// Exact dynamic programming over the greatest common divisor of all bytes. Among optimal solutions
// the one whose first item has the smaller bytes, then the second, and so on.
KnapsackResult SolveKnapsack(const std::vector<KnapsackItem>& items, int64_t budget_bytes);

struct AllocationOptions {
  CacheConfig cache;                       // Geometry, float type, sink, window.
  int64_t max_len = 32768;
  int64_t memory_budget_bytes = 0;         // For one sequence, all blocks.
  std::vector<int> fbit_choices = {4, 2};
  bool separate_kv = false;                // K and V of a block may differ.
  bool reference_accounting = false;       // Payload only: ReferenceBlockBytes.
};
struct Allocation {
  std::vector<int> k_bits;
  std::vector<int> v_bits;
  std::vector<int64_t> budget_bytes;
  double objective = 0;
  int64_t total_bytes = 0;
};
// Throws InvalidInput when impossible, naming the smallest budget that works; when a width is not
// 16, 8, 4 or 2; when the sensitivities do not have one value per block and width asked for.
Allocation Allocate(const Sensitivity& sensitivity, const AllocationOptions& options);

}  // namespace pmkvq
