#include "pmkvq/research/calib/reference_accounting.h"

#include <gtest/gtest.h>

namespace pmkvq {
namespace {

TEST(ReferenceAccountingTest, BudgetsAndPayloadByHand) {
  CacheConfig config;
  config.geometry = UniformKvGeometry{2, 4, 2, 128};
  config.geometry.blocks.push_back({4, {}});
  EXPECT_EQ(ReferenceBlockBytes(config.geometry.blocks[0], 1024, 2, 2), 2 * 256 * 2 * 1024 / 8);
  EXPECT_EQ(ReferenceBlockBytes(config.geometry.blocks[0], 1024, 4, 2), 6 * 256 * 1024 / 8);
  EXPECT_EQ(ReferenceBlockBytes(config.geometry.blocks[2], 1024, 4, 2), 0);
  // Pages close when full: 1 sink + 128 closed + 3 open.
  EXPECT_EQ(ReferencePayloadBytes(config, 0, 132, 4, 2), 256 * (4 * 32 + 128 * 6) / 8);
  EXPECT_EQ(ReferencePayloadBytes(config, 2, 132, 4, 2), 0);
  EXPECT_EQ(SmallestBudget(config, 129, ReferenceFloorBytes), 2 * 256 * (32 + 128 * 4) / 8);
}

}  // namespace
}  // namespace pmkvq
