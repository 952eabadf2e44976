#include "pmkvq/kv/cache_config.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <functional>
#include <numeric>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

CacheConfig Config() {
  CacheConfig config;
  config.geometry = UniformKvGeometry{2, 4, 2, 128};
  config.budget_bytes = {1 << 20, 1 << 20};
  return config;
}

TEST(CacheConfigTest, NamesAreParsed) {
  EXPECT_EQ(ParsePolicyKind("layer-budget"), PolicyKind::kLayerBudget);
  EXPECT_EQ(ParsePolicyKind("oldest-first"), PolicyKind::kOldestFirst);
  EXPECT_THROW(ParsePolicyKind("newest-first"), InvalidInput);
  EXPECT_EQ(ParseKvDtype("f16"), DType::kF16);
  EXPECT_EQ(ParseKvDtype("bf16"), DType::kBF16);
  EXPECT_EQ(ParseKvDtype("f32"), DType::kF32);
  EXPECT_THROW(ParseKvDtype("f64"), InvalidInput);
  EXPECT_EQ(ParseAttentionMode("fast"), AttentionMode::kFast);
  EXPECT_EQ(ParseAttentionMode("accurate"), AttentionMode::kAccurate);
  EXPECT_THROW(ParseAttentionMode("slow"), InvalidInput);
}

TEST(CacheConfigTest, PageBytesCountCodesAndMetadata) {
  const KvStream geometry = StreamOf(2, 128);
  // 128 tokens x 2 heads x 128 dims; one (min, range) pair per token and head.
  EXPECT_EQ(PageBytes(geometry, DType::kF16, 16), 65536);
  EXPECT_EQ(PageBytes(geometry, DType::kF32, 16), 131072);
  EXPECT_EQ(PageBytes(geometry, DType::kF16, 8), 32768 + 1024);
  EXPECT_EQ(PageBytes(geometry, DType::kBF16, 2), 8192 + 1024);
  EXPECT_EQ(PageBytes(geometry, DType::kF32, 2), 8192 + 2048);
  // Two groups per head at head_dim 256.
  EXPECT_EQ(PageMetadataBytes(StreamOf(1, 256), DType::kF16, 4), 1024);
  EXPECT_EQ(PageMetadataBytes(StreamOf(1, 64), DType::kF16, 4), 512);
}

TEST(CacheConfigTest, BlockBytesByHand) {
  CacheConfig config = Config();
  EXPECT_EQ(BlockBytes(config, 0, 0, 4, 4), 0);
  EXPECT_EQ(SinkBytes(config, 0), 1024);
  EXPECT_EQ(BlockBytes(config, 0, 1, 4, 4), 1024);             // The sink alone.
  EXPECT_EQ(BlockBytes(config, 0, 2, 4, 4), 1024 + 131072);    // An open page, whole.
  EXPECT_EQ(BlockBytes(config, 0, 129, 4, 4), 1024 + 131072);  // Full, still open.
  EXPECT_EQ(BlockBytes(config, 0, 130, 4, 2), 1024 + 131072 + (16384 + 1024) + (8192 + 1024));
  config.window_tokens = 256;
  EXPECT_EQ(BlockBytes(config, 0, 130, 4, 2), 1024 + 2 * 131072);
  EXPECT_EQ(BlockBytes(config, 0, 258, 4, 4), 1024 + 2 * 131072 + 2 * (16384 + 1024));
}

RC_GTEST_PROP(CacheConfigProperty, BlockBytesNeverFall, ()) {
  CacheConfig config = Config();
  config.sink_tokens = *rc::gen::inRange<int64_t>(0, 400);
  config.window_tokens = 128 * *rc::gen::inRange<int64_t>(1, 4);
  const int k_bits = *rc::gen::element(16, 8, 4, 2);
  const int v_bits = *rc::gen::element(16, 8, 4, 2);
  int64_t before = 0;
  for (int64_t n = 0; n < 1000; ++n) {
    const int64_t bytes = BlockBytes(config, 0, n, k_bits, v_bits);
    RC_ASSERT(bytes >= before);
    before = bytes;
  }
}

TEST(CacheConfigTest, EffectiveBitsAtTheStatedLength) {
  CacheConfig config = Config();
  // Sink-free, 4,096 tokens: 31 closed pages and a full open one.
  config.sink_tokens = 0;
  const int64_t n = 4096;
  const double two_bit = EffectiveBits(2 * 256, BlockBytes(config, 0, n, 2, 2), n);
  EXPECT_NEAR(two_bit, 2.68, 0.005);
  const double four_bit = EffectiveBits(2 * 256, BlockBytes(config, 0, n, 4, 4), n);
  EXPECT_NEAR(0.75 * two_bit + 0.25 * four_bit, 3.17, 0.02);  // Block-wise 4/2 averaging 2.5.
  const int64_t long_n = 32768;
  EXPECT_NEAR(EffectiveBits(2 * 256, BlockBytes(config, 0, long_n, 2, 2), long_n), 2.25, 0.06);
}

TEST(CacheConfigTest, SmallestBudgetIsWhatTheFloorTakes) {
  const CacheConfig config = Config();
  EXPECT_EQ(SmallestBudget(config, 1000), 2 * BlockBytes(config, 0, 1000, 2, 2));
}

