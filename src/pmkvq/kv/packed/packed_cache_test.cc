#include "pmkvq/kv/packed/packed_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "pmkvq/base/error.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::KeysAndValues;
using testing_support::SetUniform;
using testing_support::SmallConfig;

struct UniformCase {
  int bits;
  DType float_type;
  int64_t sink_tokens;
  int64_t window_tokens;
};

class UniformCacheTest : public testing::TestWithParam<UniformCase> {};

TEST_P(UniformCacheTest, BytesEqualTheFormulaAtEveryLength) {
  const UniformCase& param = GetParam();
  CacheConfig config = SmallConfig(0, 16, 16);
  config.float_type = param.float_type;
  config.sink_tokens = param.sink_tokens;
  config.window_tokens = param.window_tokens;
  SetUniform(config, param.bits);
  const int64_t max_len = 3 * 128 + param.sink_tokens + 7;
  config.budget_bytes.assign(2, BlockBytes(config, 0, max_len, param.bits, param.bits));
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  for (int64_t n = 1; n <= max_len; ++n) {
    ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReserved);
    ASSERT_EQ(driver.cache().LayerStats(seq, 1).bytes,
              BlockBytes(config, 0, n, param.bits, param.bits))
        << n;
  }
  // One chunk ends in the same state.
  CacheDriver chunked(config);
  const SequenceId other = *chunked.cache().Open();
  ASSERT_EQ(chunked.Append(other, max_len, 1), ReserveResult::kReserved);
  EXPECT_EQ(chunked.cache().SequenceStats(other).bytes, driver.cache().SequenceStats(seq).bytes);
  EXPECT_EQ(chunked.cache().SequenceStats(other).pages, driver.cache().SequenceStats(seq).pages);
  EXPECT_EQ(chunked.ReadAll(other), driver.ReadAll(seq));
  EXPECT_TRUE(driver.cache().TakeHalvingEvents().empty());
}

INSTANTIATE_TEST_SUITE_P(
    Widths, UniformCacheTest,
    testing::Values(UniformCase{16, DType::kF16, 1, 128}, UniformCase{16, DType::kF32, 100, 128},
                    UniformCase{8, DType::kF16, 1, 256}, UniformCase{4, DType::kBF16, 64, 128},
                    UniformCase{2, DType::kF32, 0, 128}, UniformCase{2, DType::kF16, 128, 384},
                    UniformCase{2, DType::kF32, 300, 128}, UniformCase{4, DType::kF16, 1025, 256}));

class FloatTypeTest : public testing::TestWithParam<DType> {};

TEST_P(FloatTypeTest, PmKvqIsFp16BitForBitUntilTheFirstHalving) {
  for (const PolicyKind policy : {PolicyKind::kLayerBudget, PolicyKind::kOldestFirst}) {
    CacheConfig config = SmallConfig(0, 2, 2);
    config.float_type = GetParam();
    config.policy = policy;
    config.budget_bytes.assign(2, BlockBytes(config, 0, 500, 16, 16));
    CacheConfig fp16 = config;
    fp16.budget_bytes.assign(2, BlockBytes(config, 0, 1000, 16, 16));
    SetUniform(fp16, 16);
    CacheDriver a(config);
    CacheDriver b(fp16);
    const SequenceId seq_a = *a.cache().Open();
    const SequenceId seq_b = *b.cache().Open();
    bool halved = false;
    int64_t n = 0;
    for (const int64_t chunk : {37, 1, 1, 150, 1, 200, 60, 100, 1}) {
      halved |= a.Append(seq_a, chunk, 3) == ReserveResult::kReservedAfterHalving;
      ASSERT_EQ(b.Append(seq_b, chunk, 3), ReserveResult::kReserved);
      n += chunk;
      ASSERT_EQ(halved, n > 513) << n;  // What 500 tokens take holds 513: whole pages.
      ASSERT_EQ(a.outputs() == b.outputs(), !halved) << n;
      ASSERT_EQ(a.ReadAll(seq_a) == b.ReadAll(seq_b), !halved) << n;
    }
    EXPECT_TRUE(halved);
  }
}

