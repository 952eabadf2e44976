// What pm-kvq can do beside the paper: large sinks, static widths, keys per channel, rotated keys
// and values.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/linalg/hadamard.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::KeysAndValues;
using testing_support::SetUniform;
using testing_support::SmallConfig;

// A sink of several pieces: never quantised, and attended like any other token.
TEST(LargeSinkTest, StaysExactWhileTheRestIsQuantised) {
  for (const int64_t sink_tokens : {127, 128, 129, 300, 1024}) {
    CacheConfig config = SmallConfig(0, 16, 16);
    config.float_type = DType::kF32;
    config.sink_tokens = sink_tokens;
    SetUniform(config, 2);
    const int64_t n = sink_tokens + 130;
    config.budget_bytes.assign(2, BlockBytes(config, 0, n, 2, 2));
    CacheDriver driver(config);
    const SequenceId seq = *driver.cache().Open();
    // Chunks that end inside of a piece, at its end, and reach over several.
    for (int64_t done = 0; done < n;) {
      const int64_t chunk = std::min<int64_t>(done == 0 ? 100 : 171, n - done);
      ASSERT_EQ(driver.Append(seq, chunk, 1), ReserveResult::kReserved);
      done += chunk;
    }
    const auto rows = testing_support::MakeRows(config.geometry, 1, 0, 0, n);
    const KeysAndValues stored = driver.Read(seq, 0);
    const auto end_of_sink =
        static_cast<size_t>(sink_tokens * config.geometry.blocks[0].k().values());
    for (size_t i = 0; i < end_of_sink; ++i) {
      ASSERT_EQ(stored.first[i], rows.k[i]);
      ASSERT_EQ(stored.second[i], rows.v[i]);
    }
    EXPECT_NE(stored.first[end_of_sink], rows.k[end_of_sink]) << "the closed page is quantised";

    // The next token attends to all of it as one query over the values that are stored.
    driver.cache().Truncate(seq, sink_tokens - 1);
    ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReserved);
    CacheConfig plain = config;
    plain.sink_tokens = 0;
    SetUniform(plain, 16);
    plain.budget_bytes.assign(2, BlockBytes(plain, 0, n, 16, 16));
    CacheDriver expected(plain);
    const SequenceId other = *expected.cache().Open();
    ASSERT_EQ(expected.Append(other, sink_tokens - 1, 1), ReserveResult::kReserved);
    ASSERT_EQ(expected.Append(other, 1, 1), ReserveResult::kReserved);
    // Sink pieces and pages are cut at the same tokens, so every sum is the same.
    EXPECT_EQ(driver.LastRow(1), expected.LastRow(1)) << sink_tokens;
  }
}

// Static widths close pages at once at each block's own, and never go below.
TEST(StaticWidthsTest, EachBlockStandsAtItsOwn) {
  CacheConfig config = SmallConfig(0, 16, 16);
  config.k_bits = {4, 8};
  config.v_bits = {2, 16};
  config.static_widths = true;
  const int64_t n = 3 * 128 + 1;
  config.budget_bytes = {BlockBytes(config, 0, n, 4, 2), BlockBytes(config, 0, n, 8, 16)};
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, n, 1), ReserveResult::kReserved);
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{1, 0, 2, 0}));
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).v_pages, (PagesPerWidth{1, 0, 0, 2}));
  EXPECT_EQ(driver.cache().LayerStats(seq, 1).k_pages, (PagesPerWidth{1, 2, 0, 0}));
  EXPECT_EQ(driver.cache().LayerStats(seq, 1).v_pages, (PagesPerWidth{3, 0, 0, 0}));
  EXPECT_TRUE(driver.cache().TakeHalvingEvents().empty());
  EXPECT_EQ(driver.Append(seq, 1, 1), ReserveResult::kBudgetExhausted);
  EXPECT_EQ(SmallestBudget(config, n), 2 * BlockBytes(config, 0, n, 8, 16)) << "when split evenly";
}

TEST(StaticWidthsTest, EqualWidthsAreTheUniformCache) {
  CacheConfig config = SmallConfig(500, 4, 4);
  config.k_bits = config.v_bits = {4, 4};
  config.static_widths = true;
  CacheDriver by_plan(config);
  CacheDriver uniform(SetUniform(config = SmallConfig(500, 4, 4), 4));
  const SequenceId seq = *by_plan.cache().Open();
  const SequenceId other = *uniform.cache().Open();
  for (const int64_t chunk : {200, 1, 299}) {
    ASSERT_EQ(by_plan.Append(seq, chunk, 1), ReserveResult::kReserved);
    ASSERT_EQ(uniform.Append(other, chunk, 1), ReserveResult::kReserved);
    EXPECT_EQ(by_plan.outputs(), uniform.outputs());
  }
  EXPECT_EQ(by_plan.ReadAll(seq), uniform.ReadAll(other));
}

