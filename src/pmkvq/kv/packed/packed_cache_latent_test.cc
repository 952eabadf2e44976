// The packed cache of latent attention: c and k_r with widths of their own.
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "pmkvq/base/error.h"
#include "pmkvq/kernels/attention/latent_attention.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::ExpectError;
using testing_support::KeysAndValues;
using testing_support::MakeRows;
using testing_support::Rows;
using testing_support::SetUniform;

constexpr int64_t kHeads = 3;
constexpr int64_t kLatent = 256;  // Two groups.
constexpr int64_t kRope = 24;

// Two blocks with budgets that hold `num_tokens` at these widths.
CacheConfig LatentConfig(int64_t num_tokens, int latent_bits, int rope_bits) {
  CacheConfig config;
  config.geometry.blocks.assign(2, LatentBlockOf(kHeads, kLatent, kRope));
  config.budget_bytes.assign(2, BlockBytes(config, 0, num_tokens, latent_bits, rope_bits));
  return config;
}

CacheConfig DeepSeekConfig() {
  CacheConfig config;
  config.geometry.blocks.assign(1, LatentBlockOf(16, 512, 64));
  return config;
}

// Bytes of a token in closed pages: those of a page more over its tokens.
TEST(LatentCacheTest, BytesOfATokenAreThoseOfTheFormula) {
  struct Case {
    int latent_bits;
    int rope_bits;
    int64_t bytes;
  };
  // Codes, and for each group of 128 (of k_r: of its 64) two f16 values.
  for (const Case& item : {Case{16, 16, 1152}, Case{8, 16, 656}, Case{8, 8, 596}, Case{4, 16, 400},
                           Case{4, 8, 340}, Case{2, 8, 212}, Case{2, 4, 180}}) {
    CacheConfig config = DeepSeekConfig();
    config.static_widths = true;
    config.k_bits = {item.latent_bits};
    config.v_bits = {item.rope_bits};
    config.budget_bytes = {BlockBytes(config, 0, 1000, item.latent_bits, item.rope_bits)};
    PackedKvCache cache(config);
    const SequenceId seq = *cache.Open();
    const std::vector<float> c(512 * 128, 0.5f);
    const std::vector<float> rope(64 * 128, 0.25f);
    int64_t before = 0;
    for (int page = 0; page < 4; ++page) {
      ASSERT_EQ(cache.Reserve(seq, 128), ReserveResult::kReserved);
      cache.BeginForward({{seq, 128}});
      cache.Append(0, c.data(), rope.data());
      cache.EndForward();
      const int64_t bytes = cache.SequenceStats(seq).bytes;
      // The page before this one has closed; this one is open.
      if (page > 1) {
        ASSERT_EQ(bytes - before, 128 * item.bytes) << item.latent_bits;
      }
      before = bytes;
    }
  }
}

TEST(LatentCacheTest, TheRopePartHasAFloor) {
  CacheConfig config = LatentConfig(1000, 16, 16);
  EXPECT_EQ(FloorWidths(config, 0), (PageWidths{2, 8}));
  config.rope_floor_bits = 4;
  EXPECT_EQ(FloorWidths(config, 0), (PageWidths{2, 4}));
  SetUniform(config, 4);
  config.rope_floor_bits = 8;
  EXPECT_EQ(CloseWidths(config, 0), (PageWidths{4, 8}));
  SetUniform(config, 16);
  EXPECT_EQ(CloseWidths(config, 0), (PageWidths{16, 16}));
  // Keys and values know no such floor.
  config.geometry.blocks[0] = BlockOf({1, 2, 2, 16});
  SetUniform(config, 2);
  EXPECT_EQ(FloorWidths(config, 0), (PageWidths{2, 2}));
}

