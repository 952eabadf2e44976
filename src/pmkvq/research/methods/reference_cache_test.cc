#include "pmkvq/research/methods/reference_cache.h"

#include <gtest/gtest.h>

#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/research/calib/reference_accounting.h"
#include "support/cache_driver.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::MakeRows;
using testing_support::Rows;

CacheConfig ConfigFor(int64_t max_len, int bits) {
  CacheConfig config;
  config.geometry = UniformKvGeometry{2, 4, 2, 16};
  config.budget_bytes.assign(2,
                             ReferenceBlockBytes(config.geometry.blocks[0], max_len, bits, bits));
  return config;
}

// One Forward of rows that are a function of the position; the outputs of both blocks.
std::vector<float> Append(KvStore& cache, const KvGeometry& geometry, SequenceId seq,
                          int64_t num_tokens) {
  const int64_t first = cache.NumTokens(seq);
  EXPECT_EQ(cache.Reserve(seq, num_tokens), ReserveResult::kReserved);
  cache.BeginForward({{seq, num_tokens}});
  std::vector<float> outputs;
  for (int64_t layer = 0; layer < geometry.num_layers(); ++layer) {
    const Rows rows = MakeRows(geometry, 1, layer, first, num_tokens);
    std::vector<float> out(rows.q.size());
    cache.AppendAndAttend(layer, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    outputs.insert(outputs.end(), out.begin(), out.end());
  }
  cache.EndForward();
  return outputs;
}

// Where the reference would run out of memory, Reserve says so beforehand.
TEST(ReferenceKvCacheTest, EndsWhereTheFloorIsFull) {
  const int64_t max_len = 1024;
  const CacheConfig config = ConfigFor(max_len, 2);
  ReferenceKvCache cache(config);
  const SequenceId seq = *cache.Open();
  int64_t n = 0;
  while (cache.Reserve(seq, 1) != ReserveResult::kBudgetExhausted) {
    Append(cache, config.geometry, seq, 1);
    ++n;
  }
  EXPECT_EQ(cache.NumTokens(seq), n);
  EXPECT_LE(ReferencePayloadBytes(config, 0, n, 2, 2), config.budget_bytes[0]);
  EXPECT_GT(ReferencePayloadBytes(config, 0, n + 1, 2, 2), config.budget_bytes[0]);
  EXPECT_LT(n, max_len);  // Sink and buffer count at 16 bits.
  EXPECT_EQ(cache.LayerStats(seq, 0).k_pages[WidthIndex(2)], (n - 1) / 128);

  // One long prefill overshoots, then halves once per call.
  cache.Truncate(seq, 0);
  cache.TakeHalvingEvents();
  Append(cache, config.geometry, seq, 790);
  EXPECT_EQ(cache.LayerStats(seq, 0).k_pages[WidthIndex(8)], 6);
  const std::vector<HalvingEvent> events = cache.TakeHalvingEvents();
  ASSERT_EQ(events.size(), 2u);
  EXPECT_EQ(events[1].layer, 1);
  EXPECT_EQ(events[1].from_bits, 16);
  EXPECT_EQ(events[1].num_k_pages, 6);
  Append(cache, config.geometry, seq, 1);
  EXPECT_EQ(cache.LayerStats(seq, 0).k_pages[WidthIndex(4)], 6);
}

// While nothing is halved it is a cache of 16 bits.
TEST(ReferenceKvCacheTest, IsThePackedCacheUntilItHalves) {
  const CacheConfig config = ConfigFor(1024, 16);
  ReferenceKvCache cache(config);
  CacheConfig packed_config = config;
  packed_config.budget_bytes.assign(2, BlockBytes(config, 0, 1024, 16, 16));
  PackedKvCache packed(packed_config);
  const SequenceId seq = *cache.Open();
  ASSERT_EQ(packed.Open(), seq);
  for (const int64_t count : {3, 200, 1, 129}) {
    EXPECT_EQ(Append(cache, config.geometry, seq, count),
              Append(packed, config.geometry, seq, count));
  }
  EXPECT_EQ(cache.SequenceStats(seq).bytes, packed.SequenceStats(seq).bytes);
}

TEST(ReferenceKvCacheTest, ACutPageOpensAgain) {
  const CacheConfig config = ConfigFor(2000, 2);
  ReferenceKvCache cache(config);
  const SequenceId seq = *cache.Open();
  for (int i = 0; i < 3; ++i) Append(cache, config.geometry, seq, 180);
  const auto read = [&] {
    std::vector<float> k(static_cast<size_t>(cache.NumTokens(seq) * 32));
    std::vector<float> v(k.size());
    cache.ReadTokens(seq, 1, k.data(), v.data());
    k.insert(k.end(), v.begin(), v.end());
    return k;
  };
  const std::vector<float> before = read();
  ASSERT_EQ(cache.Reserve(seq, 20), ReserveResult::kReserved);
  cache.Truncate(seq, 300);
  EXPECT_EQ(cache.LayerStats(seq, 1).k_pages[WidthIndex(16)], 1);
  const std::vector<float> after = read();
  for (size_t i = 0; i < 300 * 32; ++i) {
    // The page that opens again is rounded to f16; values are below 4.
    ASSERT_NEAR(after[i], before[i], 0.002f);
    ASSERT_NEAR(after[300 * 32 + i], before[540 * 32 + i], 0.002f);
  }
  cache.Truncate(seq, 0);
  EXPECT_EQ(cache.SequenceStats(seq).bytes, 0);
}

TEST(ReferenceKvCacheTest, AValueOrRangeThatDoesNotFitFailsTheSequence) {
  const CacheConfig config = ConfigFor(2000, 2);
  const auto failure_of = [&](float first, float second) {
    ReferenceKvCache cache(config);
    const SequenceId seq = *cache.Open();
    EXPECT_EQ(cache.Reserve(seq, 400), ReserveResult::kReserved);
    cache.BeginForward({{seq, 400}});
    for (int64_t layer = 0; layer < 2; ++layer) {
      Rows rows = MakeRows(config.geometry, 1, layer, 0, 400);
      if (layer == 1) rows.v[140 * 32 + 5] = first;
      if (layer == 1) rows.v[140 * 32 + 6] = second;
      std::vector<float> out(rows.q.size());
      cache.AppendAndAttend(layer, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    }
    cache.EndForward();
    const KvFailure* const failure = cache.FailureOf(seq);
    return failure == nullptr ? std::string() : failure->where + ": " + failure->what;
  };
  EXPECT_EQ(failure_of(1.0f, 2.0f), "");
  EXPECT_NE(failure_of(70000.0f, 0.0f).find("block 1, position 140"), std::string::npos);
  EXPECT_NE(failure_of(40000.0f, -40000.0f).find("the range of a group of values does not fit f16"),
            std::string::npos);
}

TEST(ReferenceKvCacheTest, RefusesWhatTheReferenceDoesNotHave) {
  CacheConfig config = ConfigFor(1024, 2);
  config.policy = PolicyKind::kOldestFirst;
  ExpectError<InvalidInput>([&] { ReferenceKvCache cache(config); },
                            {"--reference-accounting", "--policy oldest-first"});
  config = ConfigFor(1024, 2);
  config.window_tokens = 256;
  ExpectError<InvalidInput>([&] { ReferenceKvCache cache(config); },
                            {"--reference-accounting", "--n-window-token 256"});
  config = ConfigFor(1024, 2);
  config.budget_bytes[1] = 100;  // The sink's token and one more: 2 x 2 x 32 values of 16 bits.
  ExpectError<InvalidInput>([&] { ReferenceKvCache cache(config); },
                            {"--kv-budget", "block 1: found 100 bytes", "at least 256"});
}

}  // namespace
}  // namespace pmkvq