INSTANTIATE_TEST_SUITE_P(All, FloatTypeTest,
                         testing::Values(DType::kF16, DType::kBF16, DType::kF32),
                         [](const auto& test_info) {
                           return std::string(NameOf(test_info.param));
                         });

TEST(PackedCacheTest, ExhaustedBudgetChangesNothing) {
  for (const PolicyKind policy : {PolicyKind::kLayerBudget, PolicyKind::kOldestFirst}) {
    CacheConfig config = SmallConfig(1 + 5 * 128, 4, 4);
    config.budget_bytes[1] =
        BlockBytes(config, 0, 1 + 4 * 128, 2, 2);  // The second block gives in.
    config.policy = policy;
    CacheDriver driver(config);
    const SequenceId seq = *driver.cache().Open();
    ASSERT_NE(driver.Append(seq, 300, 5), ReserveResult::kBudgetExhausted);
    while (driver.cache().NumTokens(seq) < 1 + 4 * 128) {
      ASSERT_NE(driver.Append(seq, 1, 5), ReserveResult::kBudgetExhausted);
    }
    (void)driver.cache().TakeHalvingEvents();
    const auto values = driver.ReadAll(seq);
    const KvSequenceStats before = driver.cache().SequenceStats(seq);
    for (const int64_t more : {1, 128, 500}) {
      EXPECT_EQ(driver.cache().Reserve(seq, more), ReserveResult::kBudgetExhausted);
    }
    const KvSequenceStats after = driver.cache().SequenceStats(seq);
    EXPECT_EQ(after.bytes, before.bytes);
    EXPECT_EQ(after.peak_bytes, before.peak_bytes);
    EXPECT_EQ(after.pages, before.pages);
    EXPECT_EQ(after.num_tokens, before.num_tokens);
    EXPECT_EQ(driver.ReadAll(seq), values);
    EXPECT_TRUE(driver.cache().TakeHalvingEvents().empty());
  }
}

// Pages of SmallConfig (128 tokens x 2 heads x 16 dims, G = 16, f16) take 8192, 5120, 3072 and 2048
// bytes at 16, 8, 4 and 2 bits.
TEST(PackedCacheTest, OldestFirstHalvesOnlyWhatItMust) {
  // Room for the sink, the open page and 3 closed pages of K and V at 16 bits.
  CacheConfig config = SmallConfig(1 + 4 * 128, 16, 16);
  config.policy = PolicyKind::kOldestFirst;
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 1 + 4 * 128, 1), ReserveResult::kReserved);
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{4, 0, 0, 0}));

  // The fifth page needs 16384 bytes. V and K of the oldest, ... free 3072 each: six steps, all
  // closed pages but the newest one.
  ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReservedAfterHalving);
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{2, 3, 0, 0}));
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).v_pages, (PagesPerWidth{2, 3, 0, 0}));
  std::vector<HalvingEvent> events = driver.cache().TakeHalvingEvents();
  ASSERT_EQ(events.size(), 2u);  // One per block.
  EXPECT_EQ(events[1].seq, seq);
  EXPECT_EQ(events[1].layer, 1);
  EXPECT_EQ(events[1].num_tokens, 1 + 4 * 128);
  EXPECT_EQ(events[1].from_bits, 16);
  EXPECT_EQ(events[1].num_k_pages, 3);
  EXPECT_EQ(events[1].num_v_pages, 3);
  EXPECT_GT(events[1].duration_us, 0);

  // The sixth: 2048 bytes are spare, 14336 to free. The two newest closed pages free 12288, one
  // step 8 -> 4 of the oldest V the rest.
  ASSERT_EQ(driver.Append(seq, 128, 1), ReserveResult::kReservedAfterHalving);
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{1, 5, 0, 0}));
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).v_pages, (PagesPerWidth{1, 4, 1, 0}));
  events = driver.cache().TakeHalvingEvents();
  ASSERT_EQ(events.size(), 4u);
  EXPECT_EQ(events[0].from_bits, 16);
  // The page that fills within the chunk closes at 8 bits at once: it never stood at 16.
  EXPECT_EQ(events[0].num_k_pages + events[0].num_v_pages, 2);
  EXPECT_EQ(events[1].from_bits, 8);
  EXPECT_EQ(events[1].num_k_pages, 0);
  EXPECT_EQ(events[1].num_v_pages, 1);
}

