// Prompts that a pool keeps for later sequences.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <map>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::ExpectError;
using Tokens = std::vector<int32_t>;

CacheConfig PoolOf(int64_t bytes, int64_t max_sequences = 4) {
  CacheConfig config = testing_support::SmallPool(bytes, max_sequences, 4);
  config.pool.prefix_bytes = bytes;
  return config;
}

int64_t FullBytes(int64_t num_tokens) {
  const CacheConfig sizes = PoolOf(1 << 20);
  return 2 * BlockBytes(sizes, 0, num_tokens, 16, 16);
}

// A prompt whose tokens, and the values of these, are a function of one number per kSegment tokens.
constexpr int64_t kSegment = 64;
struct Prompt {
  std::vector<uint64_t> seeds;
  int64_t num_tokens() const { return std::ssize(seeds) * kSegment; }
  Tokens tokens() const {
    Tokens tokens;
    for (const uint64_t seed : seeds) {
      for (int64_t i = 0; i < kSegment; ++i) tokens.push_back(static_cast<int32_t>(seed));
    }
    return tokens;
  }
};
Prompt PromptOf(uint64_t seed, int64_t num_segments) {
  return {std::vector<uint64_t>(static_cast<size_t>(num_segments), seed)};
}

// Stores what the sequence lacks of the prompt, chunk by chunk. False: no room.
bool Store(CacheDriver& driver, SequenceId seq, const Prompt& prompt) {
  for (int64_t stored = driver.cache().NumTokens(seq); stored < prompt.num_tokens();
       stored = driver.cache().NumTokens(seq)) {
    const auto segment = static_cast<size_t>(stored / kSegment);
    const int64_t count = kSegment - stored % kSegment;
    if (driver.Append(seq, count, prompt.seeds[segment]) == ReserveResult::kBudgetExhausted) {
      return false;
    }
  }
  return true;
}

SequenceId OpenWith(CacheDriver& driver, const Prompt& prompt, const std::string& salt = "") {
  const SequenceId seq = *driver.cache().Open();
  driver.cache().TakePrefix(seq, salt, prompt.tokens());
  EXPECT_TRUE(Store(driver, seq, prompt));
  driver.cache().KeepPrefix(seq, salt, prompt.tokens());
  return seq;
}

KvPoolStats StatsOf(CacheDriver& driver) { return driver.cache().StoreStats().pool; }

// All sinks and chunks: what was taken reads, attends and goes on as if it had been stored.
TEST(PackedCachePrefixTest, WhatIsTakenHasTheBitsOfWhatIsStored) {
  for (const int64_t sink : {0, 1, 64, 128, 200}) {
    for (const int64_t chunk : {256, 320, 512}) {
      CacheConfig config = PoolOf(FullBytes(4000));
      config.sink_tokens = sink;
      config.chunk_tokens = chunk;
      CacheDriver driver(config);
      PackedKvCache& cache = driver.cache();
      const Prompt prompt = PromptOf(7, 20);
      const SequenceId first = OpenWith(driver, prompt);
      const KvPoolStats kept = StatsOf(driver);
      EXPECT_EQ(kept.prefix_tokens, prompt.num_tokens() / chunk * chunk);
      EXPECT_EQ(kept.used_bytes, kept.prefix_bytes + cache.SequenceStats(first).bytes);
      const SequenceId second = *cache.Open();
      EXPECT_EQ(cache.TakePrefix(second, "", prompt.tokens()), kept.prefix_tokens);
      ASSERT_TRUE(Store(driver, second, prompt));
      EXPECT_EQ(driver.ReadAll(second), driver.ReadAll(first));
      for (int i = 0; i < 200; ++i) {
        ASSERT_EQ(driver.Append(first, 1, 9), ReserveResult::kReserved);
        const auto expected = driver.outputs();
        ASSERT_EQ(driver.Append(second, 1, 9), ReserveResult::kReserved);
        ASSERT_EQ(driver.outputs(), expected) << "sink " << sink << ", chunk " << chunk;
      }
      const KvSequenceStats a = cache.SequenceStats(first);
      const KvSequenceStats b = cache.SequenceStats(second);
      EXPECT_EQ(std::tie(a.bytes, a.peak_bytes, a.pages), std::tie(b.bytes, b.peak_bytes, b.pages));
      cache.Close(first);
      // The prompt outlives its sequences.
      const SequenceId third = OpenWith(driver, prompt);
      cache.Close(second);
      EXPECT_EQ(cache.NumTokens(third), prompt.num_tokens());
      cache.Close(third);
      EXPECT_EQ(StatsOf(driver).used_bytes, StatsOf(driver).prefix_bytes);
      EXPECT_EQ(StatsOf(driver).prefix_hits, 2);
    }
  }
}