// What attention reads of a sequence, by the oracle over the values as they are stored.
std::vector<float> Expected(const CacheConfig& config, const KeysAndValues& stored, int64_t n,
                            const Rows& rows, int64_t chunk) {
  std::vector<float> heads;  // [2, n, 128]
  for (int64_t head = 0; head < kLatent / 128; ++head) {
    for (int64_t t = 0; t < n; ++t) {
      const auto run = stored.first.begin() + t * kLatent + head * 128;
      heads.insert(heads.end(), run, run + 128);
    }
  }
  KvPageView view;
  view.k.data = reinterpret_cast<const std::byte*>(heads.data());
  view.v.data = reinterpret_cast<const std::byte*>(stored.second.data());
  const PageTokens tokens{static_cast<int32_t>(n), static_cast<int32_t>(n)};
  const LatentShape shape = {.num_heads = config.geometry.block(0).num_heads,
                             .latent = kLatent,
                             .rope = kRope,
                             .group = 128,
                             .float_type = DType::kF32,
                             .metadata_type = DType::kF32};
  std::vector<float> expected(static_cast<size_t>(chunk * config.geometry.block(0).out_values()));
  const AttentionSequence sequence{{&tokens, n > 0 ? 1u : 0u}, chunk, 0};
  const KvPageView* const first_page = &view;
  ref::AttendLatents(
      shape, {&sequence, 1},
      {{&first_page, 1}, rows.q.data(), rows.k.data(), rows.v.data(), expected.data()});
  return expected;
}

// Queries of MakeRows have no scale.
void ScaleQueries(Rows& rows) {
  for (float& q : rows.q) q /= 16.0f;
}

void Append(PackedKvCache& cache, const CacheConfig& config, SequenceId seq, int64_t count,
            uint64_t seed, std::vector<float>* out) {
  const int64_t n = cache.NumTokens(seq);
  ASSERT_NE(cache.Reserve(seq, count), ReserveResult::kBudgetExhausted);
  cache.BeginForward({{seq, count}});
  for (int64_t layer = 0; layer < config.geometry.num_layers(); ++layer) {
    Rows rows = MakeRows(config.geometry, seed, layer, n, count);
    ScaleQueries(rows);
    out->assign(static_cast<size_t>(count * config.geometry.block(layer).out_values()), NAN);
    cache.AppendAndAttend(layer, rows.q.data(), rows.k.data(), rows.v.data(), out->data());
  }
  cache.EndForward();
}

class LatentPolicyTest : public testing::TestWithParam<PolicyKind> {};

// The chunk's output is attention over the values as they read, plus the chunk itself.
TEST_P(LatentPolicyTest, AttentionReadsWhatIsStored) {
  for (const DType float_type : {DType::kF16, DType::kF32}) {
    CacheConfig config;
    config.geometry.blocks.assign(2, LatentBlockOf(kHeads, kLatent, kRope));
    config.float_type = float_type;
    config.sink_tokens = 3;
    config.policy = GetParam();
    config.budget_bytes.assign(2, BlockBytes(config, 0, 3 + 6 * 128, 4, 8));
    PackedKvCache cache(config);
    const SequenceId seq = *cache.Open();
    for (const int64_t chunk : {2, 2, 300, 1, 77, 200, 1, 1}) {
      const int64_t n = cache.NumTokens(seq);
      ASSERT_NE(cache.Reserve(seq, chunk), ReserveResult::kBudgetExhausted);
      // Reserve has halved; a second look at the values needs a cache without a reservation.
      cache.Truncate(seq, n);
      KeysAndValues stored{std::vector<float>(static_cast<size_t>(n * kLatent)),
                           std::vector<float>(static_cast<size_t>(n * kRope))};
      cache.ReadTokens(seq, 1, stored.first.data(), stored.second.data());
      std::vector<float> out;
      ASSERT_NO_FATAL_FAILURE(Append(cache, config, seq, chunk, 4, &out));
      Rows rows = MakeRows(config.geometry, 4, 1, n, chunk);
      ScaleQueries(rows);
      const std::vector<float> expected = Expected(config, stored, n, rows, chunk);
      for (size_t i = 0; i < expected.size(); ++i) {
        ASSERT_NEAR(out[i], expected[i], 1e-4) << n << "+" << chunk;
      }
    }
    const KvLayerStats stats = cache.LayerStats(seq, 1);
    EXPECT_EQ(stats.v_pages[WidthIndex(4)] + stats.v_pages[WidthIndex(2)], 0);
    EXPECT_GT(stats.k_pages[WidthIndex(4)], 0);
    EXPECT_GT(stats.v_pages[WidthIndex(8)], 0);
  }
}

