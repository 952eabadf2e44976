#include "pmkvq/kv/kv_budget.h"

#include <gtest/gtest.h>

#include "pmkvq/kv/simulated/cache_method.h"

namespace pmkvq {
namespace {

// Blocks of 40 and of 16 bytes a token.
class TwoRates final : public CacheMethod {
 public:
  void OnAppend(int64_t, const AppendedTokens&, SimulatedBlock&, MethodState*) const override {}
  int64_t BlockBytes(int64_t layer, int64_t num_tokens) const override {
    return num_tokens * (layer == 0 ? 40 : 16);
  }
  ByteGrowth Growth(int64_t) const override { return {}; }
};

// Budgets are split as 40 to 16, so 20 tokens need 20 * 56 bytes, not twice what block 0 needs;
// splitting into whole bytes may cost a few more.
TEST(KvBudget, WhatUnevenBlocksNeedIsTheSumOfTheirs) {
  SimulatedConfig config;
  config.geometry = UniformKvGeometry{2, 1, 1, 8};
  config.budget_bytes = {400, 160};
  const KvBudget budget(config, std::make_shared<TwoRates>());
  EXPECT_TRUE(budget.Holds(10));
  EXPECT_FALSE(budget.Holds(11));
  const int64_t needed = budget.SmallestThatHolds(20);
  EXPECT_GE(needed, 20 * 56);
  EXPECT_LE(needed, 20 * 56 + 8);
}

TEST(KvBudget, EvenBlocksNeedWhatTheLargestNeedsTimesTheirNumber) {
  SimulatedConfig config;
  config.geometry = UniformKvGeometry{2, 1, 1, 8};
  config.budget_bytes = {400, 400};
  const KvBudget budget(config, std::make_shared<TwoRates>());
  EXPECT_EQ(budget.SmallestThatHolds(20), 2 * 20 * 40);
}

}  // namespace
}  // namespace pmkvq
