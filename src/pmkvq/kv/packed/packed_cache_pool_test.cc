// Sequences that share a pool.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::ExpectError;
using testing_support::MakeRows;
using testing_support::SmallPool;

// Bytes of a sequence at 16 bits.
int64_t FullBytes(const CacheConfig& config, int64_t num_tokens) {
  return 2 * BlockBytes(config, 0, num_tokens, 16, 16);
}

PagesPerWidth PagesOf(const PackedKvCache& cache, SequenceId seq) {
  return cache.SequenceStats(seq).pages;
}

int64_t UsedBytes(const PackedKvCache& cache) { return cache.StoreStats().pool.used_bytes; }

TEST(PackedCachePoolTest, NothingIsHalvedWhileThePoolHasRoom) {
  const CacheConfig sizes = SmallPool(1 << 20, 4);
  CacheDriver driver(SmallPool(4 * FullBytes(sizes, 1500), 4));
  for (uint64_t seed = 0; seed < 4; ++seed) {
    const SequenceId seq = *driver.cache().Open();
    ASSERT_EQ(driver.Append(seq, 1000, seed), ReserveResult::kReserved);
    EXPECT_EQ(PagesOf(driver.cache(), seq)[0], 4 * 8);
  }
  EXPECT_TRUE(driver.cache().TakeHalvingEvents().empty());
  EXPECT_EQ(driver.cache().StoreStats().pool.water_level, 0);
}

// Equal prices for all: what a sequence reads does not depend on whose pages were halved, and the
// older half of all pages goes first.
TEST(PackedCachePoolTest, TheOldestPagesOfAllSequencesAreHalvedFirst) {
  const CacheConfig sizes = SmallPool(1 << 20, 3);
  CacheDriver driver(SmallPool(FullBytes(sizes, 1300) + FullBytes(sizes, 1000), 3));
  PackedKvCache& cache = driver.cache();
  const SequenceId longer = *cache.Open();
  const SequenceId shorter = *cache.Open();
  ASSERT_NE(driver.Append(longer, 1281, 1), ReserveResult::kBudgetExhausted);
  ASSERT_NE(driver.Append(shorter, 257, 2), ReserveResult::kBudgetExhausted);
  const SequenceId third = *cache.Open();
  ASSERT_EQ(driver.Append(third, 900, 3), ReserveResult::kReservedAfterHalving);
  EXPECT_GT(PagesOf(cache, longer)[1], PagesOf(cache, shorter)[1]);
  EXPECT_GT(cache.StoreStats().pool.water_level, 0);
  int64_t halved = 0;
  for (const HalvingEvent& event : cache.TakeHalvingEvents()) {
    EXPECT_EQ(event.from_bits, 16);
    halved += event.num_k_pages + event.num_v_pages;
  }
  int64_t narrow = 0;
  for (const SequenceId seq : {longer, shorter, third}) narrow += PagesOf(cache, seq)[1];
  EXPECT_EQ(halved, narrow);
  EXPECT_LE(UsedBytes(cache), driver.config().pool.bytes);
}

TEST(PackedCachePoolTest, AtTheFloorItSaysExhaustedAndChangesNothing) {
  const CacheConfig sizes = SmallPool(1 << 20, 2, 4);
  const int64_t floor_bytes = FloorBytes(sizes, 1000);
  CacheDriver driver(SmallPool(2 * floor_bytes, 2, 4));
  PackedKvCache& cache = driver.cache();
  const SequenceId first = *cache.Open();
  const SequenceId second = *cache.Open();
  ASSERT_NE(driver.Append(first, 1000, 1), ReserveResult::kBudgetExhausted);
  ASSERT_NE(driver.Append(second, 1000, 2), ReserveResult::kBudgetExhausted);
  const int64_t used = UsedBytes(cache);
  const PagesPerWidth pages = PagesOf(cache, first);
  const std::vector<BatchChunk> both = {{first, 129}, {second, 1}};
  EXPECT_EQ(cache.ReserveAll(both), ReserveResult::kBudgetExhausted);
  EXPECT_EQ(UsedBytes(cache), used);
  EXPECT_EQ(PagesOf(cache, first), pages);
  cache.Close(second);
  EXPECT_NE(driver.Append(first, 129, 1), ReserveResult::kBudgetExhausted);
  EXPECT_EQ(PagesOf(cache, first)[3], 0) << "below the floor of 4 bits";
}

