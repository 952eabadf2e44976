// KvStore::SwapForwards: a Forward that waits between two blocks while others run.
#include <gtest/gtest.h>

#include <vector>

#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::MakeRows;
using testing_support::Rows;
using testing_support::SmallConfig;

std::vector<float> AppendBlock(PackedKvCache& cache, const KvGeometry& geometry, int64_t layer,
                               uint64_t seed, int64_t first, int64_t num_tokens) {
  const Rows rows = MakeRows(geometry, seed, layer, first, num_tokens);
  std::vector<float> out(rows.q.size());
  cache.AppendAndAttend(layer, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
  return out;
}

// Budgets that both sequences outgrow, so that the short Forwards halve pages, which makes the pool
// move slots, while the long one waits.
CacheConfig TightConfig(PolicyKind policy) {
  CacheConfig config = SmallConfig(1400, 4, 4);
  config.max_sequences = 2;
  config.policy = policy;
  return config;
}

class PackedCacheSwapTest : public testing::TestWithParam<PolicyKind> {};

TEST_P(PackedCacheSwapTest, AWaitingForwardHasTheBitsOfOneThatRunsAlone) {
  const CacheConfig config = TightConfig(GetParam());
  constexpr int64_t kChunk = 300;
  constexpr uint64_t kLongSeed = 1;
  constexpr uint64_t kShortSeed = 2;

  CacheDriver alone(config);
  const SequenceId long_alone = *alone.cache().Open();
  const SequenceId short_alone = *alone.cache().Open();
  std::vector<std::vector<float>> expected_long;
  std::vector<std::vector<float>> expected_short;
  for (int round = 0; round < 4; ++round) {
    ASSERT_NE(alone.Append(long_alone, kChunk, kLongSeed), ReserveResult::kBudgetExhausted);
    for (const auto& out : alone.outputs()) expected_long.push_back(out);
    for (int64_t step = 0; step < config.geometry.num_layers(); ++step) {
      ASSERT_NE(alone.Append(short_alone, 130, kShortSeed), ReserveResult::kBudgetExhausted);
      for (const auto& out : alone.outputs()) expected_short.push_back(out);
    }
  }

  CacheDriver mixed(config);
  PackedKvCache& cache = mixed.cache();
  const SequenceId long_seq = *cache.Open();
  const SequenceId short_seq = *cache.Open();
  std::vector<std::vector<float>> found_long;
  std::vector<std::vector<float>> found_short;
  for (int64_t round = 0; round < 4; ++round) {
    const ReserveResult room = cache.Reserve(long_seq, kChunk);
    ASSERT_NE(room, ReserveResult::kBudgetExhausted);
    cache.BeginForward({{long_seq, kChunk}});
    for (int64_t layer = 0; layer < config.geometry.num_layers(); ++layer) {
      found_long.push_back(
          AppendBlock(cache, config.geometry, layer, kLongSeed, round * kChunk, kChunk));
      cache.SwapForwards();
      ASSERT_NE(mixed.Append(short_seq, 130, kShortSeed), ReserveResult::kBudgetExhausted);
      for (const auto& out : mixed.outputs()) found_short.push_back(out);
      cache.SwapForwards();
    }
    cache.EndForward();
  }

  EXPECT_GT(cache.SequenceStats(short_seq).narrowed_bytes, 0);
  EXPECT_GT(cache.SequenceStats(long_seq).narrowed_bytes, 0);
  EXPECT_EQ(found_long, expected_long);
  EXPECT_EQ(found_short, expected_short);
  EXPECT_EQ(mixed.ReadAll(long_seq), alone.ReadAll(long_alone));
}

INSTANTIATE_TEST_SUITE_P(Policies, PackedCacheSwapTest,
                         testing::Values(PolicyKind::kLayerBudget, PolicyKind::kOldestFirst));

TEST(PackedCacheSwapTest, AnAbandonedForwardLeavesTheOtherOneAlone) {
  CacheConfig config = TightConfig(PolicyKind::kLayerBudget);
  CacheDriver driver(config);
  PackedKvCache& cache = driver.cache();
  const SequenceId waiting = *cache.Open();
  const SequenceId failing = *cache.Open();
  ASSERT_EQ(cache.Reserve(waiting, 10), ReserveResult::kReserved);
  cache.BeginForward({{waiting, 10}});
  AppendBlock(cache, config.geometry, 0, 1, 0, 10);
  cache.SwapForwards();
  ASSERT_EQ(cache.Reserve(failing, 1), ReserveResult::kReserved);
  cache.BeginForward({{failing, 1}});
  cache.AbandonForward();
  cache.SwapForwards();
  AppendBlock(cache, config.geometry, 1, 1, 0, 10);
  cache.EndForward();
  EXPECT_EQ(cache.FailureOf(waiting), nullptr);
  EXPECT_NE(cache.FailureOf(failing), nullptr);
  EXPECT_EQ(cache.NumTokens(waiting), 10);
}

TEST(PackedCacheSwapDeathTest, ASequenceOfAWaitingForwardIsNotTouched) {
  CacheConfig config = TightConfig(PolicyKind::kLayerBudget);
  CacheDriver driver(config);
  PackedKvCache& cache = driver.cache();
  const SequenceId seq = *cache.Open();
  ASSERT_EQ(cache.Reserve(seq, 1), ReserveResult::kReserved);
  cache.BeginForward({{seq, 1}});
  cache.SwapForwards();
  EXPECT_DEATH(cache.Close(seq), "");
  EXPECT_DEATH((void)cache.Reserve(seq, 1), "");
}

}  // namespace
}  // namespace pmkvq
