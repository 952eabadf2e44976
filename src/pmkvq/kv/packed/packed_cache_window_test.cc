// Blocks with a sliding window: results against a scalar oracle, and pages that are given up.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::MakeRows;
using testing_support::Rows;
using testing_support::SetUniform;

constexpr int64_t kWindow = 300;

// Block 0 attends to all, block 1 to a window, block 2 to a short one.
CacheConfig MixedConfig(int64_t num_tokens, int bits) {
  CacheConfig config;
  config.geometry = UniformKvGeometry{3, 4, 2, 16};
  config.geometry.blocks[1].sliding_window = kWindow;
  config.geometry.blocks[2].sliding_window = 5;
  config.float_type = DType::kF32;
  for (size_t layer = 0; layer < 3; ++layer) {
    config.budget_bytes.push_back(BlockBytes(config, layer, num_tokens, bits, bits));
  }
  return config;
}

// out[H, D] of the row at `position`, whose sequence has keys and values k, v [position + 1, Hkv,
// D]. One loop per sum of the definition.
std::vector<double> AttendRow(const KvBlockGeometry& block, const float* q,
                              const std::vector<float>& k, const std::vector<float>& v,
                              int64_t position) {
  const int64_t dim = block.k().width;
  const int64_t kv_heads = block.k().heads;
  std::vector<double> out(static_cast<size_t>(block.num_heads * dim), 0.0);
  for (int64_t head = 0; head < block.num_heads; ++head) {
    double sum = 0.0;
    for (int64_t m = 0; m <= position; ++m) {
      if (block.sliding_window > 0 && m <= position - block.sliding_window) continue;
      const int64_t row = (m * kv_heads + head / (block.num_heads / kv_heads)) * dim;
      double dot = 0.0;
      for (int64_t i = 0; i < dim; ++i) {
        dot += static_cast<double>(q[head * dim + i]) * k[static_cast<size_t>(row + i)];
      }
      const double weight = std::exp(dot / std::sqrt(static_cast<double>(dim)));
      sum += weight;
      for (int64_t i = 0; i < dim; ++i) {
        out[static_cast<size_t>(head * dim + i)] += weight * v[static_cast<size_t>(row + i)];
      }
    }
    for (int64_t i = 0; i < dim; ++i) out[static_cast<size_t>(head * dim + i)] /= sum;
  }
  return out;
}

// The last row of the driver's last Forward, from the values as they were appended.
void ExpectLastRow(const CacheDriver& driver, int64_t num_tokens, uint64_t seed) {
  for (int64_t layer = 0; layer < 3; ++layer) {
    const KvBlockGeometry& block = driver.config().geometry.block(layer);
    const Rows rows = MakeRows(driver.config().geometry, seed, layer, 0, num_tokens);
    const float* q = rows.q.data() + (num_tokens - 1) * block.q_values();
    const std::vector<double> expected = AttendRow(block, q, rows.k, rows.v, num_tokens - 1);
    const std::vector<float> found = driver.LastRow(layer);
    for (size_t i = 0; i < found.size(); ++i) {
      ASSERT_NEAR(found[i], expected[i], 2e-5) << "block " << layer << ", length " << num_tokens;
    }
  }
}

TEST(PackedCacheWindow, PrefillDecodeAndChunksAreThoseOfTheOracle) {
  for (const int64_t chunk : {1, 4, 64, 128, 200, 512}) {
    CacheConfig config = MixedConfig(1500, 16);
    SetUniform(config, 16);
    CacheDriver driver(config);
    const SequenceId seq = *driver.cache().Open();
    for (int64_t n = 0; n < 1024; n += chunk) {
      ASSERT_EQ(driver.Append(seq, chunk, 3), ReserveResult::kReserved);
      if (chunk == 1 && n % 37 != 0) continue;
      ASSERT_NO_FATAL_FAILURE(ExpectLastRow(driver, n + chunk, 3)) << chunk;
    }
    for (int i = 0; i < 3; ++i) {
      ASSERT_EQ(driver.Append(seq, 1, 3), ReserveResult::kReserved);
      ASSERT_NO_FATAL_FAILURE(ExpectLastRow(driver, driver.cache().NumTokens(seq), 3)) << chunk;
    }
  }
}

int64_t NumPagesOfStats(const KvLayerStats& stats) {
  return std::accumulate(stats.k_pages.begin(), stats.k_pages.end(), int64_t{0});
}

