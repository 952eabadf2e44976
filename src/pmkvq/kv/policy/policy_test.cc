#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include "pmkvq/kv/policy/layer_budget.h"
#include "pmkvq/kv/policy/oldest_first.h"

namespace pmkvq {
namespace {

// Bytes as at G = 128 in f16, in units of 1/64 of a 16-bit page: metadata is one unit.
BlockLimits Limits(int64_t budget, int planned_k = 2, int planned_v = 2) {
  BlockLimits limits;
  limits.budget_bytes = budget;
  limits.fixed_bytes = 128;  // One open page, K and V.
  limits.k_page_bytes = limits.v_page_bytes = {64, 33, 17, 9};
  limits.planned_k_bits = planned_k;
  limits.planned_v_bits = planned_v;
  return limits;
}

using Pages = std::vector<PageWidths>;

TEST(LayerBudgetTest, NothingIsHalvedWhileItFits) {
  Pages pages(3, {16, 16});
  ASSERT_TRUE(FitLayerBudget(Limits(128 + 6 * 64), {16, 16}, pages));
  EXPECT_EQ(pages, Pages(3, {16, 16}));
}

TEST(LayerBudgetTest, OneByteLessHalvesAllPagesOneStep) {
  Pages pages(3, {16, 16});
  ASSERT_TRUE(FitLayerBudget(Limits(128 + 6 * 64 - 1), {16, 16}, pages));
  EXPECT_EQ(pages, Pages(3, {8, 8}));
}

TEST(LayerBudgetTest, StepsAreRepeatedUntilItFits) {
  Pages pages(3, {16, 16});
  ASSERT_TRUE(FitLayerBudget(Limits(128 + 6 * 9), {16, 16}, pages));
  EXPECT_EQ(pages, Pages(3, {2, 2}));
}

TEST(LayerBudgetTest, BelowTheFloorNothingChanges) {
  Pages pages(3, {16, 16});
  EXPECT_FALSE(FitLayerBudget(Limits(128 + 6 * 9 - 1), {16, 16}, pages));
  EXPECT_EQ(pages, Pages(3, {16, 16}));
  BlockLimits fp16 = Limits(128 + 6 * 64 - 1, 16, 16);
  fp16.floor = {16, 16};
  EXPECT_FALSE(FitLayerBudget(fp16, {16, 16}, pages));
}

TEST(LayerBudgetTest, SeparateWidthsStepValuesFirstThenTheWider) {
  const BlockLimits limits = Limits(0, 4, 2);
  PageWidths widths = {16, 16};
  std::vector<PageWidths> ladder;
  for (int i = 0; i < 6; ++i) {
    widths = NextLayerWidths(limits, widths);
    ladder.push_back(widths);
  }
  // Keys wait at 4 until values are at 2, then go on; at the floor nothing changes.
  EXPECT_EQ(ladder, (Pages{{16, 8}, {8, 8}, {8, 4}, {4, 4}, {4, 2}, {2, 2}}));
  EXPECT_EQ(NextLayerWidths(limits, widths), widths);
}

TEST(LayerBudgetTest, ASideAtItsPlannedWidthWaitsForTheOther) {
  const BlockLimits limits = Limits(0, 16, 4);
  PageWidths widths = {16, 16};
  std::vector<PageWidths> ladder;
  for (int i = 0; i < 6; ++i) {
    widths = NextLayerWidths(limits, widths);
    ladder.push_back(widths);
  }
  EXPECT_EQ(ladder, (Pages{{16, 8}, {16, 4}, {8, 4}, {4, 4}, {4, 2}, {2, 2}}));
}

TEST(OldestFirstTest, HalvesOnlyWhatItMust) {
  // Each halving 16 -> 8 frees 31, 8 -> 4 frees 16, 4 -> 2 frees 8.
  const int64_t full = 128 + 6 * 64;
  const auto fit = [](int64_t budget) {
    Pages pages(3, {16, 16});
    EXPECT_TRUE(FitOldestFirst(Limits(budget), pages));
    return pages;
  };
  EXPECT_EQ(fit(full), Pages(3, {16, 16}));
  EXPECT_EQ(fit(full - 1), (Pages{{16, 8}, {16, 16}, {16, 16}}));
  EXPECT_EQ(fit(full - 31), (Pages{{16, 8}, {16, 16}, {16, 16}}));
  EXPECT_EQ(fit(full - 32), (Pages{{8, 8}, {16, 16}, {16, 16}}));
  EXPECT_EQ(fit(full - 3 * 31), (Pages{{8, 8}, {16, 8}, {16, 16}}));
  EXPECT_EQ(fit(full - 6 * 31), Pages(3, {8, 8}));
  EXPECT_EQ(fit(full - 6 * 31 - 1), (Pages{{8, 4}, {8, 8}, {8, 8}}));
  EXPECT_EQ(fit(full - 6 * 31 - 6 * 16), Pages(3, {4, 4}));
  EXPECT_EQ(fit(full - 6 * 31 - 6 * 16 - 9), (Pages{{2, 2}, {4, 4}, {4, 4}}));
  EXPECT_EQ(fit(128 + 6 * 9), Pages(3, {2, 2}));
}

TEST(OldestFirstTest, TheWidestPagesComeFirstWhereverTheyLie) {
  Pages pages = {{4, 2}, {4, 4}, {8, 4}, {16, 16}};
  BlockLimits limits = Limits(0);
  limits.budget_bytes = BytesOf(limits, pages) - 31 - 31 - 1;
  ASSERT_TRUE(FitOldestFirst(limits, pages));
  // Both 16s, then the oldest 8.
  EXPECT_EQ(pages, (Pages{{4, 2}, {4, 4}, {4, 4}, {8, 8}}));
}

TEST(OldestFirstTest, PlannedWidthsAreReachedByAllBeforeAnyGoesBelow) {
  Pages pages = {{8, 2}, {8, 4}, {16, 4}};
  BlockLimits limits = Limits(0, 8, 2);
  limits.budget_bytes = BytesOf(limits, pages) - 31 - 8 - 8;
  ASSERT_TRUE(FitOldestFirst(limits, pages));
  EXPECT_EQ(pages, Pages(3, {8, 2}));
  --limits.budget_bytes;
  ASSERT_TRUE(FitOldestFirst(limits, pages));
  EXPECT_EQ(pages, (Pages{{4, 2}, {8, 2}, {8, 2}}));
}

TEST(OldestFirstTest, BelowTheFloorNothingChanges) {
  Pages pages = {{8, 2}, {16, 16}};
  const Pages before = pages;
  EXPECT_FALSE(FitOldestFirst(Limits(128 + 4 * 9 - 1), pages));
  EXPECT_EQ(pages, before);
}

// Both policies fit whenever the floor does, and OldestFirst keeps at least as many bytes.
RC_GTEST_PROP(PolicyProperty, OldestFirstLeavesLessRoomUnused, ()) {
  const auto num_pages = *rc::gen::inRange<size_t>(1, 20);
  const int planned_k = *rc::gen::element(16, 8, 4, 2);
  const int planned_v = *rc::gen::element(16, 8, 4, 2);
  const auto budget = *rc::gen::inRange<int64_t>(128, 128 + static_cast<int64_t>(num_pages) * 128);
  const BlockLimits limits = Limits(budget, planned_k, planned_v);
  Pages by_layer(num_pages, {16, 16});
  Pages by_age(num_pages, {16, 16});
  const bool floor_fits = 128 + static_cast<int64_t>(num_pages) * 18 <= budget;
  RC_ASSERT(FitLayerBudget(limits, {16, 16}, by_layer) == floor_fits);
  RC_ASSERT(FitOldestFirst(limits, by_age) == floor_fits);
  if (!floor_fits) return;
  RC_ASSERT(BytesOf(limits, by_layer) <= budget);
  RC_ASSERT(BytesOf(limits, by_age) <= budget);
  RC_ASSERT(BytesOf(limits, by_age) >= BytesOf(limits, by_layer));
  // One halving less would not have fitted: 31 bytes is the most that one frees.
  RC_ASSERT(BytesOf(limits, by_age) == 128 + static_cast<int64_t>(num_pages) * 128 ||
            BytesOf(limits, by_age) > budget - 31);
}

}  // namespace
}  // namespace pmkvq
