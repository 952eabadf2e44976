#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "pmkvq/kv/packed/policy/layer_budget.h"
#include "pmkvq/kv/packed/policy/oldest_first.h"
#include "pmkvq/kv/packed/policy/spread.h"

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

using Tokens = std::vector<int64_t>;

TEST(SpreadTest, WhatFitsTheEventIsDoneThen) {
  EXPECT_EQ(SpreadBackwards(Tokens{4, 3, 3}, 0, 10, 127), (Tokens{0, 0, 0}));
  EXPECT_EQ(SpreadBackwards(Tokens{4, 2, 2}, 2, 10, 127), (Tokens{0, 0, 0}));
  EXPECT_EQ(SpreadBackwards(Tokens{}, 50, 10, 127), Tokens{});
}

TEST(SpreadTest, TheRestIsLaidOutBackwards) {
  // 4 + 5 with the event, 6 alone, since 6 + 5 is more than 10, 5 + 5 before that, 3 first.
  EXPECT_EQ(SpreadBackwards(Tokens{3, 5, 5, 6, 5, 4}, 0, 10, 127), (Tokens{3, 2, 2, 1, 0, 0}));
  // With 2 at the event the 5 has to go before it, and every other one with it.
  EXPECT_EQ(SpreadBackwards(Tokens{3, 5, 5, 6, 5, 4}, 2, 10, 127), (Tokens{4, 3, 3, 2, 1, 0}));
  // An event that passes the limit by itself takes nothing more.
  EXPECT_EQ(SpreadBackwards(Tokens{5, 5, 5}, 11, 10, 127), (Tokens{2, 1, 1}));
}

TEST(SpreadTest, APieceBeyondTheLimitHasATokenOfItsOwn) {
  EXPECT_EQ(SpreadBackwards(Tokens{1, 20, 1}, 0, 10, 127), (Tokens{2, 1, 0}));
  EXPECT_EQ(SpreadBackwards(Tokens{20}, 0, 10, 127), (Tokens{0}));
}

TEST(SpreadTest, TooFewTokensShareEvenly) {
  // Eight pieces of 5 and 10 at the event, one token before it: (40 + 10) / 2 + 5 each at most.
  EXPECT_EQ(SpreadBackwards(Tokens(8, 5), 10, 10, 1), (Tokens{1, 1, 1, 1, 0, 0, 0, 0}));
  EXPECT_EQ(SpreadBackwards(Tokens(3, 5), 0, 10, 0), (Tokens{0, 0, 0}));
}

RC_GTEST_PROP(SpreadProperty, NoTokenDoesMoreThanTheLimitNorAnythingEarlierThanNeeded, ()) {
  const auto pieces = *rc::gen::container<Tokens>(rc::gen::inRange<int64_t>(1, 100));
  const auto at_event = *rc::gen::inRange<int64_t>(0, 300);
  const auto limit = *rc::gen::inRange<int64_t>(1, 300);
  const auto available = *rc::gen::inRange<int64_t>(0, 30);
  const Tokens tokens = SpreadBackwards(pieces, at_event, limit, available);
  RC_ASSERT(tokens.size() == pieces.size());
  if (pieces.empty()) return;
  RC_ASSERT(std::is_sorted(tokens.rbegin(), tokens.rend()));
  RC_ASSERT(tokens.back() >= 0 && tokens.front() <= available);
  std::vector<int64_t> done(static_cast<size_t>(tokens.front()) + 1);
  done[0] = at_event;
  for (size_t i = 0; i < pieces.size(); ++i) done[static_cast<size_t>(tokens[i])] += pieces[i];
  const int64_t largest = *std::max_element(pieces.begin(), pieces.end());
  int64_t sum = at_event;
  for (const int64_t piece : pieces) sum += piece;
  const int64_t most = std::max({limit, largest, at_event, sum / (available + 1) + largest});
  for (const int64_t bytes : done) RC_ASSERT(bytes <= most);
  // The last piece of each token would not have fitted the token after it.
  for (size_t i = 0; i + 1 < pieces.size(); ++i) {
    if (tokens[i] == tokens[i + 1]) continue;
    RC_ASSERT(done[static_cast<size_t>(tokens[i + 1])] + pieces[i] > limit);
  }
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