TEST(PackedCacheTest, OldestFirstMayHalveValuesAlone) {
  CacheConfig config = SmallConfig(1 + 4 * 128, 16, 16);
  for (int64_t& budget : config.budget_bytes) budget += 2 * 8192 - 3072;  // One step short.
  config.policy = PolicyKind::kOldestFirst;
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 1 + 4 * 128, 1), ReserveResult::kReserved);
  ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReservedAfterHalving);
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{5, 0, 0, 0}));
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).v_pages, (PagesPerWidth{4, 1, 0, 0}));
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).bytes, config.budget_bytes[0]);
}

TEST(PackedCacheTest, LayerBudgetHalvesAllClosedPagesOfABlockTogether) {
  CacheConfig config = SmallConfig(1 + 8 * 128, 4, 4);
  config.budget_bytes[1] = BlockBytes(config, 0, 1 + 8 * 128, 2, 2);
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  std::vector<int> ladder;
  for (int64_t n = 1; n <= 1 + 8 * 128; ++n) {
    ASSERT_NE(driver.Append(seq, 1, 1), ReserveResult::kBudgetExhausted);
    for (int64_t layer = 0; layer < 2; ++layer) {
      const KvLayerStats stats = driver.cache().LayerStats(seq, layer);
      EXPECT_EQ(stats.k_pages, stats.v_pages);
      const int64_t closed = (n - 2) / 128;  // All at one width; the open page at 16.
      PagesPerWidth pages = stats.k_pages;
      if (n > 1) --pages[0];
      if (closed > 0) {
        EXPECT_EQ(std::count(pages.begin(), pages.end(), closed), 1) << n;
      }
    }
  }
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{1, 0, 7, 0}));
  EXPECT_EQ(driver.cache().LayerStats(seq, 1).k_pages, (PagesPerWidth{1, 0, 0, 7}));
  std::vector<std::pair<int64_t, int>> steps;
  for (const HalvingEvent& event : driver.cache().TakeHalvingEvents()) {
    steps.push_back({event.layer, event.from_bits});
    EXPECT_EQ(event.num_k_pages, event.num_v_pages);
  }
  EXPECT_EQ(steps,
            (std::vector<std::pair<int64_t, int>>{{1, 16}, {0, 16}, {1, 8}, {0, 8}, {1, 4}}));
}

TEST(PackedCacheTest, BothPoliciesEndInTheSameStateAtMaxLen) {
  const int64_t max_len = 1 + 9 * 128;
  for (const auto& [k_bits, v_bits] : {std::pair{4, 4}, {4, 2}, {2, 8}, {16, 2}, {2, 2}}) {
    PagesPerWidth k_pages{};
    PagesPerWidth v_pages{};
    for (const PolicyKind policy : {PolicyKind::kLayerBudget, PolicyKind::kOldestFirst}) {
      CacheConfig config = SmallConfig(max_len, k_bits, v_bits);
      config.policy = policy;
      config.k_bits.assign(2, k_bits);
      config.v_bits.assign(2, v_bits);
      CacheDriver driver(config);
      const SequenceId seq = *driver.cache().Open();
      while (driver.cache().NumTokens(seq) < max_len) {
        const int64_t chunk = std::min<int64_t>(67, max_len - driver.cache().NumTokens(seq));
        ASSERT_NE(driver.Append(seq, chunk, 1), ReserveResult::kBudgetExhausted);
      }
      const KvLayerStats stats = driver.cache().LayerStats(seq, 0);
      k_pages = v_pages = {};
      k_pages[0] = v_pages[0] = 1;
      k_pages[WidthIndex(k_bits)] += 8;
      v_pages[WidthIndex(v_bits)] += 8;
      EXPECT_EQ(stats.k_pages, k_pages) << k_bits << " " << v_bits << NameOf(policy);
      EXPECT_EQ(stats.v_pages, v_pages) << k_bits << " " << v_bits << NameOf(policy);
      EXPECT_EQ(stats.bytes, config.budget_bytes[0]);
    }
  }
}