// However long the sequence: a windowed block keeps the pages of its window, and no more bytes than
// are counted for it.
TEST(PackedCacheWindow, PagesThatNoTokenCanReachAreFreed) {
  CacheConfig config = MixedConfig(4000, 16);
  SetUniform(config, 16);
  config.chunk_tokens = 1;
  EXPECT_EQ(MostPages(config, 0, 4000), NumPages(config, 4000));
  EXPECT_EQ(MostPages(config, 1, 4000), 4);  // 300 tokens over at most 4 pages.
  EXPECT_EQ(MostPages(config, 2, 4000), 2);
  for (size_t layer = 0; layer < 3; ++layer) {
    config.budget_bytes[layer] = BlockBytes(config, layer, 4000, 16, 16);
  }
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  int64_t most[3] = {};
  for (int64_t n = 1; n <= 1500; ++n) {
    ASSERT_EQ(driver.Append(seq, 1, 3), ReserveResult::kReserved) << n;
    for (int64_t layer = 0; layer < 3; ++layer) {
      const KvLayerStats stats = driver.cache().LayerStats(seq, layer);
      const auto index = static_cast<size_t>(layer);
      ASSERT_LE(stats.bytes, BlockBytes(config, index, n, 16, 16));
      most[index] = std::max(most[index], NumPagesOfStats(stats));
    }
  }
  EXPECT_EQ(most[0], 12);
  EXPECT_EQ(most[1], 4);
  EXPECT_EQ(most[2], 2);
  ASSERT_NO_FATAL_FAILURE(ExpectLastRow(driver, 1500, 3));
}

// Pages are halved, and then freed. Each token attends to what is stored.
TEST(PackedCacheWindow, HalvedPagesAreAttendedAndFreed) {
  for (const PolicyKind policy : {PolicyKind::kLayerBudget, PolicyKind::kOldestFirst}) {
    for (const int64_t chunk : {1, 90}) {
      CacheConfig config = MixedConfig(1500, 4);
      config.policy = policy;
      config.most_bytes_per_token = 20'000;
      CacheDriver driver(config);
      const SequenceId seq = *driver.cache().Open();
      bool has_halved = false;
      int num_compared = 0;
      while (driver.cache().NumTokens(seq) < 1300) {
        const int64_t before = driver.cache().NumTokens(seq);
        ASSERT_NE(driver.cache().Reserve(seq, chunk), ReserveResult::kBudgetExhausted);
        driver.Forward({{seq, chunk, 3}});
        has_halved |= driver.cache().LayerStats(seq, 1).k_pages[0] <
                      NumPagesOfStats(driver.cache().LayerStats(seq, 1));
        if (before % 5 != 0) continue;
        // One more token against what is stored now.
        const std::vector<testing_support::KeysAndValues> stored = driver.ReadAll(seq);
        const int64_t n = driver.cache().NumTokens(seq);
        const int64_t bytes = driver.cache().SequenceStats(seq).bytes;
        ASSERT_NE(driver.cache().Reserve(seq, 1), ReserveResult::kBudgetExhausted);
        if (driver.cache().SequenceStats(seq).bytes != bytes) {  // Halved, or freed.
          driver.cache().Truncate(seq, n);
          continue;
        }
        ++num_compared;
        driver.Forward({{seq, 1, 3}});
        for (int64_t layer = 0; layer < 3; ++layer) {
          const KvBlockGeometry& block = config.geometry.block(layer);
          const Rows rows = MakeRows(config.geometry, 3, layer, n, 1);
          std::vector<float> k = stored[static_cast<size_t>(layer)].first;
          std::vector<float> v = stored[static_cast<size_t>(layer)].second;
          k.insert(k.end(), rows.k.begin(), rows.k.end());
          v.insert(v.end(), rows.v.begin(), rows.v.end());
          const std::vector<double> expected = AttendRow(block, rows.q.data(), k, v, n);
          const std::vector<float> found = driver.LastRow(layer);
          for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 5e-5);
        }
      }
      EXPECT_TRUE(has_halved);
      EXPECT_GT(num_compared, 0);
    }
  }
}

TEST(PackedCacheWindow, OneByOneGivesTheBitsOfDecoding) {
  CacheConfig config = MixedConfig(1500, 4);
  config.max_sequences = 2;
  CacheDriver decoded(config);
  CacheDriver replayed(config);
  const SequenceId a = *decoded.cache().Open();
  const SequenceId b = *replayed.cache().Open();
  while (replayed.cache().NumTokens(b) < 900) {
    const int64_t count = replayed.cache().ReserveOneByOne(b, 100);
    ASSERT_GT(count, 0);
    replayed.Forward({{b, count, 3, true}});
    for (int64_t i = 0; i < count; ++i) {
      ASSERT_NE(decoded.Append(a, 1, 3), ReserveResult::kBudgetExhausted);
    }
    for (int64_t layer = 0; layer < 3; ++layer) {
      ASSERT_EQ(replayed.LastRow(layer), decoded.LastRow(layer));
    }
  }
  EXPECT_EQ(replayed.ReadAll(b), decoded.ReadAll(a));
}