// The largest error of outputs and of values read back, against the plain cache of the same pages.
float LargestDifference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0.0f;
  for (size_t i = 0; i < a.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return a.size() == b.size() ? largest : INFINITY;
}

CacheConfig ChannelConfig(int64_t num_tokens, int k_bits, int v_bits) {
  CacheConfig config = SmallConfig(0, 16, 16);
  config.k_axis = QuantAxis::kChannel;
  config.float_type = DType::kF32;
  config.sink_tokens = 0;
  config.budget_bytes.assign(2, BlockBytes(config, 0, num_tokens, k_bits, v_bits));
  return config;
}

// Keys of tokens 0 .. 127 of block 0 as they read after quantising each channel at `bits`.
std::vector<float> QuantisedPerChannel(const CacheConfig& config, int bits) {
  const UniformKvGeometry geometry = UniformOf(config.geometry);
  const auto kv_dim = static_cast<size_t>(geometry.kv_dim());
  std::vector<float> values = testing_support::MakeRows(geometry, 1, 0, 0, 128).k;
  for (size_t channel = 0; channel < kv_dim; ++channel) {
    float x[128];
    uint8_t codes[128];
    float min, range;
    for (size_t t = 0; t < 128; ++t) x[t] = values[t * kv_dim + channel];
    // Straight to 8 bits, and halved from there.
    ref::QuantizeGroups({128, 8, DType::kF32}, x, 1, codes, &min, &range);
    for (int from = 8; from > bits; from /= 2) ref::HalvePackedCodes(128, from, codes, 1, codes);
    ref::DequantizeGroups({128, bits, DType::kF32}, codes, &min, &range, 1, x);
    for (size_t t = 0; t < 128; ++t) values[t * kv_dim + channel] = x[t];
  }
  return values;
}

TEST(KeysPerChannelTest, BytesByHand) {
  const CacheConfig config = ChannelConfig(129, 4, 4);  // 2 heads x 16 dims, f32
  EXPECT_EQ(PageMetadataBytes(config.geometry.blocks[0].k(), DType::kF32, 4, QuantAxis::kChannel),
            2 * 32 * 4);
  EXPECT_EQ(PageMetadataBytes(config.geometry.blocks[0].k(), DType::kF32, 4), 2 * 2 * 128 * 4);
  // Open pages, codes of K and V, metadata of K by channel and of V by token.
  EXPECT_EQ(config.budget_bytes[0], 2 * 128 * 32 * 4 + 2 * 128 * 32 / 2 + 256 + 2048);
  // At D = 128 both axes take the same.
  EXPECT_EQ(PageMetadataBytes(StreamOf(2, 128), DType::kF16, 4, QuantAxis::kChannel),
            PageMetadataBytes(StreamOf(2, 128), DType::kF16, 4));
}

// A page that closes within the chunk, one that steps down with the others, and one cut open again.
TEST(KeysPerChannelTest, PagesAreQuantisedAndHalvedByChannel) {
  CacheConfig config = ChannelConfig(300, 8, 8);
  config.close_bits = 8;
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 60, 1), ReserveResult::kReserved);
  ASSERT_EQ(driver.Append(seq, 69, 1), ReserveResult::kReserved);
  const auto first_page = [&] {
    std::vector<float> k = driver.Read(seq, 0).first;
    k.resize(static_cast<size_t>(128 * config.geometry.blocks[0].k().values()));
    return k;
  };
  EXPECT_EQ(first_page(), QuantisedPerChannel(config, 8));
  ASSERT_EQ(driver.Append(seq, 271, 1), ReserveResult::kReservedAfterHalving);
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{1, 0, 3, 0}));
  EXPECT_EQ(first_page(), QuantisedPerChannel(config, 4));

  driver.cache().Truncate(seq, 128);  // The page stays closed: nothing of it is cut.
  driver.cache().Truncate(seq, 100);
  EXPECT_EQ(driver.cache().LayerStats(seq, 0).k_pages, (PagesPerWidth{1, 0, 0, 0}));
  std::vector<float> expected = QuantisedPerChannel(config, 4);
  expected.resize(static_cast<size_t>(100 * config.geometry.blocks[0].k().values()));
  EXPECT_EQ(driver.Read(seq, 0).first, expected);
  ASSERT_NE(driver.Append(seq, 200, 1), ReserveResult::kBudgetExhausted);
}