TEST(PackedCacheTest, TheWindowStaysAtSixteenBits) {
  CacheConfig config = SmallConfig(1, 2, 2);
  config.window_tokens = 3 * 128;
  config.budget_bytes.assign(2, BlockBytes(config, 0, 1 + 7 * 128, 2, 2));
  for (const PolicyKind policy : {PolicyKind::kLayerBudget, PolicyKind::kOldestFirst}) {
    config.policy = policy;
    CacheDriver driver(config);
    const SequenceId seq = *driver.cache().Open();
    while (driver.cache().NumTokens(seq) < 1 + 7 * 128) {
      ASSERT_NE(driver.Append(seq, 64, 1), ReserveResult::kBudgetExhausted);
      if (driver.cache().NumTokens(seq) == 64 * 14) {
        ASSERT_NE(driver.Append(seq, 1, 1), ReserveResult::kBudgetExhausted);
        break;
      }
    }
    EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{3, 0, 0, 4}));
    EXPECT_EQ(driver.cache().Reserve(seq, 1), ReserveResult::kBudgetExhausted);
  }
}

TEST(PackedCacheTest, ChunkedPrefillEqualsOneChunkUpToRounding) {
  CacheConfig config = SmallConfig(0, 16, 16);
  config.float_type = DType::kF32;
  config.budget_bytes.assign(2, BlockBytes(config, 0, 700, 16, 16));
  CacheDriver whole(config);
  const SequenceId seq = *whole.cache().Open();
  ASSERT_EQ(whole.Append(seq, 600, 9), ReserveResult::kReserved);
  CacheDriver parts(config);
  const SequenceId other = *parts.cache().Open();
  for (const int64_t chunk : {1, 40, 128, 200, 31, 200}) {
    ASSERT_EQ(parts.Append(other, chunk, 9), ReserveResult::kReserved);
  }
  EXPECT_EQ(whole.ReadAll(seq), parts.ReadAll(other));
  for (int64_t layer = 0; layer < 2; ++layer) {
    const std::vector<float> a = whole.LastRow(layer);
    const std::vector<float> b = parts.LastRow(layer);
    // 600 terms of magnitude up to 2.5, summed in another order: 600 * 2^-24 * 2.5 at the most.
    for (size_t i = 0; i < a.size(); ++i) EXPECT_NEAR(a[i], b[i], 9e-5);
  }
}

TEST(PackedCacheTest, SequencesOfABatchEqualEachAlone) {
  CacheConfig config = SmallConfig(1 + 5 * 128, 2, 2);
  config.max_sequences = 3;
  config.num_threads = 2;
  CacheDriver together(config);
  const std::vector<int64_t> prompts = {5, 300, 129};
  std::vector<std::vector<float>> batch_rows(3);
  std::vector<SequenceId> ids;
  for (uint64_t i = 0; i < 3; ++i) {
    ids.push_back(*together.cache().Open());
    ASSERT_NE(together.Append(ids[i], prompts[i], i), ReserveResult::kBudgetExhausted);
  }
  const int64_t steps = 300;
  for (int64_t step = 0; step < steps; ++step) {
    std::vector<CacheDriver::Part> parts;
    for (uint64_t i = 0; i < 3; ++i) {
      ASSERT_NE(together.cache().Reserve(ids[i], 1), ReserveResult::kBudgetExhausted);
      parts.push_back({ids[i], 1, i});
    }
    together.Forward(parts);
  }
  config.num_threads = 1;
  for (uint64_t i = 0; i < 3; ++i) {
    CacheDriver alone(config);
    const SequenceId seq = *alone.cache().Open();
    ASSERT_NE(alone.Append(seq, prompts[i], i), ReserveResult::kBudgetExhausted);
    for (int64_t step = 0; step < steps; ++step) {
      ASSERT_NE(alone.Append(seq, 1, i), ReserveResult::kBudgetExhausted);
    }
    EXPECT_EQ(alone.ReadAll(seq), together.ReadAll(ids[i]));
    const auto row = static_cast<ptrdiff_t>(alone.outputs()[1].size());
    const auto& all = together.outputs()[1];
    EXPECT_EQ(alone.outputs()[1],
              std::vector<float>(all.begin() + row * static_cast<ptrdiff_t>(i),
                                 all.begin() + row * static_cast<ptrdiff_t>(i + 1)));
  }
}

