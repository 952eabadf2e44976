#include "pmkvq/research/analysis/placement.h"

#include <algorithm>
#include <utility>

#include "pmkvq/research/calib/calibrate.h"
#include "pmkvq/research/calib/reference_accounting.h"

namespace pmkvq {

int64_t ChoosingBudget(const AllocationOptions& options) {
  const auto [narrow, wide] =
      std::minmax_element(options.fbit_choices.begin(), options.fbit_choices.end());
  const KvGeometry& geometry = options.cache.geometry;
  const size_t num_wide = (geometry.blocks.size() + 3) / 4;
  int64_t bytes = 0;
  for (size_t layer = 0; layer < geometry.blocks.size(); ++layer) {
    const KvBlockGeometry& block = geometry.blocks[layer];
    const int bits = layer < num_wide ? *wide : *narrow;
    const int v_bits = block.is_latent() ? std::max(bits, options.cache.rope_floor_bits) : bits;
    bytes += options.reference_accounting
                 ? ReferenceBlockBytes(block, options.max_len, bits, v_bits)
                 : BlockBytes(options.cache, layer, options.max_len, bits, v_bits);
  }
  return bytes;
}

Plan PlacementPlan(const Model& model, const AllocationOptions& options,
                   const Allocation& allocation) {
  Plan plan;
  plan.model_identity = model.checkpoint().Identity();
  plan.geometry = model.kv_geometry();
  SetAllocation(options, allocation, plan);
  return plan;
}

Plan UniformPlan(const Model& model, const AllocationOptions& options,
                 const Allocation& allocation) {
  Allocation even = allocation;
  even.k_bits.clear();
  even.v_bits.clear();
  CacheConfig cache = options.cache;
  cache.max_len = options.max_len;
  even.budget_bytes = SplitBudget(allocation.total_bytes, EvenWeights(cache));
  return PlacementPlan(model, options, even);
}

KvOptions PlacementCache(std::shared_ptr<const Plan> plan, DType kv_dtype, bool use_scales) {
  KvOptions options;
  options.spec = use_scales ? "pm-kvq" : "pm-kvq:scales=off";
  options.plan = std::move(plan);
  options.kv_dtype = kv_dtype;
  return options;
}

std::string WidthsText(const std::vector<int>& k_bits, const std::vector<int>& v_bits) {
  const auto join = [](const std::vector<int>& bits) {
    std::string text;
    // Sixteen needs two digits, so then all are set apart.
    const bool wide = std::find(bits.begin(), bits.end(), 16) != bits.end();
    for (const int b : bits) text += (wide && !text.empty() ? " " : "") + std::to_string(b);
    return text;
  };
  return k_bits == v_bits ? join(k_bits) : "K " + join(k_bits) + " V " + join(v_bits);
}

std::vector<double> BlockSensitivities(const Sensitivity& sensitivity,
                                       const std::vector<int>& fbit_choices) {
  const size_t width = WidthIndex(*std::min_element(fbit_choices.begin(), fbit_choices.end()));
  std::vector<double> sums = sensitivity.k[width];
  for (size_t i = 0; i < sums.size(); ++i) sums[i] += sensitivity.v[width][i];
  return sums;
}

}  // namespace pmkvq