INSTANTIATE_TEST_SUITE_P(All, LatentPolicyTest,
                         testing::Values(PolicyKind::kLayerBudget, PolicyKind::kOldestFirst),
                         [](const auto& test_info) {
                           return test_info.param == PolicyKind::kLayerBudget ? "LayerBudget"
                                                                              : "OldestFirst";
                         });

// The codes and the metadata of `count` groups by the scalar definition, from values that were
// rounded to f16, halved down to `bits`.
std::vector<std::byte> ScalarPage(const std::vector<float>& values, int64_t heads, int64_t group,
                                  int first_bits, int bits) {
  const int64_t groups = kPageTokens * heads;
  std::vector<float> rounded;
  for (const float value : values) rounded.push_back(ToFloat(FromFloat<F16>(value)));
  std::vector<uint8_t> codes(static_cast<size_t>(groups * PackedGroupBytes(group, first_bits)));
  std::vector<F16> mins(static_cast<size_t>(groups));
  std::vector<F16> ranges(mins.size());
  ref::QuantizeGroups({group, first_bits, DType::kF16}, rounded.data(), groups, codes.data(),
                      mins.data(), ranges.data());
  for (int width = first_bits; width > bits; width /= 2) {
    std::vector<uint8_t> half(codes.size() / 2);
    ref::HalvePackedCodes(group, width, codes.data(), groups, half.data());
    codes = half;
  }
  std::vector<std::byte> page;
  const auto add = [&](const void* data, size_t bytes) {
    const auto* first = static_cast<const std::byte*>(data);
    page.insert(page.end(), first, first + bytes);
  };
  add(codes.data(), codes.size());
  for (size_t head = 0; head < static_cast<size_t>(heads); ++head) {
    add(mins.data() + head * kPageTokens, kPageTokens * sizeof(F16));
    add(ranges.data() + head * kPageTokens, kPageTokens * sizeof(F16));
  }
  return page;
}

// Page `page` of a stream, [heads, 128, group], as it came from the model.
std::vector<float> PageOf(const std::vector<float>& rows, int64_t heads, int64_t group,
                          int64_t first_token) {
  std::vector<float> values;
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t t = first_token; t < first_token + kPageTokens; ++t) {
      const auto run = rows.begin() + (t * heads + head) * group;
      values.insert(values.end(), run, run + group);
    }
  }
  return values;
}

// As the sequence is halved 16 -> 8 -> 4 -> 2, its codes are those of the scalar definition at
// every width, bit for bit; k_r stops at its floor.
TEST_P(LatentPolicyTest, CodesAreThoseOfTheScalarDefinition) {
  CacheConfig config;
  config.geometry.blocks.assign(1, LatentBlockOf(kHeads, kLatent, kRope));
  config.policy = GetParam();
  config.rope_floor_bits = 4;
  config.budget_bytes = {BlockBytes(config, 0, 2000, 2, 4)};
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  std::array<bool, 17> seen_latent{};
  std::array<bool, 17> seen_rope{};
  while (driver.cache().NumTokens(seq) < 2000) {
    ASSERT_NE(driver.Append(seq, 50, 7), ReserveResult::kBudgetExhausted);
    const int64_t n = driver.cache().NumTokens(seq);
    if (n % 250 != 0) continue;
    const std::optional<SequenceImage> image = driver.cache().ImageOf(seq);
    ASSERT_TRUE(image.has_value());
    const Rows rows = MakeRows(config.geometry, 7, 0, 0, n);
    for (const size_t side : {0, 1}) {
      const KvStream& stream = config.geometry.block(0).streams[side];
      size_t offset = static_cast<size_t>(config.sink_tokens * stream.values()) * sizeof(F16);
      for (size_t page = 0; page < image->blocks[0].pages.size(); ++page) {
        const PageWidths& widths = image->blocks[0].pages[page];
        const int bits = side == 0 ? widths.k : widths.v;
        const auto bytes = static_cast<size_t>(PageBytes(stream, DType::kF16, bits));
        if (bits < 16) {
          const int64_t first = config.sink_tokens + static_cast<int64_t>(page) * kPageTokens;
          const std::vector<float> values =
              PageOf(side == 0 ? rows.k : rows.v, stream.heads, stream.group, first);
          const auto found =
              image->blocks[0].bytes[side].begin() + static_cast<std::ptrdiff_t>(offset);
          const std::vector<std::byte> page_bytes(found,
                                                  found + static_cast<std::ptrdiff_t>(bytes));
          // A page may close at a width below 8 bits at once; where a value lies at a tie the code
          // may then be another one than by way of 8 bits.
          bool is_one = false;
          for (int first_bits = 8; first_bits >= bits; first_bits /= 2) {
            is_one |=
                page_bytes == ScalarPage(values, stream.heads, stream.group, first_bits, bits);
          }
          ASSERT_TRUE(is_one) << "side " << side << ", page " << page << ", " << bits << " bits";
          (side == 0 ? seen_latent : seen_rope)[static_cast<size_t>(bits)] = true;
        }
        offset += bytes;
      }
      ASSERT_EQ(offset, image->blocks[0].bytes[side].size());
    }
  }
  EXPECT_TRUE(seen_latent[8] && seen_latent[4] && seen_latent[2]);
  EXPECT_TRUE(seen_rope[8] && seen_rope[4] && !seen_rope[2]);
}