// One sequence may have the whole pool, to the byte that FloorBytes says.
TEST(PackedCachePoolTest, OneSequenceFillsThePoolToTheByte) {
  for (const int floor : {2, 4, 8}) {
    const int64_t bytes = FloorBytes(SmallPool(1 << 20, 2, floor), 3 * 128 + 1);
    CacheDriver driver(SmallPool(bytes, 2, floor));
    const SequenceId seq = *driver.cache().Open();
    EXPECT_NE(driver.Append(seq, 3 * 128 + 1, 1), ReserveResult::kBudgetExhausted);
    EXPECT_EQ(UsedBytes(driver.cache()), bytes);
    EXPECT_EQ(driver.Append(seq, 1, 1), ReserveResult::kBudgetExhausted);
    driver.cache().Close(seq);
    EXPECT_EQ(UsedBytes(driver.cache()), 0);
    const SequenceId next = *driver.cache().Open();
    for (int i = 0; i < 3 * 128 + 1; ++i) {
      ASSERT_NE(driver.Append(next, 1, 2), ReserveResult::kBudgetExhausted) << i;
    }
  }
}

TEST(PackedCachePoolTest, MinBitsAndWeightAreOfTheSequence) {
  const CacheConfig sizes = SmallPool(1 << 20, 2);
  CacheDriver driver(SmallPool(FullBytes(sizes, 1200), 2));
  PackedKvCache& cache = driver.cache();
  const SequenceId kept = *cache.Open();
  cache.SetPoolTerms(kept, {.min_bits = 16});
  const SequenceId other = *cache.Open();
  ASSERT_NE(driver.Append(kept, 600, 1), ReserveResult::kBudgetExhausted);
  ASSERT_NE(driver.Append(other, 1000, 2), ReserveResult::kBudgetExhausted);
  EXPECT_EQ(PagesOf(cache, kept), (PagesPerWidth{4 * 5, 0, 0, 0}));
  EXPECT_GT(PagesOf(cache, other)[1], 0);

  CacheDriver weighted(SmallPool(FullBytes(sizes, 1600), 2));
  const SequenceId high = *weighted.cache().Open();
  const SequenceId low = *weighted.cache().Open();
  weighted.cache().SetPoolTerms(low, {.weight = 0.25});
  ASSERT_NE(weighted.Append(high, 1000, 1), ReserveResult::kBudgetExhausted);
  ASSERT_NE(weighted.Append(low, 1000, 2), ReserveResult::kBudgetExhausted);
  EXPECT_LT(PagesOf(weighted.cache(), high)[1], PagesOf(weighted.cache(), low)[1]);
}

TEST(PackedCachePoolTest, StaticWidthsCloseAtOnceInAPoolToo) {
  CacheConfig config = SmallPool(1 << 20, 2);
  config.close_bits = config.floor_bits = 4;
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 700, 1), ReserveResult::kReserved);
  for (int i = 0; i < 100; ++i) ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReserved);
  EXPECT_EQ(PagesOf(driver.cache(), seq), (PagesPerWidth{4, 0, 4 * 6, 0}));
  EXPECT_EQ(UsedBytes(driver.cache()), FloorBytes(config, 800));
  EXPECT_TRUE(driver.cache().TakeHalvingEvents().empty());
}

// Decoding reads what is stored: more than the limit is halved though the pool has room, but no
// page below 8 bits, and in no step more than its bytes.
TEST(PackedCachePoolTest, WhatIsReadForATokenKeepsToItsLimit) {
  CacheConfig config = SmallPool(1 << 22, 3);
  config.pool.read_limit_bytes = FullBytes(config, 1500);
  config.pool.step_bytes = 20'000;
  CacheDriver driver(config);
  PackedKvCache& cache = driver.cache();
  const SequenceId first = *cache.Open();
  const SequenceId second = *cache.Open();
  ASSERT_EQ(driver.Append(first, 1000, 1), ReserveResult::kReserved);
  for (int i = 0; i < 900; ++i) {
    const int64_t before = cache.StoreStats().pool.narrowed_bytes;
    ASSERT_NE(driver.Append(second, 1, 2), ReserveResult::kBudgetExhausted);
    EXPECT_LE(cache.StoreStats().pool.narrowed_bytes - before, config.pool.step_bytes);
    // The tokens behind one that opens pages halve what it could not.
    EXPECT_LE(UsedBytes(cache), config.pool.read_limit_bytes + FullBytes(config, 129));
    if (i % kPageTokens == 64) {
      EXPECT_LE(UsedBytes(cache), config.pool.read_limit_bytes);
    }
  }
  EXPECT_GT(PagesOf(cache, first)[1], 0);
  for (int i = 0; i < 3000; ++i) {
    ASSERT_NE(driver.Append(second, 1, 2), ReserveResult::kBudgetExhausted);
  }
  for (const SequenceId seq : {first, second}) {
    EXPECT_EQ(PagesOf(cache, seq)[2] + PagesOf(cache, seq)[3], 0);
    EXPECT_EQ(PagesOf(cache, seq)[0], 4) << "the open pages";
  }
  EXPECT_GT(UsedBytes(cache), config.pool.read_limit_bytes);
  EXPECT_EQ(cache.StoreStats().pool.water_level, 0) << "of the pool";
}

