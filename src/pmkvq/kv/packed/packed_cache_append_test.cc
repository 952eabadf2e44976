// Append: storing without attending.
#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::MakeRows;
using testing_support::SmallConfig;

void AppendOnly(CacheDriver& driver, SequenceId seq, int64_t num_tokens, uint64_t seed) {
  PackedKvCache& cache = driver.cache();
  ASSERT_NE(cache.Reserve(seq, num_tokens), ReserveResult::kBudgetExhausted);
  const int64_t position = cache.NumTokens(seq);
  cache.BeginForward({{seq, num_tokens}});
  for (int64_t layer = 0; layer < driver.config().geometry.num_layers(); ++layer) {
    const auto rows = MakeRows(driver.config().geometry, seed, layer, position, num_tokens);
    cache.Append(layer, rows.k.data(), rows.v.data());
  }
  cache.EndForward();
}

// The cache that a token finds is the same, bit for bit, whether those before it were attended to
// or only stored: through closing, halving and rotation.
TEST(AppendTest, StoresWhatAppendAndAttendStores) {
  for (const bool rotate : {false, true}) {
    CacheConfig config = SmallConfig(600, 4, 4);
    config.rotate_keys = rotate;
    config.rotate_values = rotate;
    CacheDriver attended(config);
    CacheDriver stored(config);
    const SequenceId seq = *attended.cache().Open();
    ASSERT_EQ(*stored.cache().Open(), seq);
    for (const int64_t chunk : {1, 100, 171, 300}) {
      ASSERT_NE(attended.Append(seq, chunk, 7), ReserveResult::kBudgetExhausted);
      AppendOnly(stored, seq, chunk, 7);
    }
    EXPECT_EQ(stored.cache().NumTokens(seq), 572);
    EXPECT_EQ(stored.cache().SequenceStats(seq).pages, attended.cache().SequenceStats(seq).pages);
    EXPECT_GT(stored.cache().SequenceStats(seq).pages[WidthIndex(4)], 0);
    EXPECT_EQ(stored.ReadAll(seq), attended.ReadAll(seq));
    ASSERT_EQ(stored.Append(seq, 1, 7), attended.Append(seq, 1, 7));
    EXPECT_EQ(stored.outputs(), attended.outputs());
  }
}

TEST(AppendTest, RefusesWhatTheFloatTypeCannotHold) {
  CacheDriver driver(SmallConfig(100, 16, 16));
  PackedKvCache& cache = driver.cache();
  const SequenceId seq = *cache.Open();
  ASSERT_EQ(cache.Reserve(seq, 1), ReserveResult::kReserved);
  auto rows = MakeRows(driver.config().geometry, 1, 0, 0, 1);
  rows.v[3] = 1e6f;
  cache.BeginForward({{seq, 1}});
  EXPECT_EQ(cache.FailureOf(seq), nullptr);
  cache.Append(0, rows.k.data(), rows.v.data());
  ASSERT_NE(cache.FailureOf(seq), nullptr);
  cache.EndForward();
  EXPECT_EQ(cache.NumTokens(seq), 0);
}

}  // namespace
}  // namespace pmkvq