// Bits depend neither on the other sequences nor on threads nor on the store that a sequence was
// saved from.
TEST_P(LatentPolicyTest, BatchesThreadsForksAndSessionsChangeNoBit) {
  CacheConfig config = LatentConfig(600, 4, 8);
  config.policy = GetParam();
  config.max_sequences = 4;
  config.num_threads = 3;
  CacheDriver together(config);
  std::vector<SequenceId> ids;
  for (uint64_t i = 0; i < 2; ++i) {
    ids.push_back(*together.cache().Open());
    ASSERT_NE(together.Append(ids[i], 100 + 250 * static_cast<int64_t>(i), i),
              ReserveResult::kBudgetExhausted);
  }
  for (int step = 0; step < 200; ++step) {
    for (const SequenceId id : ids) {
      ASSERT_NE(together.cache().Reserve(id, 1), ReserveResult::kBudgetExhausted);
    }
    together.Forward({{ids[0], 1, 0}, {ids[1], 1, 1}});
  }
  const std::vector<float> both = together.outputs()[1];
  config.num_threads = 1;
  for (uint64_t i = 0; i < 2; ++i) {
    CacheDriver alone(config);
    const SequenceId seq = *alone.cache().Open();
    ASSERT_NE(alone.Append(seq, 100 + 250 * static_cast<int64_t>(i), i),
              ReserveResult::kBudgetExhausted);
    for (int step = 0; step < 200; ++step) {
      ASSERT_NE(alone.Append(seq, 1, i), ReserveResult::kBudgetExhausted);
    }
    EXPECT_EQ(alone.ReadAll(seq), together.ReadAll(ids[i]));
    const auto row = std::ssize(alone.outputs()[1]);
    EXPECT_EQ(alone.outputs()[1],
              std::vector<float>(both.begin() + row * static_cast<ptrdiff_t>(i),
                                 both.begin() + row * static_cast<ptrdiff_t>(i + 1)));
  }

  const SequenceId fork = *together.cache().Fork(ids[0]);
  CacheDriver restored(config);
  const std::optional<SequenceImage> image = together.cache().ImageOf(ids[0]);
  const SequenceId opened = *restored.cache().OpenImage(*image, "image");
  for (int step = 0; step < 150; ++step) {
    ASSERT_NE(together.Append(fork, 1, 9), ReserveResult::kBudgetExhausted);
    const std::vector<std::vector<float>> of_fork = together.outputs();
    ASSERT_NE(together.Append(ids[0], 1, 9), ReserveResult::kBudgetExhausted);
    ASSERT_EQ(together.outputs(), of_fork) << step;
    ASSERT_NE(restored.Append(opened, 1, 9), ReserveResult::kBudgetExhausted);
    ASSERT_EQ(restored.outputs(), of_fork) << step;
  }
  EXPECT_EQ(together.ReadAll(fork), restored.ReadAll(opened));
}

