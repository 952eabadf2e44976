// Sequences as plain data: one that is put into another store goes on with the same bits.
#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <memory>
#include <vector>

#include "pmkvq/base/error.h"
#include "support/cache_driver.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;

CacheConfig Config(PolicyKind policy, int64_t bytes_per_token, int64_t sink_tokens,
                   int64_t window_tokens, double budget_share, DType float_type = DType::kF16,
                   QuantAxis k_axis = QuantAxis::kToken, int64_t sliding_window = 0,
                   bool has_latents = false) {
  CacheConfig config;
  config.float_type = float_type;
  config.k_axis = k_axis;
  config.geometry.blocks.assign(2, BlockOf({1, 4, 2, 16}));
  config.geometry.blocks.insert(config.geometry.blocks.begin() + 1, KvBlockGeometry{});
  config.geometry.blocks[2].sliding_window = sliding_window;
  if (has_latents) config.geometry.blocks[0] = LatentBlockOf(3, 56, 8);
  config.sink_tokens = sink_tokens;
  config.window_tokens = window_tokens;
  config.max_sequences = 2;
  config.policy = policy;
  config.most_bytes_per_token = bytes_per_token;
  for (size_t layer = 0; layer < 3; ++layer) {
    const auto lowest = static_cast<double>(FloorBytes(config, layer, sink_tokens + 1));
    const auto highest = static_cast<double>(BlockBytes(config, layer, 900, 16, 16));
    config.budget_bytes.push_back(static_cast<int64_t>(lowest + budget_share * (highest - lowest)));
  }
  return config;
}

void Append(CacheDriver& driver, SequenceId seq, int64_t num_tokens, uint64_t seed,
            std::vector<std::vector<float>>* outputs) {
  const ReserveResult result = driver.Append(seq, num_tokens, seed);
  *outputs = result == ReserveResult::kBudgetExhausted ? std::vector<std::vector<float>>{}
                                                       : driver.outputs();
}

