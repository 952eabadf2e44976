#include "pmkvq/methods/kv_budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

namespace pmkvq {

KvBudget::KvBudget(const CacheConfig& packed) : packed_(packed) {}

KvBudget::KvBudget(const SimulatedConfig& simulated, std::shared_ptr<const CacheMethod> method)
    : simulated_(simulated), method_(std::move(method)) {}

int64_t KvBudget::total_bytes() const {
  return std::accumulate(block_budgets().begin(), block_budgets().end(), int64_t{0});
}

int64_t KvBudget::BlockNeeds(int64_t layer, int64_t num_tokens) const {
  return method_ == nullptr
             ? BlockBytes(packed_, num_tokens, packed_.floor_bits, packed_.floor_bits)
             : MostBlockBytes(*method_, layer, num_tokens);
}

bool KvBudget::Holds(int64_t num_tokens) const {
  if (method_ == nullptr && packed_.reference_accounting) return true;
  for (size_t layer = 0; layer < block_budgets().size(); ++layer) {
    if (BlockNeeds(static_cast<int64_t>(layer), num_tokens) > block_budgets()[layer]) return false;
  }
  return true;
}

int64_t KvBudget::SmallestThatHolds(int64_t num_tokens) const {
  const std::vector<int64_t>& budgets = block_budgets();
  const auto num_layers = static_cast<int64_t>(budgets.size());
  if (method_ != nullptr) {  // Split evenly, so the block that needs most decides.
    int64_t needed = 0;
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      needed = std::max(needed, BlockNeeds(layer, num_tokens));
    }
    return needed * num_layers;
  }
  const int64_t smallest = *std::min_element(budgets.begin(), budgets.end());
  if (std::all_of(budgets.begin(), budgets.end(),
                  [&](int64_t bytes) { return bytes == smallest; })) {
    return SmallestBudget(packed_, num_tokens);
  }
  // Split in fixed proportion, so the block with the least decides. L covers what splitting into
  // whole bytes lost. In 128 bits: the product of two byte counts.
  const __int128 before_split = total_bytes() + num_layers;
  return static_cast<int64_t>((BlockNeeds(0, num_tokens) * before_split + smallest - 1) / smallest);
}

std::string KvBudget::AtBest() const {
  return method_ == nullptr ? fmt::format(" even at {} bits", packed_.floor_bits) : "";
}

}  // namespace pmkvq