TEST(CacheConfigTest, SplitBudgetIsProportionalAndWhole) {
  EXPECT_EQ(SplitBudget(10, {1, 1, 1}), (std::vector<int64_t>{3, 3, 3}));
  EXPECT_EQ(SplitBudget(100, {3, 1}), (std::vector<int64_t>{75, 25}));
  const int64_t huge = int64_t{1} << 50;
  EXPECT_EQ(SplitBudget(huge, {huge, huge}), (std::vector<int64_t>{huge / 2, huge / 2}));
}

RC_GTEST_PROP(CacheConfigProperty, SplitBudgetNeverPassesTheTotal, ()) {
  const auto weights = *rc::gen::container<std::vector<int64_t>>(
      *rc::gen::inRange<size_t>(1, 40), rc::gen::inRange<int64_t>(1, int64_t{1} << 40));
  const auto total = *rc::gen::inRange<int64_t>(0, int64_t{1} << 40);
  const auto split = SplitBudget(total, weights);
  const int64_t sum = std::accumulate(split.begin(), split.end(), int64_t{0});
  RC_ASSERT(sum <= total);
  RC_ASSERT(sum > total - static_cast<int64_t>(weights.size()));
}

struct BadCase {
  const char* name;
  std::function<void(CacheConfig&)> damage;
  const char* message;  // Must occur in the error.
};

class BadCacheConfigTest : public testing::TestWithParam<BadCase> {};

TEST_P(BadCacheConfigTest, IsRefusedByName) {
  CacheConfig config = Config();
  ValidateCacheConfig(config);
  GetParam().damage(config);
  try {
    ValidateCacheConfig(config);
    FAIL() << "accepted";
  } catch (const InvalidInput& error) {
    EXPECT_NE(std::string(error.what()).find(GetParam().message), std::string::npos)
        << error.what();
  }
}

INSTANTIATE_TEST_SUITE_P(
    All, BadCacheConfigTest,
    testing::Values(
        BadCase{"Layers", [](CacheConfig& c) { c.geometry.blocks.clear(); }, "0 blocks"},
        BadCase{"Heads",
                [](CacheConfig& c) {
                  c.geometry.blocks[1] = BlockOf({1, 4, 3, 128});
                },
                "3 key/value heads"},
        BadCase{"HeadDim12",
                [](CacheConfig& c) {
                  c.geometry.blocks[1] = BlockOf({1, 4, 2, 12});
                },
                "found 12"},
        BadCase{"HeadDim192",
                [](CacheConfig& c) {
                  c.geometry.blocks[1] = BlockOf({1, 4, 2, 192});
                },
                "found 192"},
        BadCase{"HeadDim512",
                [](CacheConfig& c) {
                  c.geometry.blocks[1] = BlockOf({1, 4, 2, 512});
                },
                "found 512"},
        BadCase{"Dtype", [](CacheConfig& c) { c.float_type = DType::kI8; }, "--kv-dtype"},
        BadCase{"Sink", [](CacheConfig& c) { c.sink_tokens = 65537; }, "--n-sink-token"},
        BadCase{"NegativeSink", [](CacheConfig& c) { c.sink_tokens = -1; }, "found -1"},
        BadCase{"Window", [](CacheConfig& c) { c.window_tokens = 200; }, "--n-window-token"},
        BadCase{"NoWindow", [](CacheConfig& c) { c.window_tokens = 0; }, "found 0"},
        BadCase{"Sequences", [](CacheConfig& c) { c.max_sequences = 0; }, "0 sequences"},
        BadCase{"Threads", [](CacheConfig& c) { c.num_threads = 0; }, "0 threads"},
        BadCase{"Floor", [](CacheConfig& c) { c.floor_bits = 3; }, "floor of 3"},
        BadCase{"FloorAboveClose", [](CacheConfig& c) { c.close_bits = 4, c.floor_bits = 8; },
                "close at 4"},
        BadCase{"KBitsSize", [](CacheConfig& c) { c.k_bits = {4}; }, "k_bits: found 1"},
        BadCase{"VBits",
                [](CacheConfig& c) {
                  c.v_bits = {4, 5};
                },
                "v_bits of block 1: found 5"},
        BadCase{"StaticWithoutWidths", [](CacheConfig& c) { c.static_widths = true; },
                "static widths: found none"},
        BadCase{"BudgetCount", [](CacheConfig& c) { c.budget_bytes = {1}; }, "budgets: found 1"},
        BadCase{"BudgetTooSmall", [](CacheConfig& c) { c.budget_bytes[1] = 132095; },
                "at least 132096 (all 2 blocks: 264192 bytes)"},
        BadCase{"BudgetNegative", [](CacheConfig& c) { c.budget_bytes[1] = -5; }, "found -5"},
        BadCase{"BudgetHuge", [](CacheConfig& c) { c.budget_bytes[1] = int64_t{1} << 62; },
                "expected less"}),
    [](const auto& test_info) { return std::string(test_info.param.name); });

}  // namespace
}  // namespace pmkvq