// Two prompts that part in a chunk share the chunks before it; what one adds changes no other.
TEST(PackedCachePrefixTest, PromptsThatPartShareWhatIsBeforeIt) {
  CacheDriver driver(PoolOf(FullBytes(8000)));
  PackedKvCache& cache = driver.cache();
  Prompt one = PromptOf(1, 16);
  Prompt other = one;
  for (size_t i = 10; i < 16; ++i) other.seeds[i] = 2;
  const SequenceId first = OpenWith(driver, one);
  const auto values = driver.ReadAll(first);
  const SequenceId second = *cache.Open();
  EXPECT_EQ(cache.TakePrefix(second, "", other.tokens()), 512) << "640 tokens, two whole chunks";
  ASSERT_TRUE(Store(driver, second, other));
  cache.KeepPrefix(second, "", other.tokens());
  EXPECT_EQ(driver.ReadAll(first), values);
  const SequenceId third = OpenWith(driver, one);
  EXPECT_EQ(driver.ReadAll(third), values);
  EXPECT_EQ(StatsOf(driver).prefix_tokens, 1024 + 512);
  cache.Close(second);
  EXPECT_NE(driver.ReadAll(OpenWith(driver, other)), values);
}

TEST(PackedCachePrefixTest, AnotherSaltTakesNothing) {
  CacheDriver driver(PoolOf(FullBytes(8000)));
  OpenWith(driver, PromptOf(1, 8), "a");
  const SequenceId seq = *driver.cache().Open();
  EXPECT_EQ(driver.cache().TakePrefix(seq, "b", PromptOf(1, 8).tokens()), 0);
  EXPECT_EQ(driver.cache().TakePrefix(seq, "", PromptOf(1, 8).tokens()), 0);
  EXPECT_EQ(driver.cache().TakePrefix(seq, "a", PromptOf(1, 8).tokens()), 512);
}

TEST(PackedCachePrefixTest, KeptPromptsGoBeforeAnyPageIsHalved) {
  CacheDriver driver(PoolOf(FullBytes(3456)));
  PackedKvCache& cache = driver.cache();
  for (uint64_t seed = 1; seed <= 2; ++seed) cache.Close(OpenWith(driver, PromptOf(seed, 12)));
  ASSERT_EQ(StatsOf(driver).prefix_tokens, 2 * 768);
  const SequenceId seq = *cache.Open();
  ASSERT_TRUE(Store(driver, seq, PromptOf(9, 20)));
  EXPECT_TRUE(cache.TakeHalvingEvents().empty());
  EXPECT_EQ(StatsOf(driver).prefix_tokens, 512 + 768) << "the older one, from its end on";
  EXPECT_LE(StatsOf(driver).peak_bytes, driver.config().pool.bytes);
  const SequenceId next = *cache.Open();
  EXPECT_EQ(cache.TakePrefix(next, "", PromptOf(2, 12).tokens()), 768);
  cache.Close(next);
  ASSERT_TRUE(Store(driver, seq, PromptOf(9, 60)));
  EXPECT_EQ(StatsOf(driver).prefix_bytes, 0);
  EXPECT_FALSE(cache.TakeHalvingEvents().empty());
}