TEST(LatentCacheTest, ACutPageIsOpenedAgainAsItReads) {
  CacheConfig config = LatentConfig(700, 2, 8);
  SetUniform(config, 2);
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 500, 3), ReserveResult::kReserved);
  const KeysAndValues before = driver.Read(seq, 1);
  driver.cache().Truncate(seq, 200);
  const KeysAndValues after = driver.Read(seq, 1);
  for (size_t i = 0; i < after.first.size(); ++i) {
    ASSERT_NEAR(after.first[i], before.first[i], 2e-3f) << i;
  }
  for (size_t i = 0; i < after.second.size(); ++i) {
    ASSERT_NEAR(after.second[i], before.second[i], 2e-3f) << i;
  }
  ASSERT_EQ(driver.Append(seq, 300, 4), ReserveResult::kReserved);
  EXPECT_EQ(driver.cache().NumTokens(seq), 500);
}

std::vector<Tensor> RandomScales(const KvGeometry& geometry) {
  std::vector<Tensor> scales;
  Random random(5);
  for (const KvBlockGeometry& block : geometry.blocks) {
    Tensor tensor(DType::kF32, KeyScales::ShapeOf(block));
    for (int64_t i = 0; i < tensor.num_elements(); ++i) {
      tensor.As<float>()[i] = static_cast<float>(0.25 + 3.0 * random.Uniform());
    }
    scales.push_back(std::move(tensor));
  }
  return scales;
}

// Scales and rotation leave attention unchanged but for rounding, and change what is stored.
TEST(LatentCacheTest, ScalesAndRotationLeaveAttentionUnchanged) {
  CacheConfig plain = LatentConfig(400, 16, 16);
  SetUniform(plain, 16);
  plain.float_type = DType::kF32;
  plain.budget_bytes.assign(2, BlockBytes(plain, 0, 400, 16, 16));
  for (const bool rotates : {false, true}) {
    for (const bool scales : {false, true}) {
      CacheConfig config = plain;
      config.rotate_keys = rotates;
      if (scales)
        config.key_scales = KeyScales::Make(config.geometry, RandomScales(config.geometry));
      PackedKvCache a(plain);
      PackedKvCache b(config);
      const SequenceId seq = *a.Open();
      ASSERT_EQ(b.Open(), seq);
      for (const int64_t chunk : {150, 1, 60, 1}) {
        std::vector<float> expected;
        std::vector<float> out;
        ASSERT_NO_FATAL_FAILURE(Append(a, plain, seq, chunk, 2, &expected));
        ASSERT_NO_FATAL_FAILURE(Append(b, config, seq, chunk, 2, &out));
        for (size_t i = 0; i < out.size(); ++i) ASSERT_NEAR(out[i], expected[i], 2e-5f) << i;
      }
      std::vector<float> c_plain(212 * kLatent);
      std::vector<float> c(c_plain.size());
      std::vector<float> rope_plain(212 * kRope);
      std::vector<float> rope(rope_plain.size());
      a.ReadTokens(seq, 0, c_plain.data(), rope_plain.data());
      b.ReadTokens(seq, 0, c.data(), rope.data());
      EXPECT_EQ(rope == rope_plain, !scales);
      const std::vector<Tensor> factors = RandomScales(config.geometry);
      for (int64_t i = 0; i < kLatent; ++i) {
        const float factor = scales ? factors[0].As<float>()[i] : 1.0f;
        ASSERT_NEAR(c[static_cast<size_t>(i)] * factor, c_plain[static_cast<size_t>(i)], 1e-5f);
      }
    }
  }
}