// The chunk's output must be attention over the values as they read, plus the chunk itself.
TEST(PackedCacheTest, AttentionReadsWhatIsStored) {
  for (const auto& [float_type, policy] : {std::pair{DType::kF16, PolicyKind::kOldestFirst},
                                           {DType::kF32, PolicyKind::kOldestFirst},
                                           {DType::kF32, PolicyKind::kLayerBudget}}) {
    CacheConfig config = SmallConfig(1, 2, 2);
    config.float_type = float_type;
    config.sink_tokens = 3;
    config.policy = policy;
    if (policy == PolicyKind::kLayerBudget) {  // Keys stay at 16 bits, values go down.
      config.k_bits.assign(2, 16);
      config.v_bits.assign(2, 2);
      config.budget_bytes.assign(2, BlockBytes(config, 0, 3 + 6 * 128, 16, 2));
    } else {
      config.budget_bytes.assign(2, BlockBytes(config, 0, 3 + 6 * 128, 4, 4));
    }
    CacheDriver driver(config);
    const SequenceId seq = *driver.cache().Open();
    const UniformKvGeometry geometry = UniformOf(config.geometry);
    for (const int64_t chunk : {2, 2, 300, 1, 77, 200, 1, 1}) {
      const int64_t n = driver.cache().NumTokens(seq);
      ASSERT_NE(driver.cache().Reserve(seq, chunk), ReserveResult::kBudgetExhausted);
      // Reserve has halved; a second look at the values needs a cache without a reservation.
      driver.cache().Truncate(seq, n);
      const KeysAndValues stored = driver.Read(seq, 1);
      ASSERT_NE(driver.Append(seq, chunk, 4), ReserveResult::kBudgetExhausted);

      std::vector<float> pages[2];  // [Hkv, n, D]
      for (int side = 0; side < 2; ++side) {
        const std::vector<float>& rows = side == 0 ? stored.first : stored.second;
        for (int64_t head = 0; head < geometry.num_kv_heads; ++head) {
          for (int64_t t = 0; t < n; ++t) {
            const auto run = rows.begin() + (t * geometry.num_kv_heads + head) * geometry.head_dim;
            pages[side].insert(pages[side].end(), run, run + geometry.head_dim);
          }
        }
      }
      KvPageView view;
      view.k.data = reinterpret_cast<const std::byte*>(pages[0].data());
      view.v.data = reinterpret_cast<const std::byte*>(pages[1].data());
      const PageTokens tokens{static_cast<int32_t>(n), static_cast<int32_t>(n)};
      AttentionShape shape{geometry.num_heads,
                           geometry.num_kv_heads,
                           geometry.head_dim,
                           geometry.group(),
                           DType::kF32,
                           DType::kF32,
                           0.25f};  // 1 / sqrt(16)
      const testing_support::Rows rows = testing_support::MakeRows(geometry, 4, 1, n, chunk);
      std::vector<float> expected(rows.q.size());
      const AttentionSequence sequence{{&tokens, n > 0 ? 1u : 0u}, chunk, 0};
      const KvPageView* const first_page = &view;
      ref::Attend(shape, {&sequence, 1},
                  {{&first_page, 1}, rows.q.data(), rows.k.data(), rows.v.data(), expected.data()});
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(driver.outputs()[1][i], expected[i], 2e-4) << n << "+" << chunk;
      }
    }
  }
}

// A chunk that fills the open page and closes it at a low width in one go.
TEST(PackedCacheTest, APageThatFillsAndClosesInOneChunkIsRight) {
  CacheConfig config = SmallConfig(1 + 8 * 128, 4, 4);
  config.float_type = DType::kF32;
  for (int64_t& budget : config.budget_bytes) budget = BlockBytes(config, 0, 1 + 8 * 128, 4, 4);
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 60, 2), ReserveResult::kReserved);
  ASSERT_EQ(driver.Append(seq, 900, 2), ReserveResult::kReserved);
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{1, 0, 7, 0}));
  EXPECT_EQ(driver.cache().SequenceStats(seq).peak_bytes, 2 * config.budget_bytes[0]);
  const testing_support::Rows rows = testing_support::MakeRows(config.geometry, 2, 1, 0, 960);
  const KeysAndValues stored = driver.Read(seq, 1);
  for (size_t i = 0; i < rows.k.size(); ++i) {
    const bool is_float = i < 32 || i >= 32 * (1 + 7 * 128);
    // Values lie in [-1.5, 2.5]: half a 4-bit step is at most 4 / 15 / 2.
    const float tolerance = is_float ? 0.0f : 0.134f;
    ASSERT_NEAR(stored.first[i], rows.k[i], tolerance) << i;
    ASSERT_NEAR(stored.second[i], rows.v[i], tolerance) << i;
  }
}