// A pool that holds the prompt hardly more than once: the sequence takes the pages over.
TEST(PackedCachePrefixTest, APromptIsTakenWhereThereIsNoRoomForTwo) {
  CacheDriver driver(PoolOf(FullBytes(2100)));
  PackedKvCache& cache = driver.cache();
  const Prompt prompt = PromptOf(3, 16);
  const SequenceId first = *cache.Open();
  ASSERT_TRUE(Store(driver, first, prompt));
  const auto values = driver.ReadAll(first);
  cache.KeepPrefix(first, "", prompt.tokens());
  cache.Close(first);
  const int64_t kept = StatsOf(driver).prefix_tokens;
  ASSERT_GE(kept, 512);
  const SequenceId other = *cache.Open();
  ASSERT_TRUE(Store(driver, other, PromptOf(4, 8)));
  ASSERT_EQ(StatsOf(driver).prefix_tokens, kept);
  const SequenceId second = *cache.Open();
  EXPECT_EQ(cache.TakePrefix(second, "", prompt.tokens()), kept);
  EXPECT_LE(StatsOf(driver).peak_bytes, driver.config().pool.bytes);
  ASSERT_TRUE(Store(driver, second, prompt));
  EXPECT_EQ(cache.TakeHalvingEvents().empty(), driver.ReadAll(second) == values);
}

// Its later pages are at 16 bits, but were computed from narrower ones.
TEST(PackedCachePrefixTest, WhatStandsBehindNarrowPagesIsNotKept) {
  CacheConfig config = PoolOf(FullBytes(1300));
  CacheDriver driver(config);
  PackedKvCache& cache = driver.cache();
  const SequenceId seq = *cache.Open();
  ASSERT_TRUE(Store(driver, seq, PromptOf(1, 24)));
  ASSERT_GT(cache.SequenceStats(seq).pages[1], 0);
  cache.KeepPrefix(seq, "", PromptOf(1, 24).tokens());
  EXPECT_EQ(StatsOf(driver).prefix_tokens, 0);
}

TEST(PackedCachePrefixTest, NoMoreIsKeptThanAllowed) {
  CacheConfig config = PoolOf(FullBytes(8000));
  config.pool.prefix_bytes = FullBytes(1000);
  CacheDriver driver(config);
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    driver.cache().Close(OpenWith(driver, PromptOf(seed, 8)));
    EXPECT_LE(StatsOf(driver).prefix_bytes, config.pool.prefix_bytes);
    EXPECT_GT(StatsOf(driver).prefix_tokens, 0);
  }
}

// A pool in which every chunk that is not used right now may be halved.
CacheConfig IdlePoolOf(int64_t bytes, int min_bits = 8) {
  CacheConfig config = PoolOf(bytes);
  config.pool.prefix_idle_seconds = 0;
  config.pool.prefix_min_bits = min_bits;
  return config;
}

// What is kept at 16 bits, one beginning of `num_tokens`, once all its full pages are at `bits`.
int64_t HalvedBytes(const CacheDriver& driver, int64_t wide_bytes, int64_t num_tokens, int bits) {
  const CacheConfig& config = driver.config();
  for (const KvBlockGeometry& block : config.geometry.blocks) {
    for (const Side side : kSides) {
      const auto bytes_of = [&](int width) {
        return PageBytes(block.streams[side], config.float_type, width);
      };
      const int64_t pages = (num_tokens - config.sink_tokens) / kPageTokens;
      wide_bytes -= pages * (bytes_of(16) - bytes_of(bits));
    }
  }
  return wide_bytes;
}

// Crowds the pool until so many bytes, or fewer, are kept; then all room is free again.
void Crowd(CacheDriver& driver, int64_t prefix_bytes) {
  const SequenceId seq = *driver.cache().Open();
  for (int64_t count = 1; StatsOf(driver).prefix_bytes > prefix_bytes; ++count) {
    ASSERT_TRUE(Store(driver, seq, PromptOf(99, count)));
  }
  EXPECT_TRUE(driver.cache().TakeHalvingEvents().empty()) << "what is kept goes first";
  driver.cache().Close(seq);
}