// What a cache with scales stores at every width are the codes, bit for bit, of one without that is
// given the scaled values.
TEST(LatentCacheTest, CodesAreThoseOfScaledLatents) {
  CacheConfig config = LatentConfig(1000, 2, 4);
  config.rope_floor_bits = 4;
  const std::vector<Tensor> scales = RandomScales(config.geometry);
  PackedKvCache plain(config);
  config.key_scales = KeyScales::Make(config.geometry, scales);
  PackedKvCache scaled(config);
  const SequenceId seq = *plain.Open();
  ASSERT_EQ(scaled.Open(), seq);
  std::array<bool, 17> seen{};
  for (int64_t n = 0; n < 1000; n += 100) {
    for (PackedKvCache* cache : {&plain, &scaled}) {
      ASSERT_NE(cache->Reserve(seq, 100), ReserveResult::kBudgetExhausted);
      cache->BeginForward({{seq, 100}});
      for (int64_t layer = 0; layer < 2; ++layer) {
        Rows rows = MakeRows(config.geometry, 4, layer, n, 100);
        const float* const factors = config.key_scales->key_factors(layer);
        for (size_t i = 0; cache == &plain && i < rows.k.size(); ++i) {
          rows.k[i] *= factors[i % kLatent];
        }
        for (size_t i = 0; cache == &plain && i < rows.v.size(); ++i) {
          rows.v[i] *= factors[kLatent + i % kRope];
        }
        cache->Append(layer, rows.k.data(), rows.v.data());
      }
      cache->EndForward();
    }
    const SequenceImage a = *plain.ImageOf(seq);
    const SequenceImage b = *scaled.ImageOf(seq);
    for (size_t layer = 0; layer < 2; ++layer) {
      ASSERT_EQ(a.blocks[layer].pages, b.blocks[layer].pages);
      ASSERT_TRUE(a.blocks[layer].bytes == b.blocks[layer].bytes) << n;
      for (const PageWidths& widths : a.blocks[layer].pages) seen[widths.k] = true;
    }
  }
  EXPECT_TRUE(seen[8] && seen[4] && seen[2]);
}

// Sequences in a pool take pages from one another; c and k_r have prices by their values.
TEST(LatentCacheTest, APoolIsNeverExceeded) {
  CacheConfig config;
  config.geometry.blocks.assign(2, LatentBlockOf(kHeads, kLatent, kRope));
  config.max_sequences = 3;
  config.chunk_tokens = 256;
  config.policy = PolicyKind::kOldestFirst;
  config.pool.bytes = 3 * FloorBytes(config, 700);
  config.pool.prefix_bytes = config.pool.bytes / 4;
  config.budget_bytes = SplitBudget(config.pool.bytes, EvenWeights(config));
  CacheDriver driver(config);
  std::vector<SequenceId> ids;
  for (uint64_t i = 0; i < 3; ++i) {
    ids.push_back(*driver.cache().Open());
    ASSERT_NE(driver.Append(ids[i], 250, i), ReserveResult::kBudgetExhausted);
  }
  std::vector<int32_t> tokens(250);
  std::iota(tokens.begin(), tokens.end(), 0);
  for (int step = 0; step < 440; ++step) {
    Batch batch;
    for (const SequenceId id : ids) batch.push_back({id, 1});
    ASSERT_NE(driver.cache().ReserveAll(batch), ReserveResult::kBudgetExhausted) << step;
    driver.Forward({{ids[0], 1, 0}, {ids[1], 1, 1}, {ids[2], 1, 2}});
    const KvPoolStats pool = driver.cache().StoreStats().pool;
    ASSERT_LE(pool.peak_bytes, config.pool.bytes);
  }
  const KvSequenceStats stats = driver.cache().SequenceStats(ids[0]);
  EXPECT_GT(stats.pages[WidthIndex(8)] + stats.pages[WidthIndex(4)] + stats.pages[WidthIndex(2)],
            0);
  const KvLayerStats layer = driver.cache().LayerStats(ids[0], 0);
  EXPECT_EQ(layer.v_pages[WidthIndex(4)] + layer.v_pages[WidthIndex(2)], 0);
}

