// Placements of bits over blocks, and caches with them: shared by the analyses of calibration.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/kv/plan.h"
#include "pmkvq/model/model.h"
#include "pmkvq/research/calib/allocate.h"
#include "pmkvq/research/methods/registry.h"

namespace pmkvq {

// The bytes of a quarter of the blocks (rounded up) at the widest choice and the others at the
// narrowest, for max_len tokens. At this budget allocation has a real choice.
int64_t ChoosingBudget(const AllocationOptions& options);

// A plan of these widths and budgets, without key scales. Its tokens fit options.max_len.
Plan PlacementPlan(const Model& model, const AllocationOptions& options,
                   const Allocation& allocation);

// allocation.total_bytes split evenly over the blocks, without regard to sensitivities; no planned
// widths.
Plan UniformPlan(const Model& model, const AllocationOptions& options,
                 const Allocation& allocation);

// pm-kvq inside the plan's budgets. `use_scales`: with the plan's key scales.
KvOptions PlacementCache(std::shared_ptr<const Plan> plan, DType kv_dtype, bool use_scales);

// "444422222222", K and V apart as "K 4422 V 2222" where they differ.
std::string WidthsText(const std::vector<int>& k_bits, const std::vector<int>& v_bits);

// Sensitivity of each block, K and V together, at the narrowest of the widths to choose from.
std::vector<double> BlockSensitivities(const Sensitivity& sensitivity,
                                       const std::vector<int>& fbit_choices);

}  // namespace pmkvq
