// A packed cache over blocks of different shapes, one of them without cache, beside caches of one
// block each.
#include <gtest/gtest.h>

#include "support/cache_driver.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::ExpectError;
using testing_support::KeysAndValues;

// 2, 4 and 1 KV heads, a block without cache between them, and a head of another width.
KvGeometry MixedGeometry() {
  KvGeometry geometry;
  for (const int64_t kv_heads : {2, 4}) {
    geometry.blocks.push_back(BlockOf({1, 4, kv_heads, 16}));
  }
  geometry.blocks.push_back({4, {}});
  geometry.blocks.push_back(BlockOf({1, 4, 1, 16}));
  geometry.blocks.push_back(BlockOf({1, 2, 2, 64}));
  return geometry;
}

CacheConfig MixedConfig(PolicyKind policy) {
  CacheConfig config;
  config.geometry = MixedGeometry();
  config.policy = policy;
  config.sink_tokens = 5;
  for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
    config.budget_bytes.push_back(BlockBytes(config, layer, 2000, 2, 2));
  }
  return config;
}

// The block alone: the same budget, the same rows.
CacheConfig OneBlock(const CacheConfig& config, size_t layer) {
  CacheConfig alone = config;
  alone.geometry.blocks = {config.geometry.blocks[layer]};
  alone.budget_bytes = {config.budget_bytes[layer]};
  return alone;
}

class MixedBlocks : public testing::TestWithParam<PolicyKind> {};

// What each block stores, reads and takes is what it is in a cache of that block alone.
TEST_P(MixedBlocks, EachBlockIsAsItIsAlone) {
  const CacheConfig config = MixedConfig(GetParam());
  CacheDriver mixed(config);
  const SequenceId seq = *mixed.cache().Open();
  std::vector<std::unique_ptr<PackedKvCache>> alone;
  for (size_t layer = 0; layer < config.geometry.blocks.size(); ++layer) {
    alone.push_back(nullptr);
    if (!config.geometry.blocks[layer].has_cache()) continue;
    alone.back() = std::make_unique<PackedKvCache>(OneBlock(config, layer));
    ASSERT_EQ(alone.back()->Open(), seq);
  }
  int64_t n = 0;
  bool halved = false;
  for (const int64_t count : {3, 200, 1, 1, 700, 129, 1, 300}) {
    const ReserveResult result = mixed.Append(seq, count, 1);
    ASSERT_NE(result, ReserveResult::kBudgetExhausted);
    halved |= result == ReserveResult::kReservedAfterHalving;
    for (size_t layer = 0; layer < alone.size(); ++layer) {
      if (alone[layer] == nullptr) continue;
      PackedKvCache& cache = *alone[layer];
      const auto rows =
          testing_support::MakeRows(config.geometry, 1, static_cast<int64_t>(layer), n, count);
      ASSERT_NE(cache.Reserve(seq, count), ReserveResult::kBudgetExhausted);
      std::vector<float> out(rows.q.size());
      cache.BeginForward({{seq, count}});
      cache.AppendAndAttend(0, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
      cache.EndForward();
      EXPECT_EQ(mixed.outputs()[layer], out) << "block " << layer << " at " << n;
    }
    n += count;
  }
  EXPECT_TRUE(halved);
  for (size_t layer = 0; layer < alone.size(); ++layer) {
    const KvLayerStats stats = mixed.cache().LayerStats(seq, static_cast<int64_t>(layer));
    if (alone[layer] == nullptr) {
      EXPECT_EQ(stats.bytes, 0);
      EXPECT_EQ(stats.k_pages, PagesPerWidth{});
      continue;
    }
    const KvLayerStats expected = alone[layer]->LayerStats(seq, 0);
    EXPECT_EQ(stats.bytes, expected.bytes);
    EXPECT_EQ(stats.k_pages, expected.k_pages);
    EXPECT_EQ(stats.v_pages, expected.v_pages);
    KeysAndValues values = mixed.Read(seq, static_cast<int64_t>(layer));
    KeysAndValues expected_values = values;
    alone[layer]->ReadTokens(seq, 0, expected_values.first.data(), expected_values.second.data());
    EXPECT_EQ(values, expected_values) << "block " << layer;
  }
}

INSTANTIATE_TEST_SUITE_P(Policies, MixedBlocks,
                         testing::Values(PolicyKind::kLayerBudget, PolicyKind::kOldestFirst));

TEST(MixedBlocksTest, BytesFollowFromEachBlocksShape) {
  const CacheConfig config = MixedConfig(PolicyKind::kLayerBudget);
  EXPECT_EQ(SinkBytes(config, 1), 2 * SinkBytes(config, 0));
  EXPECT_EQ(BlockBytes(config, 1, 2000, 4, 2), 4 * BlockBytes(config, 3, 2000, 4, 2));
  EXPECT_EQ(BlockBytes(config, 2, 2000, 16, 16), 0);
  EXPECT_EQ(config.geometry.values(), 2 * (2 + 4 + 1) * 16 + 2 * 2 * 64);
  EXPECT_EQ(EvenWeights(config), (std::vector<int64_t>{64, 128, 0, 32, 256}));

  // Split by values, the smallest budget just holds what it is for.
  const int64_t smallest = SmallestBudget(config, 1500);
  const auto fits = [&](int64_t total) {
    const std::vector<int64_t> budgets = SplitBudget(total, EvenWeights(config));
    for (size_t layer = 0; layer < budgets.size(); ++layer) {
      if (FloorBytes(config, layer, 1500) > budgets[layer]) return false;
    }
    return true;
  };
  EXPECT_TRUE(fits(smallest));
  EXPECT_FALSE(fits(smallest - 1));
}

TEST(MixedBlocksTest, OtherStreamsThanKeysAndValuesAreRefused) {
  CacheConfig config = MixedConfig(PolicyKind::kLayerBudget);
  config.geometry.blocks[1].streams = {StreamOf(1, 512), StreamOf(1, 64)};
  ExpectError<Unsupported>([&] { PackedKvCache cache(config); },
                           {"kv cache",
                            "block 1: found 4 heads, a stream of 1 x 512, a stream of "
                            "1 x 64",
                            "expected keys and values of one shape"});
  config.geometry.blocks.assign(config.geometry.blocks.size(), {4, {}});
  ExpectError<InvalidInput>([&] { PackedKvCache cache(config); },
                            {"found 5 blocks without a cache"});
}

TEST(MixedBlocksTest, AUniformGeometryIsAskedForByName) {
  EXPECT_EQ(UniformOf(KvGeometry(UniformKvGeometry{3, 4, 2, 64})),
            (UniformKvGeometry{3, 4, 2, 64}));
  ExpectError<Unsupported>([] { UniformOf(MixedGeometry(), "--kv rtn"); },
                           {"--kv rtn", "block 1: found 4 heads, 4 KV heads, head_dim 16",
                            "expected 4 heads, 2 KV heads, head_dim 16"});
  EXPECT_EQ(Describe(MixedGeometry()),
            "block 0: 4 heads, 2 KV heads, head_dim 16; block 1: 4 heads, 4 KV heads, head_dim 16; "
            "block 2: no cache; block 3: 4 heads, 1 KV heads, head_dim 16; "
            "block 4: 2 heads, 2 KV heads, head_dim 64");
}

}  // namespace
}  // namespace pmkvq
