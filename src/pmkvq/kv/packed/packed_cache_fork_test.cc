// Sequences that share pages: each has the bits and the bytes that it has alone.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <vector>

#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::SmallConfig;

CacheConfig RandomConfig() {
  CacheConfig config;
  config.geometry.blocks.assign(2, BlockOf({1, 4, 2, 16}));
  config.float_type = *rc::gen::element(DType::kF16, DType::kF32);
  config.sink_tokens = *rc::gen::element<int64_t>(0, 1, 70, 128, 300);
  config.window_tokens = *rc::gen::element<int64_t>(128, 256);
  config.max_sequences = 3;
  config.policy = *rc::gen::element(PolicyKind::kLayerBudget, PolicyKind::kOldestFirst);
  config.most_bytes_per_token = *rc::gen::element<int64_t>(8 << 20, 10'000);
  config.k_axis = *rc::gen::element(QuantAxis::kToken, QuantAxis::kChannel);
  for (size_t layer = 0; layer < 2; ++layer) {
    const int64_t lowest = FloorBytes(config, layer, config.sink_tokens + 1);
    const int64_t highest = BlockBytes(config, layer, 900, 16, 16);
    config.budget_bytes.push_back(*rc::gen::inRange<int64_t>(lowest, highest + 1));
  }
  return config;
}

struct Action {
  int64_t append = 0;  // Tokens; 0: truncate.
  double keep = 0;     // Share of the tokens that Truncate keeps.
  uint64_t seed = 0;
};

Action RandomAction(uint64_t seed) {
  if (*rc::gen::inRange(0, 5) == 0) {
    return {0, static_cast<double>(*rc::gen::inRange(0, 101)) / 100.0, seed};
  }
  return {*rc::gen::element<int64_t>(1, 3, 60, 127, 128, 129, 300), 0, seed};
}

// What the sequence shows of itself afterwards.
struct Seen {
  ReserveResult result = ReserveResult::kReserved;
  std::vector<std::vector<float>> outputs;
};

Seen Do(CacheDriver& driver, SequenceId seq, const Action& action) {
  const int64_t n = driver.cache().NumTokens(seq);
  if (action.append == 0) {
    driver.cache().Truncate(seq, static_cast<int64_t>(action.keep * static_cast<double>(n)));
    return {};
  }
  Seen seen;
  seen.result = driver.Append(seq, action.append, action.seed);
  if (seen.result != ReserveResult::kBudgetExhausted) seen.outputs = driver.outputs();
  return seen;
}

void ExpectSame(const CacheDriver& a, SequenceId in_a, const CacheDriver& b, SequenceId in_b) {
  const auto& cache_a = const_cast<CacheDriver&>(a).cache();
  const auto& cache_b = const_cast<CacheDriver&>(b).cache();
  const KvSequenceStats stats_a = cache_a.SequenceStats(in_a);
  const KvSequenceStats stats_b = cache_b.SequenceStats(in_b);
  RC_ASSERT(stats_a.num_tokens == stats_b.num_tokens);
  RC_ASSERT(stats_a.bytes == stats_b.bytes);
  RC_ASSERT(stats_a.peak_bytes == stats_b.peak_bytes);
  RC_ASSERT(stats_a.narrowed_bytes == stats_b.narrowed_bytes);
  RC_ASSERT(stats_a.pages == stats_b.pages);
  RC_ASSERT(a.ReadAll(in_a) == b.ReadAll(in_b));
}

// One cache with forks against one cache for each sequence, without any.
RC_GTEST_PROP(PackedCacheFork, EachSequenceIsAsIfAlone, ()) {
  const CacheConfig config = RandomConfig();
  CacheDriver shared(config);
  std::vector<std::unique_ptr<CacheDriver>> alone;
  std::vector<SequenceId> seqs;                // In `shared`.
  std::vector<std::vector<Action>> histories;  // Of each sequence.
  seqs.push_back(*shared.cache().Open());
  histories.emplace_back();
  alone.push_back(std::make_unique<CacheDriver>(config));
  RC_ASSERT(alone[0]->cache().Open() == 0);
  const int num_actions = *rc::gen::inRange(2, 14);
  for (int i = 0; i < num_actions; ++i) {
    const auto which = *rc::gen::inRange<size_t>(0, seqs.size());
    const int kind = *rc::gen::inRange(0, 10);
    if (kind < 3) {
      const auto fork = shared.cache().Fork(seqs[which]);
      RC_ASSERT(fork.has_value() == (seqs.size() < 3));
      if (!fork) continue;
      seqs.push_back(*fork);
      histories.push_back(histories[which]);
      alone.push_back(std::make_unique<CacheDriver>(config));
      RC_ASSERT(alone.back()->cache().Open() == 0);
      for (const Action& action : histories.back()) Do(*alone.back(), 0, action);
    } else if (kind == 3 && seqs.size() > 1) {
      shared.cache().Close(seqs[which]);
      seqs.erase(seqs.begin() + static_cast<int64_t>(which));
      histories.erase(histories.begin() + static_cast<int64_t>(which));
      alone.erase(alone.begin() + static_cast<int64_t>(which));
    } else {
      const Action action = RandomAction(static_cast<uint64_t>(i) + 1);
      histories[which].push_back(action);
      const Seen found = Do(shared, seqs[which], action);
      const Seen expected = Do(*alone[which], 0, action);
      RC_ASSERT(found.result == expected.result);
      RC_ASSERT(found.outputs == expected.outputs);
    }
    for (size_t s = 0; s < seqs.size(); ++s) ExpectSame(shared, seqs[s], *alone[s], 0);
  }
}

TEST(PackedCacheForkTest, TakesNoMemoryForClosedPages) {
  CacheConfig config = SmallConfig(1000, 16, 16);
  config.max_sequences = 2;
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 1 + 3 * 128, 1), ReserveResult::kReserved);
  const int64_t free_before = driver.cache().num_free_extents();
  const SequenceId fork = *driver.cache().Fork(seq);
  EXPECT_EQ(driver.cache().num_free_extents(), free_before) << "whole pages and a full sink";
  ASSERT_EQ(driver.Append(fork, 1, 2), ReserveResult::kReserved);
  EXPECT_EQ(driver.cache().num_free_extents(), free_before - 4) << "an open page for each side";
  driver.cache().Close(seq);
  driver.cache().Close(fork);
  EXPECT_FALSE(driver.cache().Fork(*driver.cache().Open()) == std::nullopt) << "an empty sequence";
}

}  // namespace
}  // namespace pmkvq
