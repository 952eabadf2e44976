// Pages that sequences of a pool share: they count once, and have one width for all who read them.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::SmallPool;

// Bytes of a sequence at 16 bits.
int64_t FullBytes(int64_t num_tokens) {
  return 2 * BlockBytes(SmallPool(1 << 20, 1), 0, num_tokens, 16, 16);
}

int64_t UsedBytes(const PackedKvCache& cache) { return cache.StoreStats().pool.used_bytes; }

// The tokens of a sequence: so many of each seed, which is what its values are made of.
struct Piece {
  int64_t num_tokens = 0;
  uint64_t seed = 0;
};

// What the test knows of a sequence.
struct Known {
  std::vector<Piece> pieces;
  std::vector<HalvingEvent> events;
  std::vector<int64_t> pages;  // Numbers; those that share memory have the same.
  int64_t sink = 0;            // So has the sink.
  int min_bits = 2;
};

class Model {
 public:
  explicit Model(const CacheConfig& config) : config_(config), driver_(config) {}

  PackedKvCache& cache() { return driver_.cache(); }
  const CacheConfig& config() const { return config_; }
  std::map<SequenceId, Known>& open() { return open_; }

  void Open(const KvPoolTerms& terms) {
    const SequenceId seq = *cache().Open();
    cache().SetPoolTerms(seq, terms);
    open_[seq].min_bits = terms.min_bits;
    open_[seq].sink = next_number_++;
  }

  // False: there was no room, and nothing changed.
  bool Append(const std::vector<SequenceId>& seqs, int64_t count) {
    std::vector<BatchChunk> chunks;
    for (const SequenceId seq : seqs) chunks.push_back({seq, count});
    const int64_t used = UsedBytes(cache());
    if (cache().ReserveAll(chunks) == ReserveResult::kBudgetExhausted) {
      RC_ASSERT(UsedBytes(cache()) == used);
      RC_ASSERT(cache().TakeHalvingEvents().empty());
      return false;
    }
    const bool has_halved = TakeEvents();
    // Given up before its Forward, which would have read what was halved.
    if (!has_halved && config_.close_bits == 16 && *rc::gen::inRange(0, 8) == 0) {
      for (const SequenceId seq : seqs) cache().Truncate(seq, cache().NumTokens(seq));
      return true;
    }
    std::vector<CacheDriver::Part> parts;
    for (const SequenceId seq : seqs) {
      Known& known = open_.at(seq);
      known.pieces.push_back({count, next_seed_});
      parts.push_back({seq, count, next_seed_++});
    }
    driver_.Forward(parts);
    for (const SequenceId seq : seqs) {
      Known& known = open_.at(seq);
      const auto num_pages = static_cast<size_t>(NumPages(config_, cache().NumTokens(seq)));
      while (known.pages.size() < num_pages) known.pages.push_back(next_number_++);
    }
    return true;
  }

  void Fork(SequenceId seq) {
    const std::optional<SequenceId> copy = cache().Fork(seq);
    TakeEvents();
    if (!copy) return;
    Known known = open_.at(seq);
    const int64_t num_tokens = cache().NumTokens(seq);
    size_t num_shared = known.pages.size();
    if ((num_tokens - config_.sink_tokens) % kPageTokens != 0 && num_shared > 0) --num_shared;
    if (config_.close_bits < 16) {
      const auto window = static_cast<size_t>(config_.window_tokens / kPageTokens);
      num_shared = known.pages.size() - std::min(known.pages.size(), window);
    }
    for (size_t page = num_shared; page < known.pages.size(); ++page) {
      known.pages[page] = next_number_++;
    }
    if (num_tokens < config_.sink_tokens) known.sink = next_number_++;
    open_[*copy] = std::move(known);
  }

  void Close(SequenceId seq) {
    cache().Close(seq);
    open_.erase(seq);
  }