TEST(PackedCacheWindow, TruncatesAsFarAsPagesAreThere) {
  CacheConfig config = MixedConfig(1500, 16);
  SetUniform(config, 16);
  config.geometry.blocks[2].sliding_window = 0;
  config.budget_bytes[2] = config.budget_bytes[0];
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  for (int i = 0; i < 9; ++i) ASSERT_EQ(driver.Append(seq, 100, 3), ReserveResult::kReserved);
  const int64_t first = FirstSeenPage(config, 1, 800);  // The last page was opened there at latest.
  ASSERT_GT(first, 0);
  int64_t shortest = 900;
  while (driver.cache().LongestTruncation(seq, shortest - 1) > 0) --shortest;
  EXPECT_GT(shortest, 900 - 128 - 100);
  EXPECT_LT(shortest, 900);
  EXPECT_EQ(driver.cache().LongestTruncation(seq, 10), 0);
  EXPECT_EQ(driver.cache().LongestTruncation(seq, 0), 0);

  driver.cache().Truncate(seq, shortest);
  for (int i = 0; i < 4; ++i) {
    ASSERT_EQ(driver.Append(seq, 50, 3), ReserveResult::kReserved);
    ASSERT_NO_FATAL_FAILURE(ExpectLastRow(driver, shortest + 50 * (i + 1), 3));
  }
  driver.cache().Truncate(seq, 0);
  EXPECT_EQ(driver.cache().SequenceStats(seq).bytes, 0);
  ASSERT_EQ(driver.Append(seq, 500, 8), ReserveResult::kReserved);
  ASSERT_NO_FATAL_FAILURE(ExpectLastRow(driver, 500, 8));
}

TEST(PackedCacheWindowDeathTest, TruncatingToFreedPagesIsACallersBug) {
  CacheConfig config = MixedConfig(1500, 16);
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  for (int i = 0; i < 9; ++i) (void)driver.Append(seq, 100, 3);
  EXPECT_DEATH(driver.cache().Truncate(seq, 100), "LongestTruncation");
}

TEST(PackedCacheWindow, ForksGoOnAsTheOriginal) {
  CacheConfig config = MixedConfig(1500, 4);
  config.max_sequences = 3;
  CacheDriver driver(config);
  const SequenceId a = *driver.cache().Open();
  for (int i = 0; i < 7; ++i) ASSERT_NE(driver.Append(a, 100, 3), ReserveResult::kBudgetExhausted);
  const SequenceId b = driver.cache().Fork(a).value();
  EXPECT_EQ(driver.cache().SequenceStats(b).bytes, driver.cache().SequenceStats(a).bytes);
  EXPECT_EQ(driver.ReadAll(b), driver.ReadAll(a));
  for (int i = 0; i < 500; ++i) {
    ASSERT_NE(driver.Append(a, 1, 3), ReserveResult::kBudgetExhausted);
    const std::vector<std::vector<float>> outputs = driver.outputs();
    ASSERT_NE(driver.Append(b, 1, 3), ReserveResult::kBudgetExhausted);
    ASSERT_EQ(driver.outputs(), outputs) << i;
  }
  EXPECT_EQ(driver.ReadAll(b), driver.ReadAll(a));
  const int64_t free_before = driver.cache().num_free_extents();
  driver.cache().Close(a);
  driver.cache().Close(b);
  EXPECT_GT(driver.cache().num_free_extents(), free_before);
}

// A budget for the whole model is split by what blocks can use: twice the length, and the blocks
// with windows get no more.
TEST(PackedCacheWindow, BudgetsGoWhereTokensAre) {
  CacheConfig config = MixedConfig(100, 16);
  config.max_len = 100'000;
  const std::vector<int64_t> weights = EvenWeights(config);
  EXPECT_GT(weights[0], 50 * weights[1]);
  const std::vector<int64_t> budgets = SplitBudget(SmallestBudget(config, 100'000), weights);
  for (size_t layer = 0; layer < 3; ++layer) {
    EXPECT_GE(budgets[layer], FloorBytes(config, layer, 100'000)) << layer;
  }
}

}  // namespace
}  // namespace pmkvq