TEST(PackedCacheTest, StraightToTheTargetEqualsClosingThere) {
  // One chunk that closes pages at 4 bits, and static-4: the same codes.
  CacheConfig config = SmallConfig(1 + 8 * 128, 4, 4);
  CacheDriver ladder(config);
  CacheDriver fixed(SetUniform(config, 4));
  const SequenceId a = *ladder.cache().Open();
  const SequenceId b = *fixed.cache().Open();
  ASSERT_EQ(ladder.Append(a, 1000, 2), ReserveResult::kReserved);
  ASSERT_EQ(fixed.Append(b, 300, 2), ReserveResult::kReserved);
  ASSERT_EQ(fixed.Append(b, 700, 2), ReserveResult::kReserved);
  EXPECT_EQ(ladder.ReadAll(a), fixed.ReadAll(b));
}

TEST(PackedCacheTest, ScratchDoesNotGrowWithTheContext) {
  CacheConfig config = SmallConfig(3000, 2, 2);
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  while (driver.cache().NumTokens(seq) < 500) (void)driver.Append(seq, 1, 1);
  const KvStoreStats before = driver.cache().StoreStats();
  while (driver.cache().NumTokens(seq) < 2500) (void)driver.Append(seq, 1, 1);
  const KvStoreStats after = driver.cache().StoreStats();
  EXPECT_GT(before.scratch_bytes, 0u);
  // Attention keeps at most one partial result [H, D + 2] per page (and its vector doubles).
  EXPECT_LE(after.scratch_bytes, before.scratch_bytes + 2 * 16 * 4 * (16 + 2) * sizeof(float));
  EXPECT_EQ(after.arena_bytes, before.arena_bytes);
  EXPECT_LE(after.arena_bytes, static_cast<size_t>(2 * config.budget_bytes[0]) + 6 * 8192);
}

TEST(PackedCacheTest, SequencesAreReused) {
  CacheConfig config = SmallConfig(600, 4, 4);
  config.max_sequences = 2;
  CacheDriver driver(config);
  for (int round = 0; round < 5; ++round) {
    const SequenceId a = *driver.cache().Open();
    const SequenceId b = *driver.cache().Open();
    EXPECT_EQ(a + b, 1);
    EXPECT_FALSE(driver.cache().Open().has_value());
    ASSERT_NE(driver.Append(a, 600, 1), ReserveResult::kBudgetExhausted);
    ASSERT_NE(driver.Append(b, 600, 2), ReserveResult::kBudgetExhausted);
    EXPECT_LE(driver.cache().SequenceStats(a).peak_bytes,
              driver.cache().SequenceStats(a).budget_bytes);
    driver.cache().Close(a);
    driver.cache().Close(b);
  }
}

// ---- Truncate.

TEST(TruncateTest, AtSixteenBitsItIsAsIfTheTailHadNeverBeen) {
  CacheConfig config = SmallConfig(0, 16, 16);
  SetUniform(config, 16);
  config.sink_tokens = 4;
  config.budget_bytes.assign(2, BlockBytes(config, 0, 700, 16, 16));
  for (const int64_t keep : {0, 2, 4, 5, 100, 132, 133, 260, 399, 400}) {
    CacheDriver cut(config);
    const SequenceId a = *cut.cache().Open();
    ASSERT_EQ(cut.Append(a, keep, 1), ReserveResult::kReserved);
    ASSERT_EQ(cut.Append(a, 400 - keep, 2), ReserveResult::kReserved);
    cut.cache().Truncate(a, keep);
    CacheDriver plain(config);
    const SequenceId b = *plain.cache().Open();
    ASSERT_EQ(plain.Append(b, keep, 1), ReserveResult::kReserved);
    EXPECT_EQ(cut.cache().SequenceStats(a).bytes, plain.cache().SequenceStats(b).bytes) << keep;
    EXPECT_EQ(cut.cache().SequenceStats(a).pages, plain.cache().SequenceStats(b).pages) << keep;
    for (const int64_t chunk : {1, 150}) {
      ASSERT_EQ(cut.Append(a, chunk, 1), ReserveResult::kReserved);
      ASSERT_EQ(plain.Append(b, chunk, 1), ReserveResult::kReserved);
      EXPECT_EQ(cut.outputs(), plain.outputs()) << keep;
    }
    EXPECT_EQ(cut.ReadAll(a), plain.ReadAll(b)) << keep;
  }
}