TEST(PackedCachePrefixTest, WhatIsIdleIsHalvedBeforeAnyIsDropped) {
  for (const int min_bits : {16, 8, 4}) {
    CacheDriver driver(IdlePoolOf(FullBytes(3456), min_bits));
    for (uint64_t seed = 1; seed <= 2; ++seed) {
      driver.cache().Close(OpenWith(driver, PromptOf(seed, 12)));
    }
    const KvPoolStats wide = StatsOf(driver);
    ASSERT_EQ(wide.prefix_tokens, 2 * 768);
    const SequenceId seq = *driver.cache().Open();
    for (int64_t count = 1; StatsOf(driver).prefix_tokens == wide.prefix_tokens; ++count) {
      ASSERT_TRUE(Store(driver, seq, PromptOf(9, count)));
    }
    EXPECT_TRUE(driver.cache().TakeHalvingEvents().empty());
    // All full pages, as often as they can be halved.
    int64_t read_bytes = 0;
    for (int bits = 16; bits > min_bits; bits /= 2) {
      for (const KvBlockGeometry& block : driver.config().geometry.blocks) {
        for (const Side side : kSides) {
          const int64_t pages = (768 - driver.config().sink_tokens) / kPageTokens;
          read_bytes +=
              2 * pages * PageCodeBytes(block.streams[side], driver.config().float_type, bits);
        }
      }
    }
    EXPECT_EQ(StatsOf(driver).narrowed_bytes, read_bytes) << min_bits;
    ASSERT_TRUE(Store(driver, seq, PromptOf(9, 60)));
    EXPECT_EQ(StatsOf(driver).prefix_bytes, 0);
    EXPECT_FALSE(driver.cache().TakeHalvingEvents().empty());
  }
}

TEST(PackedCachePrefixTest, WhatWasUsedALittleWhileAgoIsDroppedAndNotHalved) {
  CacheConfig config = PoolOf(FullBytes(3456));
  config.pool.prefix_idle_seconds = 1e6;
  CacheDriver driver(config);
  driver.cache().Close(OpenWith(driver, PromptOf(1, 12)));
  Crowd(driver, 0);
  EXPECT_EQ(StatsOf(driver).narrowed_bytes, 0);
}