RC_GTEST_PROP(PackedCacheImage, GoesOnInAnotherStore, ()) {
  const QuantAxis k_axis = *rc::gen::element(QuantAxis::kToken, QuantAxis::kChannel);
  CacheConfig config =
      Config(*rc::gen::element(PolicyKind::kLayerBudget, PolicyKind::kOldestFirst),
             *rc::gen::element<int64_t>(8 << 20, 10'000, 1),
             *rc::gen::element<int64_t>(0, 1, 70, 128, 300), *rc::gen::element<int64_t>(128, 256),
             0.01 * *rc::gen::inRange(0, 101), *rc::gen::element(DType::kF16, DType::kF32), k_axis,
             *rc::gen::element<int64_t>(0, 5, 200),
             k_axis == QuantAxis::kToken && *rc::gen::arbitrary<bool>());
  CacheDriver first(config);
  CacheDriver second(config);
  RC_ASSERT(second.cache().Open().has_value());  // The restored one is another sequence there.
  const SequenceId seq = *first.cache().Open();
  SequenceId copy = -1;
  const int num_actions = *rc::gen::inRange(1, 12);
  const int saved_after = *rc::gen::inRange(0, num_actions);
  for (int i = 0; i <= num_actions; ++i) {
    if (i == saved_after) {
      const std::optional<SequenceImage> image = first.cache().ImageOf(seq);
      RC_ASSERT(image.has_value());
      const std::optional<SequenceId> opened = second.cache().OpenImage(*image, "image");
      RC_ASSERT(opened.has_value());
      copy = *opened;
      RC_ASSERT(second.cache().ImageOf(copy) == image);
    }
    std::vector<std::vector<float>> outputs;
    std::vector<std::vector<float>> outputs_of_copy;
    const auto seed = static_cast<uint64_t>(i) + 1;
    if (*rc::gen::inRange(0, 5) == 0) {
      const int64_t rest = first.cache().LongestTruncation(
          seq, first.cache().NumTokens(seq) * *rc::gen::inRange(0, 101) / 100);
      first.cache().Truncate(seq, rest);
      if (copy >= 0) second.cache().Truncate(copy, rest);
    } else {
      const int64_t count = *rc::gen::element<int64_t>(1, 3, 60, 127, 128, 129, 300);
      Append(first, seq, count, seed, &outputs);
      if (copy >= 0) Append(second, copy, count, seed, &outputs_of_copy);
    }
    if (copy < 0) continue;
    RC_ASSERT(outputs_of_copy == outputs);
    RC_ASSERT(second.cache().ImageOf(copy) == first.cache().ImageOf(seq));
  }
}

// Halvings that are decided and not carried out belong to the sequence.
TEST(PackedCacheImageTest, HoldsHalvingsAhead) {
  const CacheConfig config = Config(PolicyKind::kOldestFirst, 1000, 1, 128, 0.3);
  CacheDriver first(config);
  const SequenceId seq = *first.cache().Open();
  int64_t num_saved_with_steps = 0;
  std::vector<std::unique_ptr<CacheDriver>> copies;  // Their sequence is 0.
  for (uint64_t token = 0; token < 900; ++token) {
    ASSERT_NE(first.Append(seq, 1, token), ReserveResult::kBudgetExhausted);
    const SequenceImage image = *first.cache().ImageOf(seq);
    for (const auto& copy : copies) {
      ASSERT_NE(copy->Append(0, 1, token), ReserveResult::kBudgetExhausted);
      ASSERT_EQ(*copy->cache().ImageOf(0), image);
    }
    if (image.next_steps.empty() || token % 7 != 0) continue;
    ++num_saved_with_steps;
    if (copies.size() == 8) copies.erase(copies.begin());
    copies.push_back(std::make_unique<CacheDriver>(config));
    ASSERT_EQ(copies.back()->cache().OpenImage(image, "image"), 0);
  }
  EXPECT_GT(num_saved_with_steps, 10);
}

TEST(PackedCacheImageTest, NothingOfOtherSequencesIsInIt) {
  CacheConfig config = Config(PolicyKind::kLayerBudget, 8 << 20, 70, 128, 1);
  CacheDriver used(config);
  const SequenceId before = *used.cache().Open();
  ASSERT_EQ(used.Append(before, 300, 1), ReserveResult::kReserved);
  used.cache().Close(before);
  CacheDriver fresh(config);
  const SequenceId a = *used.cache().Open();
  const SequenceId b = *fresh.cache().Open();
  for (const int64_t count : {9, 100}) {
    ASSERT_EQ(used.Append(a, count, 2), ReserveResult::kReserved);
    ASSERT_EQ(fresh.Append(b, count, 2), ReserveResult::kReserved);
    EXPECT_EQ(used.cache().ImageOf(a), fresh.cache().ImageOf(b)) << count;
  }
}

// A cut drops what was decided for the next page.
TEST(PackedCacheImageTest, HoldsNothingThatACutHasDropped) {
  const CacheConfig config = Config(PolicyKind::kOldestFirst, 1, 0, 128, 0.06);
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 3, 1), ReserveResult::kReserved);
  ASSERT_EQ(driver.Append(seq, 60, 2), ReserveResult::kReserved);
  driver.cache().Truncate(seq, 0);
  const SequenceImage image = *driver.cache().ImageOf(seq);
  EXPECT_FALSE(image.next_is_planned);
  EXPECT_TRUE(image.blocks[0].next_pages.empty());
  EXPECT_TRUE(driver.cache().OpenImage(image, "image").has_value());
}

// Pages that have left a sliding window take no bytes, and no others are left out.
TEST(PackedCacheImageTest, FreedPagesAreLeftOut) {
  const CacheConfig config =
      Config(PolicyKind::kLayerBudget, 8 << 20, 1, 128, 1, DType::kF16, QuantAxis::kToken, 200);
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  for (uint64_t i = 0; i < 8; ++i) ASSERT_EQ(driver.Append(seq, 100, i), ReserveResult::kReserved);
  SequenceImage image = *driver.cache().ImageOf(seq);
  EXPECT_EQ(image.blocks[0].num_freed, 0);
  EXPECT_GT(image.blocks[2].num_freed, 2);
  EXPECT_LT(image.blocks[2].bytes[0].size(), image.blocks[0].bytes[0].size());
  EXPECT_TRUE(driver.cache().OpenImage(image, "image").has_value());
  driver.cache().Close(1);
  ++image.blocks[2].num_freed;
  testing_support::ExpectError<InvalidInput>(
      [&] { (void)driver.cache().OpenImage(image, "image"); }, {"block 2"});
}

TEST(PackedCacheImageTest, NeedsAFreeSequence) {
  const CacheConfig config = Config(PolicyKind::kLayerBudget, 8 << 20, 1, 128, 1);
  CacheDriver driver(config);
  const SequenceId seq = *driver.cache().Open();
  ASSERT_EQ(driver.Append(seq, 200, 1), ReserveResult::kReserved);
  const SequenceImage image = *driver.cache().ImageOf(seq);
  ASSERT_TRUE(driver.cache().OpenImage(image, "image").has_value());
  EXPECT_FALSE(driver.cache().OpenImage(image, "image").has_value());
}

}  // namespace
}  // namespace pmkvq