TEST(KeysPerChannelTest, TwoBitsByOneStepFromFloats) {
  CacheConfig config = ChannelConfig(200, 2, 2);
  SetUniform(config, 2);
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 129, 1), ReserveResult::kReserved);
  std::vector<float> k = driver.Read(seq, 0).first;
  const auto rows = testing_support::MakeRows(config.geometry, 1, 0, 0, 128).k;
  const auto kv_dim = static_cast<size_t>(config.geometry.blocks[0].k().values());
  for (size_t channel = 0; channel < kv_dim; ++channel) {
    float x[128];
    uint8_t codes[32];
    float min, range;
    for (size_t t = 0; t < 128; ++t) x[t] = rows[t * kv_dim + channel];
    ref::QuantizeGroups({128, 2, DType::kF32}, x, 1, codes, &min, &range);
    ref::DequantizeGroups({128, 2, DType::kF32}, codes, &min, &range, 1, x);
    for (size_t t = 0; t < 128; ++t) ASSERT_EQ(k[t * kv_dim + channel], x[t]);
  }
}

// Every option together: what attention sees is what ReadTokens says, by the oracle.
TEST(OptionsTogetherTest, AttentionSeesWhatIsRead) {
  for (const bool by_channel : {false, true}) {
    for (const bool rotate : {false, true}) {
      for (const int64_t num_new : {1, 6}) {  // Decode and prefill.
        CacheConfig config = ChannelConfig(0, 16, 16);
        config.k_axis = by_channel ? QuantAxis::kChannel : QuantAxis::kToken;
        config.rotate_keys = config.rotate_values = rotate;
        config.sink_tokens = 150;
        config.window_tokens = 256;
        config.policy = PolicyKind::kOldestFirst;
        config.budget_bytes.assign(2, BlockBytes(config, 0, 1000, 4, 2));
        CacheDriver driver(config);
        const SequenceId seq = *driver.cache().Open();
        ASSERT_NE(driver.Append(seq, 1000, 1), ReserveResult::kBudgetExhausted);
        const KeysAndValues stored = driver.Read(seq, 1);
        ASSERT_EQ(driver.Append(seq, num_new, 1), ReserveResult::kReserved);

        const UniformKvGeometry geometry = UniformOf(config.geometry);
        const auto gather = [&](const std::vector<float>& x) {  // [T, Hkv, D] to [Hkv, T, D]
          std::vector<float> page;
          for (int64_t head = 0; head < geometry.num_kv_heads; ++head) {
            for (int64_t t = 0; t < 1000; ++t) {
              const float* row = x.data() + (t * geometry.num_kv_heads + head) * geometry.head_dim;
              page.insert(page.end(), row, row + geometry.head_dim);
            }
          }
          return page;
        };
        const std::vector<float> k = gather(stored.first);
        const std::vector<float> v = gather(stored.second);
        KvPageView page;
        page.k.data = reinterpret_cast<const std::byte*>(k.data());
        page.v.data = reinterpret_cast<const std::byte*>(v.data());
        const auto rows = testing_support::MakeRows(geometry, 1, 1, 1000, num_new);
        std::vector<float> expected(rows.q.size());
        AttentionShape shape{geometry.num_heads, geometry.num_kv_heads, geometry.head_dim,
                             geometry.group()};
        shape.float_type = DType::kF32;
        shape.scale = 0.25f;
        const PageTokens tokens{1000, 1000};
        const AttentionSequence sequence{{&tokens, 1}, num_new, 0};
        const KvPageView* const pages = &page;
        ref::Attend(shape, {&sequence, 1},
                    {{&pages, 1}, rows.q.data(), rows.k.data(), rows.v.data(), expected.data()});
        // Some 2^-24 of scores of up to 25 and values of up to 10 (rotated), a thousand tokens.
        EXPECT_LE(LargestDifference(driver.outputs()[1], expected), 1e-4f)
            << by_channel << rotate << num_new;
      }
    }
  }
}