// R2: what a sequence takes over, it could have stored and halved then, as its events say.
TEST(PackedCachePrefixTest, HalvedPagesAreTakenAsIfTheyHadBeenHalvedThen) {
  for (const int min_bits : {8, 4, 2}) {
    for (const int64_t sink : {0, 1, 64, 200}) {
      for (const int64_t chunk : {256, 320}) {
        CacheConfig config = IdlePoolOf(FullBytes(3456), min_bits);
        config.floor_bits = 2;
        config.sink_tokens = sink;
        config.chunk_tokens = chunk;
        CacheDriver driver(config);
        PackedKvCache& cache = driver.cache();
        const Prompt prompt = PromptOf(5, 20);
        const Tokens tokens = prompt.tokens();
        cache.Close(OpenWith(driver, prompt));
        const KvPoolStats wide = StatsOf(driver);
        Crowd(driver, HalvedBytes(driver, wide.prefix_bytes, wide.prefix_tokens, min_bits));
        const SequenceId taker = *cache.Open();
        const int64_t taken =
            cache.TakePrefix(taker, "", std::span(tokens).first(tokens.size() - 1));
        ASSERT_EQ(taken, (std::ssize(tokens) - 1) / chunk * chunk);
        const std::vector<HalvingEvent> events = cache.TakeHalvingEvents();
        ASSERT_FALSE(events.empty());
        for (const HalvingEvent& event : events) EXPECT_EQ(event.num_tokens, taken);
        EXPECT_GT(cache.SequenceStats(taker).pages[WidthIndex(min_bits)], 0);
        const int64_t used = StatsOf(driver).prefix_bytes + cache.SequenceStats(taker).bytes;
        EXPECT_EQ(StatsOf(driver).used_bytes, used);
        ASSERT_TRUE(Store(driver, taker, prompt));

        config.pool.prefix_bytes = 0;
        CacheDriver other(config);
        const SequenceId same = *other.cache().Open();
        other.cache().FollowHistory(same, events);
        ASSERT_TRUE(Store(other, same, prompt));
        ASSERT_EQ(other.cache().FailureOf(same), nullptr);
        EXPECT_EQ(driver.ReadAll(taker), other.ReadAll(same)) << sink << " " << chunk;
        for (int i = 0; i < 140; ++i) {
          ASSERT_EQ(driver.Append(taker, 1, 9), ReserveResult::kReserved);
          ASSERT_EQ(other.Append(same, 1, 9), ReserveResult::kReserved);
          ASSERT_EQ(driver.outputs(), other.outputs());
        }
        const KvSequenceStats a = cache.SequenceStats(taker);
        const KvSequenceStats b = other.cache().SequenceStats(same);
        EXPECT_EQ(std::tie(a.bytes, a.pages), std::tie(b.bytes, b.pages));
        // What was computed behind them is not kept, and they stay as they are.
        const KvPoolStats kept = StatsOf(driver);
        cache.KeepPrefix(taker, "", tokens);
        EXPECT_EQ(StatsOf(driver).prefix_tokens, kept.prefix_tokens);
        EXPECT_EQ(StatsOf(driver).used_bytes, kept.used_bytes);
        cache.Close(taker);
        EXPECT_EQ(StatsOf(driver).used_bytes, StatsOf(driver).prefix_bytes);
      }
    }
  }
}

// It is computed again, and replaces the narrow one, which lives until its readers end.
TEST(PackedCachePrefixTest, ANarrowPromptIsReplacedByARequestOfMoreBits) {
  CacheDriver driver(IdlePoolOf(FullBytes(5000)));
  PackedKvCache& cache = driver.cache();
  const Prompt prompt = PromptOf(5, 12);
  cache.Close(OpenWith(driver, prompt));
  const int64_t wide_bytes = StatsOf(driver).prefix_bytes;
  Crowd(driver, HalvedBytes(driver, wide_bytes, 768, 8));
  ASSERT_EQ(StatsOf(driver).prefix_tokens, 768);
  const SequenceId reader = *cache.Open();
  ASSERT_EQ(cache.TakePrefix(reader, "", prompt.tokens()), 768);
  const auto narrow_values = driver.ReadAll(reader);

  const SequenceId wide = *cache.Open();
  cache.SetPoolTerms(wide, {16, 1});
  EXPECT_EQ(cache.TakePrefix(wide, "", prompt.tokens()), 0);
  ASSERT_TRUE(Store(driver, wide, prompt));
  cache.KeepPrefix(wide, "", prompt.tokens());
  EXPECT_EQ(StatsOf(driver).prefix_tokens, 768);
  EXPECT_EQ(driver.ReadAll(reader), narrow_values);
  EXPECT_NE(driver.ReadAll(wide), narrow_values);

  const SequenceId next = *cache.Open();
  cache.SetPoolTerms(next, {16, 1});
  EXPECT_EQ(cache.TakePrefix(next, "", prompt.tokens()), 768);
  EXPECT_EQ(driver.ReadAll(next), driver.ReadAll(wide));
  for (const SequenceId seq : {reader, wide, next}) cache.Close(seq);
  EXPECT_EQ(StatsOf(driver).used_bytes, wide_bytes);
}