  // One width for all who share a page, all memory counted once, within the pool; floors kept.
  void Check() {
    std::map<int64_t, std::vector<PageWidths>> widths;  // By number: of the blocks.
    std::set<std::pair<int64_t, int64_t>> sinks;        // Number and block.
    int64_t used = 0;
    for (const auto& [seq, known] : open_) {
      int64_t bytes = 0;
      const bool has_sink = cache().NumTokens(seq) > 0 && config_.sink_tokens > 0;
      for (int64_t layer = 0; layer < config_.geometry.num_layers(); ++layer) {
        const std::vector<PageWidths> pages = cache().WidthsOfPages(seq, layer);
        RC_ASSERT(pages.size() == known.pages.size());
        for (size_t page = 0; page < pages.size(); ++page) {
          RC_ASSERT(std::min(pages[page].k, pages[page].v) >= known.min_bits);
          std::vector<PageWidths>& of_page = widths[known.pages[page]];
          const int64_t page_bytes = BytesOf(layer, pages[page]);
          bytes += page_bytes;
          if (std::ssize(of_page) == layer) {
            of_page.push_back(pages[page]);
            used += page_bytes;
          }
          RC_ASSERT(of_page[static_cast<size_t>(layer)] == pages[page]);
        }
        if (!has_sink) continue;
        const int64_t sink_bytes = SinkBytes(config_, static_cast<size_t>(layer));
        bytes += sink_bytes;
        if (sinks.insert({known.sink, layer}).second) used += sink_bytes;
      }
      RC_ASSERT(cache().SequenceStats(seq).bytes == bytes);
    }
    RC_ASSERT(UsedBytes(cache()) == used);
    RC_ASSERT(cache().StoreStats().pool.peak_bytes <= config_.pool.bytes);
  }