// Keys per channel of 4 bits: the fast mode is in effect, and moves outputs by little. Weights q x
// step of 16 channels move by at most 1 / 65534 of the largest each, so with |q| <= 4, range <= 8
// and codes that are at most a range, a score by scale 16 (4 x 8) / 65534 = 2e-3; values span 4.
TEST(FastAttentionTest, MovesOutputsByLittle) {
  CacheConfig config = ChannelConfig(300, 4, 4);
  std::vector<float> outputs[2];
  for (const AttentionMode mode : {AttentionMode::kAccurate, AttentionMode::kFast}) {
    config.attention = mode;
    CacheDriver driver(config);
    const SequenceId seq = *driver.cache().Open();
    ASSERT_EQ(driver.Append(seq, 299, 1), ReserveResult::kReserved);
    ASSERT_EQ(driver.Append(seq, 1, 1), ReserveResult::kReserved);
    outputs[mode == AttentionMode::kFast ? 1 : 0] = driver.outputs()[1];
  }
  EXPECT_NE(outputs[0], outputs[1]);
  EXPECT_LE(LargestDifference(outputs[0], outputs[1]), 2 * 2e-3f * 4);
}

struct RotationCase {
  bool keys;
  bool values;
};

class RotationTest : public testing::TestWithParam<RotationCase> {};

// Unquantised, a rotation is invisible but for rounding: log2(D) + 1 roundings of float on the way
// in and as many on the way out, at most 2^-24 of 4 each (values span -1.5 to 2.5); softmax weights
// move by as little.
TEST_P(RotationTest, ChangesNothingButRoundingAt16Bits) {
  CacheConfig config = SmallConfig(500, 16, 16);
  config.float_type = DType::kF32;
  SetUniform(config, 16);
  config.budget_bytes.assign(2, BlockBytes(config, 0, 500, 16, 16));
  CacheDriver plain(config);
  config.rotate_keys = GetParam().keys;
  config.rotate_values = GetParam().values;
  CacheDriver rotated(config);
  const SequenceId seq = *plain.cache().Open();
  const SequenceId other = *rotated.cache().Open();
  for (const int64_t chunk : {150, 1, 3, 200, 1}) {
    ASSERT_EQ(plain.Append(seq, chunk, 1), ReserveResult::kReserved);
    ASSERT_EQ(rotated.Append(other, chunk, 1), ReserveResult::kReserved);
    for (size_t layer = 0; layer < 2; ++layer) {
      EXPECT_LE(LargestDifference(plain.outputs()[layer], rotated.outputs()[layer]), 2e-5f);
    }
  }
  EXPECT_LE(LargestDifference(plain.Read(seq, 1).first, rotated.Read(other, 1).first), 3e-6f);
  EXPECT_LE(LargestDifference(plain.Read(seq, 1).second, rotated.Read(other, 1).second), 3e-6f);
}

// What is quantised are the rotated rows: codes of H x, read back as H of what they say.
TEST_P(RotationTest, QuantisesTheRotatedValues) {
  CacheConfig config = SmallConfig(0, 16, 16);
  config.float_type = DType::kF32;
  config.sink_tokens = 0;
  config.rotate_keys = GetParam().keys;
  config.rotate_values = GetParam().values;
  SetUniform(config, 4);
  config.budget_bytes.assign(2, BlockBytes(config, 0, 129, 4, 4));
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 129, 1), ReserveResult::kReserved);
  const KeysAndValues stored = driver.Read(seq, 0);
  const testing_support::Rows rows = testing_support::MakeRows(config.geometry, 1, 0, 0, 128);
  const auto expect = [&](const std::vector<float>& x, bool is_rotated,
                          const std::vector<float>& found) {
    constexpr int64_t kDim = 16;
    for (size_t begin = 0; begin < x.size(); begin += kDim) {
      std::vector<float> head(x.begin() + static_cast<std::ptrdiff_t>(begin),
                              x.begin() + static_cast<std::ptrdiff_t>(begin) + kDim);
      if (is_rotated) Hadamard(head.data(), kDim);
      uint8_t codes[kDim / 2];
      float min, range;
      const GroupFormat format{kDim, 4, DType::kF32};
      ref::QuantizeGroups(format, head.data(), 1, codes, &min, &range);
      ref::DequantizeGroups(format, codes, &min, &range, 1, head.data());
      if (is_rotated) Hadamard(head.data(), kDim);
      for (size_t i = 0; i < kDim; ++i) ASSERT_EQ(found[begin + i], head[i]) << begin + i;
    }
  };
  expect(rows.k, GetParam().keys, stored.first);
  expect(rows.v, GetParam().values, stored.second);
}

INSTANTIATE_TEST_SUITE_P(Sides, RotationTest,
                         testing::Values(RotationCase{true, false}, RotationCase{false, true},
                                         RotationCase{true, true}));

}  // namespace
}  // namespace pmkvq