// Where the sensitive block, or side, is known, the others are halved before it.
TEST(PackedCachePoolTest, SensitiveBlocksStayWideLongest) {
  const CacheConfig sizes = SmallPool(1 << 20, 1);
  CacheConfig config = SmallPool(FullBytes(sizes, 900), 1);
  config.pool.k_sensitivity = {{0, 9, 150, 700}, {0, 1, 17, 85}};
  config.pool.v_sensitivity = {{0, 9, 150, 700}, {0, 1, 17, 85}};
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_NE(driver.Append(seq, 1100, 1), ReserveResult::kBudgetExhausted);
  const KvLayerStats sensitive = driver.cache().LayerStats(seq, 0);
  const KvLayerStats robust = driver.cache().LayerStats(seq, 1);
  EXPECT_GE(sensitive.k_pages[0], 8);
  EXPECT_LE(robust.k_pages[0], 4);
}

// A chunk that waits between two blocks reads its sequence's pages at one width.
TEST(PackedCachePoolTest, ASequenceWithAChunkUnderWayKeepsItsPages) {
  const CacheConfig sizes = SmallPool(1 << 20, 2);
  CacheDriver driver(SmallPool(FullBytes(sizes, 1500), 2));
  PackedKvCache& cache = driver.cache();
  const SequenceId waits = *cache.Open();
  const SequenceId other = *cache.Open();
  ASSERT_EQ(driver.Append(waits, 600, 1), ReserveResult::kReserved);
  ASSERT_EQ(cache.Reserve(waits, 129), ReserveResult::kReserved);
  const PagesPerWidth pages = PagesOf(cache, waits);
  ASSERT_EQ(driver.Append(other, 900, 2), ReserveResult::kReservedAfterHalving);
  EXPECT_EQ(PagesOf(cache, waits), pages);
  EXPECT_EQ(pages[1], 0);
  driver.Forward({{waits, 129, 1}});
  EXPECT_EQ(driver.Append(waits, 300, 1), ReserveResult::kReservedAfterHalving);
  EXPECT_GT(PagesOf(cache, waits)[1], 0);
}

TEST(PackedCachePoolTest, HalvingAheadKeepsToTheBytesOfAStep) {
  const CacheConfig sizes = SmallPool(1 << 20, 4);
  CacheConfig config = SmallPool(FullBytes(sizes, 4000), 4);
  config.pool.step_bytes = 3000;  // A 16-bit page has 8,192 bytes, so none is read ahead.
  CacheDriver none(config);
  config.pool.step_bytes = 20'000;
  CacheDriver two(config);
  for (CacheDriver* const driver : {&none, &two}) {
    std::vector<SequenceId> sequences;
    int64_t most = 0;
    for (uint64_t i = 0; i < 4; ++i) sequences.push_back(*driver->cache().Open());
    for (int token = 0; token < 1500; ++token) {
      const int64_t before = driver->cache().StoreStats().pool.narrowed_bytes;
      for (const SequenceId seq : sequences) {
        ASSERT_NE(driver->Append(seq, 1, static_cast<uint64_t>(seq)),
                  ReserveResult::kBudgetExhausted);
        const int64_t after = driver->cache().StoreStats().pool.narrowed_bytes;
        most = std::max(most, after - before);
      }
    }
    const int64_t peak = driver->cache().StoreStats().pool.peak_bytes;
    EXPECT_LE(peak, config.pool.bytes);
    EXPECT_GT(most, 0);
  }
  EXPECT_LT(UsedBytes(two.cache()), UsedBytes(none.cache()));
}

// Values lie in [-1.5, 2.5], so a group's range is 4 at most.
double LargestError(int bits) { return bits == 16 ? 2e-3 : 4.0 / ((1 << bits) - 1) + 4e-3; }