TEST(TruncateTest, ACutQuantisedPageKeepsItsValues) {
  CacheConfig config = SmallConfig(1 + 6 * 128, 2, 2);
  config.float_type = DType::kF32;
  for (const PolicyKind policy : {PolicyKind::kLayerBudget, PolicyKind::kOldestFirst}) {
    config.policy = policy;
    config.budget_bytes.assign(2, BlockBytes(config, 0, 1 + 6 * 128, 2, 2));
    CacheDriver driver(config);
    const SequenceId seq = *driver.cache().Open();
    while (driver.cache().NumTokens(seq) < 700) {
      ASSERT_NE(driver.Append(seq, 50, 1), ReserveResult::kBudgetExhausted);
    }
    for (const int64_t keep : {500, 1 + 3 * 128, 300, 1 + 128, 129 - 50, 1, 0}) {
      KeysAndValues before = driver.Read(seq, 1);
      driver.cache().Truncate(seq, keep);
      EXPECT_LE(driver.cache().SequenceStats(seq).peak_bytes,
                driver.cache().SequenceStats(seq).budget_bytes);
      const auto count = static_cast<size_t>(keep * config.geometry.blocks[0].k().values());
      before.first.resize(count);
      before.second.resize(count);
      EXPECT_EQ(driver.Read(seq, 1), before) << keep;
    }
    EXPECT_EQ(driver.cache().SequenceStats(seq).bytes, 0);
    // The whole ladder can be climbed again, starting at 16 bits.
    ASSERT_EQ(driver.Append(seq, 100, 1), ReserveResult::kReserved);
    EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{1, 0, 0, 0}));
    while (driver.cache().NumTokens(seq) < 700) {
      ASSERT_NE(driver.Append(seq, 50, 1), ReserveResult::kBudgetExhausted);
    }
  }
}

TEST(TruncateTest, DropsAReservation) {
  CacheConfig config = SmallConfig(1 + 8 * 128, 4, 4);
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  // Nothing stored yet: the reservation takes the sink along.
  ASSERT_EQ(driver.cache().Reserve(seq, 5), ReserveResult::kReserved);
  driver.cache().Truncate(seq, 0);
  EXPECT_EQ(driver.cache().SequenceStats(seq).bytes, 0);

  ASSERT_EQ(driver.Append(seq, 60, 2), ReserveResult::kReserved);
  const auto values = driver.ReadAll(seq);
  const int64_t bytes = driver.cache().SequenceStats(seq).bytes;
  ASSERT_EQ(driver.cache().Reserve(seq, 900), ReserveResult::kReserved);  // Moves open rows.
  EXPECT_GT(driver.cache().SequenceStats(seq).bytes, bytes);
  driver.cache().Truncate(seq, 60);
  EXPECT_EQ(driver.cache().SequenceStats(seq).bytes, bytes);
  EXPECT_EQ(driver.ReadAll(seq), values);

  // A second Reserve replaces the first.
  ASSERT_EQ(driver.cache().Reserve(seq, 900), ReserveResult::kReserved);
  ASSERT_EQ(driver.Append(seq, 1, 2), ReserveResult::kReserved);
  EXPECT_EQ(driver.cache().SequenceStats(seq).bytes, bytes);
  EXPECT_EQ(driver.cache().NumTokens(seq), 61);
  ASSERT_EQ(driver.cache().Reserve(seq, 900), ReserveResult::kReserved);
  driver.cache().Close(seq);
}

// ---- Reference accounting (its goldens: tests/golden/cache_golden_test.cc).

}  // namespace
}  // namespace pmkvq
