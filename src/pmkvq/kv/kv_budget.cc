#include "pmkvq/kv/kv_budget.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <utility>

#include "pmkvq/io/limits.h"

namespace pmkvq {

KvBudget::KvBudget(const CacheConfig& packed) : packed_(packed) {}

KvBudget::KvBudget(const CacheConfig& packed, BytesAtFloor floor_bytes)
    : packed_(packed), floor_bytes_(floor_bytes), any_length_(true) {}

KvBudget::KvBudget(const SimulatedConfig& simulated, std::shared_ptr<const CacheMethod> method)
    : simulated_(simulated), method_(std::move(method)) {}

int64_t KvBudget::total_bytes() const {
  if (has_pool()) return packed_.pool.bytes;
  return std::accumulate(block_budgets().begin(), block_budgets().end(), int64_t{0});
}

int64_t KvBudget::BlockNeeds(int64_t layer, int64_t num_tokens) const {
  return method_ == nullptr ? floor_bytes_(packed_, static_cast<size_t>(layer), num_tokens)
                            : MostBlockBytes(*method_, layer, num_tokens);
}

bool KvBudget::Holds(int64_t num_tokens) const {
  if (any_length_) return true;
  if (const std::optional<int64_t> bytes = SequenceNeeds(num_tokens)) {
    return *bytes <= total_bytes();
  }
  if (has_pool()) return FloorBytes(packed_, num_tokens) <= packed_.pool.bytes;
  for (size_t layer = 0; layer < block_budgets().size(); ++layer) {
    if (BlockNeeds(static_cast<int64_t>(layer), num_tokens) > block_budgets()[layer]) return false;
  }
  return true;
}

std::optional<int64_t> KvBudget::SequenceNeeds(int64_t num_tokens) const {
  if (method_ == nullptr) return std::nullopt;
  return method_->SequenceBytes(num_tokens);
}

int64_t KvBudget::SmallestThatHolds(int64_t num_tokens) const {
  // Shares of blocks are rounded down to whole bytes.
  if (const std::optional<int64_t> bytes = SequenceNeeds(num_tokens)) {
    return *bytes + std::ssize(block_budgets());
  }
  if (has_pool()) return FloorBytes(packed_, num_tokens);
  const std::vector<int64_t>& budgets = block_budgets();
  const auto num_layers = static_cast<int64_t>(budgets.size());
  if (std::all_of(budgets.begin(), budgets.end(),
                  [&](int64_t bytes) { return bytes == budgets.front(); })) {
    int64_t most = 0;
    for (int64_t layer = 0; layer < num_layers; ++layer) {
      most = std::max(most, BlockNeeds(layer, num_tokens));
    }
    return CheckedProduct("kv cache", {most, num_layers});
  }
  // Split in fixed proportion, so the block whose share is smallest for its needs decides. L
  // makes up for rounding shares down to whole bytes. In 128 bits: the product of two byte counts.
  const __int128 before_split = total_bytes() + num_layers;
  int64_t needed = 0;
  for (int64_t layer = 0; layer < num_layers; ++layer) {
    const int64_t share = budgets[static_cast<size_t>(layer)];
    if (share == 0) continue;  // A block without cache.
    needed = std::max(
        needed,
        static_cast<int64_t>((BlockNeeds(layer, num_tokens) * before_split + share - 1) / share));
  }
  return needed;
}

std::string KvBudget::AtBest() const {
  if (method_ != nullptr) return "";
  const PageWidths floor = FloorWidths(packed_, 0);
  for (size_t layer = 0; layer < packed_.budget_bytes.size(); ++layer) {
    const PageWidths widths = FloorWidths(packed_, layer);
    if (widths != floor || widths.k != widths.v) return " even at the planned widths";
  }
  return fmt::format(" even at {} bits", floor.k);
}

}  // namespace pmkvq
