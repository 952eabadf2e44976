// ReserveOneByOne: one Forward of many tokens that leaves the cache as decoding leaves it.
#include <gtest/gtest.h>

#include <algorithm>

#include "pmkvq/kv/packed/packed_cache.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::CacheDriver;
using testing_support::SmallConfig;

struct Case {
  std::string name;
  CacheConfig config;
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  const auto add = [&](const std::string& name, CacheConfig config = SmallConfig(1500, 2, 4)) {
    cases.push_back({name, std::move(config)});
    return &cases.back().config;
  };
  add("layer budget");
  add("fp16", SmallConfig(1500, 16, 16));
  testing_support::SetUniform(*add("static-4", SmallConfig(1500, 4, 4)), 4);
  add("no sink")->sink_tokens = 0;
  add("long sink", SmallConfig(2900, 2, 4))->sink_tokens = 300;
  add("window", SmallConfig(3200, 2, 4))->window_tokens = 384;
  add("oldest first")->policy = PolicyKind::kOldestFirst;
  CacheConfig* spread = add("oldest first, spread");
  spread->policy = PolicyKind::kOldestFirst;
  spread->most_bytes_per_token = 2 * 8192;
  CacheConfig* rotated = add("rotated, keys per channel");
  rotated->rotate_keys = true;
  rotated->rotate_values = true;
  rotated->k_axis = QuantAxis::kChannel;
  return cases;
}

// Appends tokens up to `until` with as few Forwards as the cache allows; returns how many. The
// outputs of all rows of block `layer` go to `out`.
int64_t AppendKnown(CacheDriver& driver, SequenceId seq, int64_t until, int64_t most,
                    std::vector<float>& out) {
  int64_t num_forwards = 0;
  while (driver.cache().NumTokens(seq) < until) {
    const int64_t waiting = until - driver.cache().NumTokens(seq);
    const int64_t count = driver.cache().ReserveOneByOne(seq, std::min(waiting, most));
    if (count == 0) break;
    driver.Forward({{seq, count, 1, count > 1}});
    out.insert(out.end(), driver.outputs()[1].begin(), driver.outputs()[1].end());
    ++num_forwards;
  }
  return num_forwards;
}

void ExpectSame(const std::vector<HalvingEvent>& found, const std::vector<HalvingEvent>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) {
    EXPECT_EQ(found[i].layer, expected[i].layer);
    EXPECT_EQ(found[i].num_tokens, expected[i].num_tokens);
    EXPECT_EQ(found[i].from_bits, expected[i].from_bits);
    EXPECT_EQ(found[i].num_k_pages, expected[i].num_k_pages);
    EXPECT_EQ(found[i].num_v_pages, expected[i].num_v_pages);
  }
}

TEST(OneByOneTest, EqualsOneTokenAtATime) {
  for (const Case& one : Cases()) {
    SCOPED_TRACE(one.name);
    for (const int64_t most : {1, 7, 64, 1000}) {
      CacheDriver driver(one.config);
      CacheDriver decoded(one.config);
      const SequenceId seq = *driver.cache().Open();
      ASSERT_EQ(*decoded.cache().Open(), seq);
      ASSERT_EQ(driver.Append(seq, 150, 1), decoded.Append(seq, 150, 1));
      std::vector<float> expected;
      while (decoded.cache().NumTokens(seq) < 1400) {
        ASSERT_NE(decoded.Append(seq, 1, 1), ReserveResult::kBudgetExhausted);
        const std::vector<float>& row = decoded.outputs()[1];
        expected.insert(expected.end(), row.begin(), row.end());
      }
      std::vector<float> found;
      const int64_t num_forwards = AppendKnown(driver, seq, 1400, most, found);
      EXPECT_EQ(found, expected);
      EXPECT_EQ(driver.ReadAll(seq), decoded.ReadAll(seq));
      const KvSequenceStats stats = driver.cache().SequenceStats(seq);
      const KvSequenceStats expected_stats = decoded.cache().SequenceStats(seq);
      EXPECT_EQ(stats.pages, expected_stats.pages);
      EXPECT_EQ(stats.peak_bytes, expected_stats.peak_bytes);
      EXPECT_EQ(stats.narrowed_bytes, expected_stats.narrowed_bytes);
      ExpectSame(driver.cache().TakeHalvingEvents(), decoded.cache().TakeHalvingEvents());
      if (most == 1000) {
        EXPECT_LT(num_forwards, 1250 / 8) << "a page is a few Forwards";
      }
      // And the next tokens, drawn ones, find the same cache.
      for (int i = 0; i < 40; ++i) {
        ASSERT_EQ(driver.Append(seq, 1, 1), decoded.Append(seq, 1, 1));
        ASSERT_EQ(driver.outputs(), decoded.outputs());
      }
    }
  }
}

// Rows of other sequences in the same Forward are as they are alone.
TEST(OneByOneTest, BesideOtherSequences) {
  CacheConfig config = SmallConfig(1500, 2, 4);
  config.max_sequences = 3;
  CacheDriver driver(config);
  CacheDriver decoded(config);
  std::vector<SequenceId> seqs;
  for (int i = 0; i < 3; ++i) {
    seqs.push_back(*driver.cache().Open());
    ASSERT_EQ(*decoded.cache().Open(), seqs.back());
  }
  for (const SequenceId seq : seqs) {
    ASSERT_EQ(driver.Append(seq, 600, 1), decoded.Append(seq, 600, 1));
  }
  ASSERT_EQ(driver.cache().ReserveOneByOne(seqs[0], 20), 20);
  ASSERT_EQ(driver.cache().Reserve(seqs[1], 5), ReserveResult::kReserved);
  ASSERT_EQ(driver.cache().ReserveOneByOne(seqs[2], 9), 9);
  driver.Forward({{seqs[0], 20, 1, true}, {seqs[1], 5, 1}, {seqs[2], 9, 1, true}});
  const std::vector<std::vector<float>> together = driver.outputs();

  std::vector<float> expected;
  const auto append = [&](SequenceId seq, int64_t num_tokens) {
    ASSERT_NE(decoded.Append(seq, num_tokens, 1), ReserveResult::kBudgetExhausted);
    expected.insert(expected.end(), decoded.outputs()[0].begin(), decoded.outputs()[0].end());
  };
  for (int i = 0; i < 20; ++i) append(seqs[0], 1);
  append(seqs[1], 5);
  for (int i = 0; i < 9; ++i) append(seqs[2], 1);
  EXPECT_EQ(together[0], expected);
  for (const SequenceId seq : seqs) {
    EXPECT_EQ(driver.cache().NumTokens(seq), decoded.cache().NumTokens(seq));
    EXPECT_EQ(driver.ReadAll(seq), decoded.ReadAll(seq));
  }
}

TEST(OneByOneTest, ASpentBudgetChangesNothing) {
  CacheDriver driver(SmallConfig(300, 2, 2));
  const SequenceId seq = *driver.cache().Open();
  std::vector<float> out;
  AppendKnown(driver, seq, 10000, 1000, out);
  const KvSequenceStats stats = driver.cache().SequenceStats(seq);
  EXPECT_GE(stats.num_tokens, 300);
  EXPECT_LT(stats.num_tokens, 10000);
  EXPECT_EQ(driver.cache().ReserveOneByOne(seq, 5), 0);
  EXPECT_EQ(driver.cache().SequenceStats(seq).pages, stats.pages);
}

}  // namespace
}  // namespace pmkvq