TEST(LatentCacheTest, KeptPromptsHaveTheSameBits) {
  CacheConfig config;
  config.geometry.blocks.assign(2, LatentBlockOf(kHeads, kLatent, kRope));
  config.max_sequences = 2;
  config.chunk_tokens = 200;
  config.policy = PolicyKind::kOldestFirst;
  config.pool.bytes = 4 * BlockBytes(config, 0, 700, 16, 16);
  config.pool.prefix_bytes = config.pool.bytes / 2;
  config.budget_bytes = SplitBudget(config.pool.bytes, EvenWeights(config));
  CacheDriver driver(config);
  std::vector<int32_t> tokens(400);
  std::iota(tokens.begin(), tokens.end(), 0);
  const SequenceId first = *driver.cache().Open();
  for (int chunk = 0; chunk < 2; ++chunk) {
    ASSERT_NE(driver.Append(first, 200, 1), ReserveResult::kBudgetExhausted);
  }
  driver.cache().KeepPrefix(first, "", tokens);
  const SequenceId second = *driver.cache().Open();
  ASSERT_EQ(driver.cache().TakePrefix(second, "", tokens), 400);
  EXPECT_EQ(driver.ReadAll(first), driver.ReadAll(second));
  ASSERT_NE(driver.Append(first, 1, 1), ReserveResult::kBudgetExhausted);
  const auto outputs = driver.outputs();
  ASSERT_NE(driver.Append(second, 1, 1), ReserveResult::kBudgetExhausted);
  EXPECT_EQ(driver.outputs(), outputs);
}

TEST(LatentCacheTest, ValuesThatDoNotFitEndTheirSequence) {
  CacheConfig config = LatentConfig(300, 16, 16);
  PackedKvCache cache(config);
  for (const bool is_rope : {false, true}) {
    const SequenceId seq = *cache.Open();
    ASSERT_EQ(cache.Reserve(seq, 1), ReserveResult::kReserved);
    cache.BeginForward({{seq, 1}});
    Rows rows = MakeRows(config.geometry, 1, 0, 0, 1);
    (is_rope ? rows.v : rows.k)[7] = 1e6f;
    std::vector<float> out(static_cast<size_t>(kHeads * kLatent));
    cache.AppendAndAttend(0, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    cache.AppendAndAttend(1, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    cache.EndForward();
    ASSERT_NE(cache.FailureOf(seq), nullptr);
    EXPECT_NE(cache.FailureOf(seq)->what.find(is_rope ? "rope key" : "latent"), std::string::npos)
        << cache.FailureOf(seq)->what;
    cache.Close(seq);
  }
}

TEST(LatentCacheTest, WhatCannotBeServedIsRefusedInOneLine) {
  const CacheConfig config = LatentConfig(300, 16, 16);
  CacheConfig wrong = config;
  wrong.device = {Device::kCuda, 0};
  wrong.max_len = 300;
  ExpectError<Unsupported>([&] { MakePackedKvCache(wrong); },
                           {"latents of 256 + 24 values", "--device cpu"});
  wrong = config;
  wrong.k_axis = QuantAxis::kChannel;
  ExpectError<Unsupported>([&] { MakePackedKvCache(wrong); }, {"axis: found channel", "token"});
  wrong = config;
  wrong.rotate_values = true;
  ExpectError<Unsupported>([&] { MakePackedKvCache(wrong); }, {"rotate: found values", "keys"});
  wrong = config;
  wrong.geometry.blocks[0].sliding_window = 5;
  ExpectError<Unsupported>([&] { MakePackedKvCache(wrong); }, {"block 0", "sliding window"});
  ExpectError<Unsupported>([] { LatentBlockOf(4, 200, 64); }, {"kv_lora_rank", "200"});
  ExpectError<Unsupported>([] { LatentBlockOf(4, 512, 136); }, {"qk_rope_head_dim", "136"});
  ExpectError<Unsupported>([&] { UniformOf(config.geometry, "--kv kivi"); },
                           {"--kv kivi", "latents of 256 + 24 values"});
  ExpectError<Unsupported>([&] { RefuseLatents(config.geometry, "--kv mikv"); },
                           {"--kv mikv", "block 0", "expected keys and values"});
}

}  // namespace
}  // namespace pmkvq