// The newest tokens of a sequence stay at 16 bits, so nothing that it may take over is halved.
TEST(PackedCachePrefixTest, NothingIsHalvedWhereAWindowStaysWide) {
  CacheConfig config = IdlePoolOf(FullBytes(3456));
  config.window_tokens = 256;
  CacheDriver driver(config);
  driver.cache().Close(OpenWith(driver, PromptOf(1, 12)));
  Crowd(driver, 0);
  EXPECT_EQ(StatsOf(driver).narrowed_bytes, 0);
}

// Keeping costs nobody a bit: the widths of all sequences are those of a pool that keeps nothing.
RC_GTEST_PROP(PackedCachePrefixProperty, WidthsAreThoseOfAPoolThatKeepsNothing, ()) {
  CacheConfig config = PoolOf(FloorBytes(PoolOf(1 << 20), *rc::gen::inRange<int64_t>(600, 4000)));
  config.pool.step_bytes = *rc::gen::element<int64_t>(0, 20'000, 1 << 20);
  config.pool.prefix_idle_seconds = *rc::gen::element(0.0, 1e6);
  CacheDriver keeps(config);
  config.pool.prefix_bytes = 0;
  CacheDriver plain(config);
  std::map<SequenceId, Prompt> open;
  uint64_t next_seed = 1;
  for (int i = 0; i < 60; ++i) {
    const int choice = *rc::gen::inRange(0, 10);
    if (open.empty() || (choice < 3 && open.size() < 4)) {
      const SequenceId seq = *keeps.cache().Open();
      RC_ASSERT(*plain.cache().Open() == seq);
      open[seq] = PromptOf(next_seed++, 0);
      continue;
    }
    auto it = open.begin();
    std::advance(it, *rc::gen::inRange<size_t>(0, open.size()));
    auto& [seq, prompt] = *it;
    if (choice == 3) {
      keeps.cache().KeepPrefix(seq, "", prompt.tokens());
      for (CacheDriver* const driver : {&keeps, &plain}) driver->cache().Close(seq);
      open.erase(it);
      continue;
    }
    const Prompt longer = {
        std::vector<uint64_t>(prompt.seeds.size() + *rc::gen::inRange<size_t>(1, 5), next_seed)};
    Prompt next = prompt;
    next.seeds.resize(longer.seeds.size(), prompt.seeds.empty() ? next_seed : prompt.seeds[0]);
    const bool has_room = Store(keeps, seq, next);
    RC_ASSERT(Store(plain, seq, next) == has_room);
    next.seeds.resize(static_cast<size_t>(keeps.cache().NumTokens(seq) / kSegment),
                      next.seeds.back());
    prompt = next;
    keeps.cache().KeepPrefix(seq, "", prompt.tokens());
    const auto events = keeps.cache().TakeHalvingEvents();
    const auto expected = plain.cache().TakeHalvingEvents();
    RC_ASSERT(events.size() == expected.size());
    for (size_t n = 0; n < events.size(); ++n) {
      RC_ASSERT(std::tie(events[n].seq, events[n].layer, events[n].from_bits, events[n].num_k_pages,
                         events[n].num_v_pages) ==
                std::tie(expected[n].seq, expected[n].layer, expected[n].from_bits,
                         expected[n].num_k_pages, expected[n].num_v_pages));
    }
  }
  for (const auto& [seq, prompt] : open) RC_ASSERT(keeps.ReadAll(seq) == plain.ReadAll(seq));
}

// Sequences that come with prompts of a few kinds, grow, fork and go: the pool is never exceeded,
// all is accounted for, and each sequence reads as one alone whose pages are halved as its events
// say, those that it took over halved among them.
RC_GTEST_PROP(PackedCachePrefixProperty, TakenForkedAndClosedInAnyOrder, ()) {
  CacheConfig config = PoolOf(FullBytes(*rc::gen::inRange<int64_t>(600, 6000)), 5);
  config.sink_tokens = *rc::gen::element<int64_t>(0, 1, 70, 130);
  config.chunk_tokens = *rc::gen::element<int64_t>(192, 256);
  config.pool.prefix_idle_seconds = *rc::gen::element(0.0, 1e6);
  config.pool.prefix_min_bits = *rc::gen::element(4, 8, 16);
  config.window_tokens = *rc::gen::element<int64_t>(128, 128, 256);
  CacheDriver driver(config);
  PackedKvCache& cache = driver.cache();
  std::map<SequenceId, Prompt> open;
  std::map<SequenceId, std::vector<HalvingEvent>> events;
  const auto take_events = [&] {
    for (const HalvingEvent& event : cache.TakeHalvingEvents()) events[event.seq].push_back(event);
  };
  const auto close = [&](SequenceId seq) {
    take_events();
    events.erase(seq);
    cache.Close(seq);
    open.erase(seq);
  };
  uint64_t next_seed = 100;
  for (int i = 0; i < 80; ++i) {
    const int choice = *rc::gen::inRange(0, 8);
    if (open.empty() || (choice < 3 && open.size() < 5)) {
      Prompt prompt = PromptOf(*rc::gen::inRange<uint64_t>(1, 3), *rc::gen::inRange(1, 14));
      const auto parts_at = *rc::gen::inRange<size_t>(0, 14);
      for (size_t n = parts_at; n < prompt.seeds.size(); ++n) prompt.seeds[n] = 3;
      const SequenceId seq = *cache.Open();
      if (*rc::gen::inRange(0, 4) == 0) cache.SetPoolTerms(seq, {16, 1});
      const Tokens tokens = prompt.tokens();
      cache.TakePrefix(seq, "", std::span(tokens).first(tokens.size() - 1));
      if (!Store(driver, seq, prompt)) {
        close(seq);  // As a request that gives up its place, or is cancelled.
        continue;
      }
      cache.KeepPrefix(seq, "", prompt.tokens());
      open[seq] = prompt;
    } else {
      auto it = open.begin();
      std::advance(it, *rc::gen::inRange<size_t>(0, open.size()));
      if (choice == 3) {
        cache.KeepPrefix(it->first, "", it->second.tokens());
        close(it->first);
      } else if (choice == 4 && open.size() < 5) {
        if (const auto copy = cache.Fork(it->first)) {
          open[*copy] = it->second;
          take_events();
          events[*copy] = events[it->first];
        }
      } else {
        Prompt longer = it->second;
        longer.seeds.push_back(next_seed++);
        if (Store(driver, it->first, longer)) {
          it->second = longer;
        } else {
          close(it->first);
        }
      }
    }
    int64_t sum = StatsOf(driver).prefix_bytes;
    for (const auto& [seq, prompt] : open) sum += cache.SequenceStats(seq).bytes;
    RC_ASSERT(sum >= StatsOf(driver).used_bytes);
    RC_ASSERT(StatsOf(driver).peak_bytes <= config.pool.bytes);
  }
  take_events();
  CacheConfig alone_config = PoolOf(FullBytes(20'000), 1);
  alone_config.sink_tokens = config.sink_tokens;
  alone_config.window_tokens = config.window_tokens;
  alone_config.pool.prefix_bytes = 0;
  for (const auto& [seq, prompt] : open) {
    CacheDriver alone(alone_config);
    const SequenceId same = *alone.cache().Open();
    alone.cache().FollowHistory(same, events[seq]);
    RC_ASSERT(Store(alone, same, prompt));
    // Those of the present length.
    RC_ASSERT(alone.cache().Reserve(same, 0) != ReserveResult::kBudgetExhausted);
    RC_ASSERT(alone.cache().FailureOf(same) == nullptr);
    RC_ASSERT(driver.ReadAll(seq) == alone.ReadAll(same));
  }
  while (!open.empty()) close(open.begin()->first);
  RC_ASSERT(StatsOf(driver).used_bytes == StatsOf(driver).prefix_bytes);
}

// A chunk that two sequences read counts with their pages: giving it up would free no memory. So it
// stays, is halved with them, and a third sequence takes it as it is.
TEST(PackedCachePrefixTest, WhatTwoReadStaysWhereMemoryIsShort) {
  for (const int64_t sink : {0, 1}) {
    CacheConfig config = PoolOf(FullBytes(3000));
    config.sink_tokens = sink;
    config.floor_bits = 8;
    CacheDriver driver(config);
    PackedKvCache& cache = driver.cache();
    const Prompt prompt = PromptOf(5, 17);
    const SequenceId first = OpenWith(driver, prompt);
    const int64_t used = StatsOf(driver).used_bytes;
    const SequenceId second = OpenWith(driver, prompt);
    EXPECT_LE(StatsOf(driver).used_bytes - used, FullBytes(257))
        << "its open page, and a copy of the one that the kept tokens end in";
    cache.Close(OpenWith(driver, PromptOf(6, 4)));
    EXPECT_EQ(StatsOf(driver).prefix_tokens, 1024 + 256);

    const SequenceId greedy = *cache.Open();
    cache.SetPoolTerms(greedy, {16, 1});
    const auto is_narrow = [&] { return cache.SequenceStats(first).pages[1] > 0; };
    for (int64_t count = 1; !is_narrow(); ++count) {
      ASSERT_TRUE(Store(driver, greedy, PromptOf(9, count)));
    }
    EXPECT_EQ(StatsOf(driver).prefix_tokens, 1024) << "what nobody reads has gone";
    cache.TakeHalvingEvents();
    const SequenceId third = *cache.Open();
    ASSERT_EQ(cache.TakePrefix(third, "", prompt.tokens()), 1024);
    std::vector<HalvingEvent> events;
    for (const HalvingEvent& event : cache.TakeHalvingEvents()) {
      if (event.seq == third) events.push_back(event);
    }
    ASSERT_FALSE(events.empty());
    ASSERT_TRUE(Store(driver, third, prompt));
    for (const HalvingEvent& event : cache.TakeHalvingEvents()) {
      if (event.seq == third) events.push_back(event);
    }

    config.pool.prefix_bytes = 0;
    config.pool.bytes = FullBytes(9000);
    CacheDriver other(config);
    const SequenceId same = *other.cache().Open();
    other.cache().FollowHistory(same, events);
    ASSERT_TRUE(Store(other, same, prompt));
    ASSERT_NE(other.cache().Reserve(same, 0), ReserveResult::kBudgetExhausted);
    ASSERT_EQ(other.cache().FailureOf(same), nullptr);
    EXPECT_EQ(driver.ReadAll(third), other.ReadAll(same)) << sink;
    // With one reader left it is given up before a page is halved.
    for (const SequenceId seq : {first, second}) cache.Close(seq);
    for (int64_t count = 30; StatsOf(driver).prefix_tokens > 0; ++count) {
      ASSERT_TRUE(Store(driver, greedy, PromptOf(9, count)));
    }
    for (const SequenceId seq : {third, greedy}) cache.Close(seq);
    EXPECT_EQ(StatsOf(driver).used_bytes, 0);
  }
}

TEST(PackedCachePrefixTest, WhatItCannotKeepIsRefusedByName) {
  const auto refuses = [](CacheConfig config, const std::string& why) {
    EXPECT_NE(ObstacleToPrefixes(config), "");
    ExpectError<InvalidInput>([&] { const PackedKvCache cache(config); }, {"--prefix-cache", why});
  };
  CacheConfig config = PoolOf(1 << 20);
  config.geometry.blocks[1].sliding_window = 300;
  refuses(config, "sliding windows");
  config = PoolOf(1 << 20);
  config.close_bits = config.floor_bits = 4;
  refuses(config, "close at 4 bits");
  config = PoolOf(1 << 20);
  config.sink_tokens = 300;
  refuses(config, "--chunk 256");
  EXPECT_EQ(ObstacleToPrefixes(PoolOf(1 << 20)), "");
}

}  // namespace
}  // namespace pmkvq