  // R2: each sequence reads as one alone whose pages are halved as its events say.
  void CheckRepeats() {
    CacheConfig alone_config = config_;
    alone_config.max_sequences = 1;
    alone_config.pool.bytes = FullBytes(40'000);
    for (const auto& [seq, known] : open_) {
      CacheDriver alone(alone_config);
      const SequenceId same = *alone.cache().Open();
      alone.cache().FollowHistory(same, known.events);
      for (const Piece& piece : known.pieces) {
        const ReserveResult result = alone.Append(same, piece.num_tokens, piece.seed);
        RC_ASSERT(result != ReserveResult::kBudgetExhausted);
        RC_ASSERT(alone.cache().FailureOf(same) == nullptr);
      }
      RC_ASSERT(alone.cache().Reserve(same, 0) != ReserveResult::kBudgetExhausted);
      RC_ASSERT(alone.cache().FailureOf(same) == nullptr);
      RC_ASSERT(driver_.ReadAll(seq) == alone.ReadAll(same));
    }
  }

  bool TakeEvents() {
    const std::vector<HalvingEvent> events = cache().TakeHalvingEvents();
    for (const HalvingEvent& event : events) open_.at(event.seq).events.push_back(event);
    return !events.empty();
  }

 private:
  int64_t BytesOf(int64_t layer, const PageWidths& widths) const {
    const KvBlockGeometry& block = config_.geometry.block(layer);
    return PageBytes(block.k(), config_.float_type, widths.k) +
           PageBytes(block.v(), config_.float_type, widths.v);
  }

  CacheConfig config_;
  CacheDriver driver_;
  std::map<SequenceId, Known> open_;
  int64_t next_number_ = 0;
  uint64_t next_seed_ = 1;
};

RC_GTEST_PROP(PackedCacheSharedProperty, SharedPagesHaveOneWidthAndCountOnce, ()) {
  constexpr int64_t kSequences = 5;
  const int floor = *rc::gen::element(2, 4, 8);
  CacheConfig config = SmallPool(1 << 20, kSequences, floor);
  config.sink_tokens = *rc::gen::element<int64_t>(0, 1, 70, 130);
  config.window_tokens = *rc::gen::element<int64_t>(128, 256);
  config.close_bits = *rc::gen::element(16, 16, 8);
  config.pool.bytes = FloorBytes(config, *rc::gen::inRange<int64_t>(500, 3000));
  config.pool.step_bytes = *rc::gen::element<int64_t>(0, 20'000, 1 << 20);
  config.num_threads = *rc::gen::inRange(1, 3);
  Model model(config);
  for (int i = 0; i < 80; ++i) {
    const int choice = *rc::gen::inRange(0, 12);
    std::map<SequenceId, Known>& open = model.open();
    if (open.empty() || (choice == 0 && std::ssize(open) < kSequences)) {
      model.Open({*rc::gen::element(floor, floor, std::min(8, config.close_bits)),
                  *rc::gen::element(1.0, 0.25)});
      continue;
    }
    const auto any = [&] {
      auto it = open.begin();
      std::advance(it, *rc::gen::inRange<size_t>(0, open.size()));
      return it->first;
    };
    if (choice == 1) {
      model.Close(any());
    } else if (choice < 5 && std::ssize(open) < kSequences) {
      model.Fork(any());
    } else {
      std::vector<SequenceId> seqs = {any()};
      int64_t count = *rc::gen::element<int64_t>(1, 60, 127, 128, 129, 200);
      if (choice > 9) {  // A step of all.
        seqs.clear();
        for (const auto& [seq, known] : open) seqs.push_back(seq);
        count = *rc::gen::element<int64_t>(1, 64);
      }
      if (!model.Append(seqs, count) && choice % 2 == 0) model.Close(any());
    }
    model.Check();
  }
  model.CheckRepeats();
  while (!model.open().empty()) {
    model.Close(model.open().begin()->first);
    model.Check();
  }
  RC_ASSERT(UsedBytes(model.cache()) == 0);
}

// Stored once and halved once; each reader is told, with its own length.
TEST(PackedCacheSharedTest, AForkTakesTheRoomOfItsOpenPageAndSharesHalvings) {
  CacheDriver driver(SmallPool(FullBytes(2300), 3, 8));
  PackedKvCache& cache = driver.cache();
  const SequenceId first = *cache.Open();
  ASSERT_EQ(driver.Append(first, 1200, 1), ReserveResult::kReserved);
  const int64_t used = UsedBytes(cache);
  const SequenceId second = *cache.Fork(first);
  EXPECT_EQ(UsedBytes(cache) - used, FullBytes(129) - FullBytes(1)) << "an open page";
  EXPECT_EQ(cache.SequenceStats(second).bytes, used);
  ASSERT_EQ(driver.Append(second, 100, 2), ReserveResult::kReserved);
  const SequenceId other = *cache.Open();
  cache.SetPoolTerms(other, {.min_bits = 16});
  ASSERT_EQ(driver.Append(other, 900, 3), ReserveResult::kReservedAfterHalving);
  int64_t code_bytes = 0;
  std::map<SequenceId, int64_t> halved;
  for (const HalvingEvent& event : cache.TakeHalvingEvents()) {
    EXPECT_EQ(event.num_tokens, cache.NumTokens(event.seq));
    const int64_t num_pages = event.num_k_pages + event.num_v_pages;
    halved[event.seq] += num_pages;
    // All that the first one has are the second one's, which has closed one more.
    if (event.seq == second) code_bytes += num_pages * (FullBytes(129) - FullBytes(1)) / 4;
  }
  for (const SequenceId seq : {first, second}) {
    EXPECT_GT(halved[seq], 0);
    EXPECT_EQ(halved[seq], cache.SequenceStats(seq).pages[1]);
  }
  EXPECT_EQ(cache.StoreStats().pool.narrowed_bytes, code_bytes) << "read once";
  for (int64_t layer = 0; layer < 2; ++layer) {
    const std::vector<PageWidths> of_first = cache.WidthsOfPages(first, layer);
    const std::vector<PageWidths> of_second = cache.WidthsOfPages(second, layer);
    EXPECT_TRUE(std::equal(of_first.begin(), of_first.end() - 1, of_second.begin()));
  }
  // What one does changes nothing for the other.
  const auto values = driver.ReadAll(first);
  cache.Close(second);
  EXPECT_EQ(driver.ReadAll(first), values);
  cache.Close(other);
  cache.Close(first);
  EXPECT_EQ(UsedBytes(cache), 0);
}

TEST(PackedCacheSharedTest, WhatManyReadStaysWideLonger) {
  CacheDriver driver(SmallPool(FullBytes(1400) + 4 * FullBytes(700), 4));
  PackedKvCache& cache = driver.cache();
  std::vector<SequenceId> all = {*cache.Open()};
  ASSERT_EQ(driver.Append(all[0], 1025, 1), ReserveResult::kReserved);
  while (all.size() < 4) all.push_back(*cache.Fork(all[0]));
  const auto halve = [&](int64_t num_tokens) {
    for (uint64_t i = 0; i < 4; ++i) {
      ASSERT_NE(driver.Append(all[i], num_tokens, 10 + i), ReserveResult::kBudgetExhausted);
    }
  };
  std::vector<HalvingEvent> events;
  for (; events.empty(); events = cache.TakeHalvingEvents()) halve(32);
  for (const HalvingEvent& event : events) {
    EXPECT_TRUE(event.num_k_pages == 0 || event.first_k_page >= 8) << "the prompt has 8 pages";
    EXPECT_TRUE(event.num_v_pages == 0 || event.first_v_page >= 8);
  }
  for (const PageWidths& widths : cache.WidthsOfPages(all[0], 1)) EXPECT_GE(widths.k, 8);
  // In the end they go, too.
  for (int i = 0; i < 30; ++i) halve(64);
  EXPECT_LT(cache.WidthsOfPages(all[0], 1)[0].v, 16);
}

TEST(PackedCacheSharedTest, TheHighestFloorOfItsReadersCounts) {
  CacheDriver driver(SmallPool(FullBytes(1500), 3));
  PackedKvCache& cache = driver.cache();
  const SequenceId first = *cache.Open();
  ASSERT_EQ(driver.Append(first, 700, 1), ReserveResult::kReserved);
  const SequenceId second = *cache.Fork(first);
  cache.SetPoolTerms(second, {.min_bits = 8});
  int64_t count = 0;
  while (driver.Append(first, 64, 2) != ReserveResult::kBudgetExhausted) ++count;
  EXPECT_GT(count, 10);
  for (const PageWidths& widths : cache.WidthsOfPages(second, 0)) EXPECT_GE(widths.k, 8);
  const std::vector<PageWidths> of_first = cache.WidthsOfPages(first, 0);
  EXPECT_EQ(of_first[0], (PageWidths{8, 8}));
  EXPECT_EQ(of_first[6], (PageWidths{2, 2})) << "its own";
  // Once the other reader has gone there is room again.
  cache.Close(second);
  ASSERT_NE(driver.Append(first, 64, 2), ReserveResult::kBudgetExhausted);
}

TEST(PackedCacheSharedTest, AReaderWithAChunkUnderWayKeepsSharedPagesAsTheyAre) {
  CacheDriver driver(SmallPool(FullBytes(1500), 3));
  PackedKvCache& cache = driver.cache();
  const SequenceId first = *cache.Open();
  ASSERT_EQ(driver.Append(first, 900, 1), ReserveResult::kReserved);
  const SequenceId waits = *cache.Fork(first);
  ASSERT_EQ(cache.Reserve(waits, 60), ReserveResult::kReserved);
  const SequenceId other = *cache.Open();
  ASSERT_NE(driver.Append(other, 300, 2), ReserveResult::kBudgetExhausted);
  while (driver.Append(other, 60, 2) != ReserveResult::kBudgetExhausted) {
  }
  for (size_t page = 0; page < 6; ++page) {
    EXPECT_EQ(cache.WidthsOfPages(first, 0)[page], PageWidths{});
  }
  driver.Forward({{waits, 60, 3}});
  EXPECT_EQ(driver.Append(other, 60, 2), ReserveResult::kReservedAfterHalving);
  EXPECT_LT(cache.WidthsOfPages(first, 0)[0].v, 16);
}

TEST(PackedCacheSharedTest, NoForkWhereItsOpenPageHasNoRoom) {
  const int64_t bytes = FloorBytes(SmallPool(1 << 20, 2, 8), 700);
  CacheDriver driver(SmallPool(bytes, 2, 8));
  PackedKvCache& cache = driver.cache();
  const SequenceId seq = *cache.Open();
  ASSERT_NE(driver.Append(seq, 700, 1), ReserveResult::kBudgetExhausted);
  const int64_t used = UsedBytes(cache);
  EXPECT_FALSE(cache.Fork(seq).has_value());
  EXPECT_EQ(UsedBytes(cache), used);
}

TEST(PackedCacheSharedTest, WhatFollowsAHistoryIsNotShared) {
  CacheDriver driver(SmallPool(1 << 22, 2));
  const SequenceId seq = *driver.cache().Open();
  driver.cache().FollowHistory(seq, {});
  ASSERT_EQ(driver.Append(seq, 300, 1), ReserveResult::kReserved);
  EXPECT_FALSE(driver.cache().Fork(seq).has_value());
}

}  // namespace
}  // namespace pmkvq
