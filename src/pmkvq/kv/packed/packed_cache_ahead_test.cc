// OldestFirst spreads the halvings that make room for a page over the tokens before it.
#include <gtest/gtest.h>

#include <algorithm>

#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::SmallConfig;

// Two blocks whose pages take 8192 bytes at 16 bits, budgets for the sink and four of them.
CacheConfig FourPages(int64_t pages_per_token) {
  CacheConfig config = SmallConfig(1 + 4 * 128, 16, 16);
  config.policy = PolicyKind::kOldestFirst;
  config.most_bytes_per_token = pages_per_token * 8192;
  return config;
}

// The fifth page, opened by token 514, needs K and V of the three oldest pages at 8 bits in both
// blocks: twelve halvings. With three per token the first three are done by token 511.
TEST(HalvingAheadTest, ScheduleByHand) {
  CacheDriver driver(FourPages(3));
  PackedKvCache& cache = driver.cache();
  const SequenceId seq = *cache.Open();
  ASSERT_EQ(driver.Append(seq, 400, 1), ReserveResult::kReserved);
  while (cache.NumTokens(seq) < 510) {
    ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReserved) << cache.NumTokens(seq);
  }
  const auto expect = [&](PagesPerWidth k0, PagesPerWidth v0, PagesPerWidth k1, PagesPerWidth v1) {
    ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReservedAfterHalving);
    EXPECT_EQ(cache.LayerStats(seq, 0).k_pages, k0);
    EXPECT_EQ(cache.LayerStats(seq, 0).v_pages, v0);
    EXPECT_EQ(cache.LayerStats(seq, 1).k_pages, k1);
    EXPECT_EQ(cache.LayerStats(seq, 1).v_pages, v1);
  };
  using P = PagesPerWidth;
  expect(P{2, 2, 0, 0}, P{3, 1, 0, 0}, P{4, 0, 0, 0}, P{4, 0, 0, 0});  // 511: K0 V0 K1
  EXPECT_EQ(cache.SequenceStats(seq).narrowed_bytes, 3 * 8192);
  expect(P{1, 3, 0, 0}, P{1, 3, 0, 0}, P{4, 0, 0, 0}, P{4, 0, 0, 0});  // 512: V1 K2 V2
  expect(P{1, 3, 0, 0}, P{1, 3, 0, 0}, P{2, 2, 0, 0}, P{3, 1, 0, 0});  // 513: block 1, K0 V0 K1
  EXPECT_EQ(cache.SequenceStats(seq).narrowed_bytes, 9 * 8192);
  expect(P{2, 3, 0, 0}, P{2, 3, 0, 0}, P{2, 3, 0, 0}, P{2, 3, 0, 0});  // 514: the rest, and opens
  EXPECT_EQ(cache.SequenceStats(seq).narrowed_bytes, 12 * 8192);
  EXPECT_LE(cache.SequenceStats(seq).peak_bytes, cache.SequenceStats(seq).budget_bytes);
  const std::vector<HalvingEvent> events = cache.TakeHalvingEvents();
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].layer, 0);
  EXPECT_EQ(events[0].num_tokens, 510);
  EXPECT_EQ(events[0].num_k_pages, 2);
  EXPECT_EQ(events[0].num_v_pages, 1);
  EXPECT_EQ(events[3].layer, 1);
  EXPECT_EQ(events[3].num_tokens, 513);
}

// What fits one token is done by the token that opens the page.
TEST(HalvingAheadTest, NothingIsAheadWhereOneTokenCanDoIt) {
  CacheDriver driver(FourPages(12));
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 400, 1), ReserveResult::kReserved);
  for (int i = 0; i < 113; ++i) ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReserved);
  ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReservedAfterHalving);
  EXPECT_EQ(driver.cache().SequenceStats(seq).narrowed_bytes, 12 * 8192);
}

// A chunk that ends inside of the schedule does what the tokens in it would have done; one that
// opens the page does all.
TEST(HalvingAheadTest, ChunksDoTheWorkOfTheirTokens) {
  for (const int64_t chunk : {112, 113, 114, 115}) {
    CacheDriver driver(FourPages(3));
    const SequenceId seq = *driver.cache().Open();
    ASSERT_EQ(driver.Append(seq, 400, 1), ReserveResult::kReserved);
    ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReserved);  // Plans.
    ASSERT_EQ(driver.Append(seq, chunk - 1, 1), ReserveResult::kReservedAfterHalving);
    EXPECT_EQ(driver.cache().SequenceStats(seq).narrowed_bytes,
              std::min<int64_t>(12, 3 * (chunk - 110)) * 8192);
  }
}

// Attention, truncation and the end of the budget while halvings are under way.
TEST(HalvingAheadTest, TruncateDropsThePlanAndKeepsTheRest) {
  CacheDriver driver(FourPages(3));
  PackedKvCache& cache = driver.cache();
  const SequenceId seq = *cache.Open();
  ASSERT_EQ(driver.Append(seq, 400, 1), ReserveResult::kReserved);
  while (cache.NumTokens(seq) < 512) {
    ASSERT_NE(driver.Append(seq, 1, 1), ReserveResult::kBudgetExhausted);
  }
  const auto values = driver.Read(seq, 0);
  ASSERT_EQ(cache.Reserve(seq, 1), ReserveResult::kReservedAfterHalving);  // Token 513.
  cache.Truncate(seq, 512);  // Drops the reservation; what it halved stays halved.
  EXPECT_EQ(driver.Read(seq, 0), values);
  EXPECT_EQ(cache.LayerStats(seq, 1).k_pages, (PagesPerWidth{2, 2, 0, 0}));

  cache.Truncate(seq, 200);
  EXPECT_EQ(cache.LayerStats(seq, 0).k_pages, (PagesPerWidth{1, 1, 0, 0}));
  // The sink and the first page; the second one was cut open and rounded to floats.
  const auto kept = driver.Read(seq, 0);
  const auto whole = 129 * driver.config().geometry.blocks[0].k().values();
  EXPECT_TRUE(std::equal(kept.first.begin(), kept.first.begin() + whole, values.first.begin()));
  EXPECT_TRUE(std::equal(kept.second.begin(), kept.second.begin() + whole, values.second.begin()));
  while (driver.Append(seq, 1, 1) != ReserveResult::kBudgetExhausted) {
    const KvSequenceStats stats = cache.SequenceStats(seq);
    ASSERT_LE(stats.peak_bytes, stats.budget_bytes);
  }
  // The end is where the floor width no longer holds the tokens.
  const int64_t n = cache.NumTokens(seq);
  EXPECT_LE(FloorBytes(driver.config(), 0, n), driver.config().budget_bytes[0]);
  EXPECT_GT(FloorBytes(driver.config(), 0, n + 1), driver.config().budget_bytes[0]);
}

}  // namespace
}  // namespace pmkvq