// What is stored reads as it was appended, within the error of its width.
void CheckValues(const CacheDriver& driver, PackedKvCache& cache, SequenceId seq, uint64_t seed) {
  const CacheConfig& config = driver.config();
  const int64_t num_tokens = cache.NumTokens(seq);
  for (int64_t layer = 0; layer < config.geometry.num_layers(); ++layer) {
    const testing_support::KeysAndValues read = driver.Read(seq, layer);
    const testing_support::Rows rows = MakeRows(config.geometry, seed, layer, 0, num_tokens);
    const std::vector<PageWidths> widths = cache.WidthsOfPages(seq, layer);
    const int64_t row = config.geometry.block(layer).k().values();
    const int64_t freed = FirstSeenPage(config, static_cast<size_t>(layer), num_tokens);
    for (const bool is_key : {true, false}) {
      const std::vector<float>& got = is_key ? read.first : read.second;
      const std::vector<float>& expected = is_key ? rows.k : rows.v;
      RC_ASSERT(std::ssize(widths) == NumPages(config, num_tokens));
      for (int64_t token = 0; token < num_tokens; ++token) {
        int bits = 16;
        if (token >= config.sink_tokens) {
          const int64_t page = (token - config.sink_tokens) / kPageTokens;
          if (page < freed) continue;
          const PageWidths& pair = widths[static_cast<size_t>(page)];
          bits = is_key ? pair.k : pair.v;
        }
        for (int64_t i = token * row; i < (token + 1) * row; ++i) {
          const auto index = static_cast<size_t>(i);
          RC_ASSERT(std::abs(got[index] - expected[index]) <= LargestError(bits));
        }
      }
    }
  }
}

// A history of sequences that come, grow, fork and go never exceeds the pool.
RC_GTEST_PROP(PackedCachePoolProperty, ThePoolIsNeverExceeded, ()) {
  const int floor = *rc::gen::element(2, 4, 8, 16);
  const CacheConfig sizes = SmallPool(1 << 20, 5, floor);
  CacheConfig config =
      SmallPool(FloorBytes(sizes, *rc::gen::inRange<int64_t>(300, 3000)), 5, floor);
  config.sink_tokens = *rc::gen::element<int64_t>(0, 1, 70, 130);
  config.window_tokens = *rc::gen::element<int64_t>(128, 256);
  config.pool.bytes = std::max(config.pool.bytes, FloorBytes(config, 300));
  config.pool.step_bytes = *rc::gen::element<int64_t>(0, 10'000, 1 << 20);
  config.num_threads = *rc::gen::inRange(1, 3);
  if (*rc::gen::arbitrary<bool>()) config.geometry.blocks[1].sliding_window = 300;
  CacheDriver driver(config);
  PackedKvCache& cache = driver.cache();
  std::map<SequenceId, uint64_t> open;  // With the seed of its values.
  uint64_t next_seed = 1;
  for (int i = 0; i < 120; ++i) {
    const int choice = *rc::gen::inRange(0, 20);
    if (open.empty() || (choice == 0 && open.size() < 5)) {
      open.emplace(*cache.Open(), next_seed++);
      continue;
    }
    auto it = open.begin();
    std::advance(it, *rc::gen::inRange<size_t>(0, open.size()));
    if (choice == 1) {
      cache.Close(it->first);
      open.erase(it);
    } else if (choice == 2 && open.size() < 5) {
      if (const auto copy = cache.Fork(it->first)) open.emplace(*copy, it->second);
    } else {
      const int64_t count = *rc::gen::element<int64_t>(1, 1, 5, 60, 127, 128, 129, 200);
      const int64_t used = UsedBytes(cache);
      if (driver.Append(it->first, count, it->second) == ReserveResult::kBudgetExhausted) {
        RC_ASSERT(UsedBytes(cache) == used);
        if (open.size() == 1) {
          RC_ASSERT(FloorBytes(config, cache.NumTokens(it->first) + count) > config.pool.bytes);
        }
        if (*rc::gen::arbitrary<bool>()) {
          cache.Close(it->first);
          open.erase(it);
        }
      }
    }
    int64_t sum = 0;
    for (const auto& [seq, seed] : open) {
      const KvSequenceStats stats = cache.SequenceStats(seq);
      sum += stats.bytes;
      if (floor > 2) RC_ASSERT(stats.pages[3] == 0);
    }
    RC_ASSERT(sum >= UsedBytes(cache));  // Forks share.
    RC_ASSERT(cache.StoreStats().pool.peak_bytes <= config.pool.bytes);
  }
  for (const auto& [seq, seed] : open) {
    CheckValues(driver, cache, seq, seed);
    cache.Close(seq);
  }
  RC_ASSERT(UsedBytes(cache) == 0);
}

TEST(PackedCachePoolTest, WhatItCannotDoIsRefusedByName) {
  CacheConfig config = SmallPool(1 << 20, 2);
  config.policy = PolicyKind::kLayerBudget;
  ExpectError<InvalidInput>([&] { const PackedKvCache cache(config); }, {"oldest-first"});
  config = SmallPool(1000, 2);
  ExpectError<InvalidInput>([&] { const PackedKvCache cache(config); }, {"--kv-pool", "1000"});
  PackedKvCache cache(SmallPool(1 << 20, 2));
  ExpectError<Unsupported>([&] { (void)cache.OpenImage({}, "file"); }, {"file", "pool"});
  EXPECT_FALSE(cache.ImageOf(*cache.Open()).has_value());
}

}  // namespace
}  // namespace pmkvq
