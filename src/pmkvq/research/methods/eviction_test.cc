// Methods that evict, against scalar readings of their rules: who is kept, and what that takes.
#include "pmkvq/research/methods/eviction.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/evicting_driver.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectRefused;
using testing_support::Kept;
using testing_support::kTokenBytes;
using testing_support::MethodDriver;

struct Streaming {
  const char* spec;
  int64_t capacity;
  int64_t every;
  bool per_append = false;  // Its choice depends on where appends end.
};

class StreamingEviction : public testing::TestWithParam<Streaming> {};

// The choice does not depend on the chunks, the rule gives the number of kept tokens, bytes follow.
TEST_P(StreamingEviction, KeepsTheSameOfAnyChunks) {
  const Streaming& rule = GetParam();
  const PeriodicEviction eviction{rule.capacity, rule.every};
  MethodDriver whole(rule.spec);
  MethodDriver mixed(rule.spec);
  MethodDriver single(rule.spec);
  whole.Append(300);
  for (const int64_t chunk : {1, 2, 60, 129, 5, 103}) mixed.Append(chunk);
  int64_t peak = 0;
  for (int64_t n = 1; n <= 300; ++n) {
    single.Append(1);
    ASSERT_EQ(std::ssize(Kept(single, 1)), eviction.NumKept(n)) << n;
    peak = std::max(peak, single.BlockBytes());
  }
  EXPECT_LT(std::ssize(Kept(single, 0)), 300);
  for (const MethodDriver* driver : {&whole, &mixed, &single}) {
    const KvSequenceStats stats = driver->stats();
    EXPECT_EQ(stats.bytes, single.BlockBytes());
    EXPECT_EQ(stats.peak_bytes, peak);
    EXPECT_DOUBLE_EQ(stats.kept_share, static_cast<double>(eviction.NumKept(300)) / 300);
    if (rule.per_append) continue;
    for (int64_t head = 0; head < 2; ++head) EXPECT_EQ(Kept(*driver, head), Kept(single, head));
  }
}

TEST_P(StreamingEviction, BudgetsEqualAWalkOverAllLengths) {
  const MethodDriver driver(GetParam().spec);
  const CacheMethod& method = driver.method();
  int64_t most = 0;
  for (int64_t n = 1; n <= 3000; ++n) {
    most = std::max(most, method.BlockBytes(0, n));
    ASSERT_EQ(MostBlockBytes(method, 0, n), most) << n;
  }
  EXPECT_LE(MostBlockBytes(method, 0, int64_t{1} << 40), most + 64 * kTokenBytes) << "bounded";
}

// A cut leaves the masks of the tokens before it, and the rule goes on.
TEST_P(StreamingEviction, GoesOnAfterACut) {
  const Streaming& rule = GetParam();
  MethodDriver driver(rule.spec);
  driver.Append(300);
  const std::vector<int64_t> before = Kept(driver, 0);
  driver.store().Truncate(driver.seq(), 200);
  std::vector<int64_t> expected;
  for (const int64_t token : before) {
    if (token < 200) expected.push_back(token);
  }
  EXPECT_EQ(Kept(driver, 0), expected);
  for (int64_t n = 201; n <= 500; ++n) driver.Append(1);
  const std::vector<int64_t> after = Kept(driver, 0);
  EXPECT_LE(std::ssize(after), PeriodicEviction({rule.capacity, rule.every}).NumKept(500));
  for (const int64_t token : after) {
    EXPECT_TRUE(token >= 200 || std::binary_search(expected.begin(), expected.end(), token));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Specs, StreamingEviction,
    testing::Values(Streaming{"window:sink=3+recent=40", 43, 1},
                    Streaming{"random:capacity=50+every=20", 50, 20},
                    Streaming{"random:capacity=64+every=1+sink=0+recent=5", 64, 1},
                    Streaming{"snapkv:capacity=40+every=16", 40, 16},
                    Streaming{"snapkv:capacity=48+every=32+window=16+pool=avg+kernel=5", 48, 32},
                    Streaming{"pyramidkv:capacity=40+every=16+beta=1", 40, 16},
                    Streaming{"rkv:capacity=48+every=32", 48, 32},
                    Streaming{"h2o:capacity=50", 50, 1, true}),
    [](const auto& row) {
      std::string name = row.param.spec;
      for (char& c : name) c = std::isalnum(c) != 0 ? c : '_';
      return name;
    });

TEST(Eviction, CountsWhatIsKept) {
  EXPECT_EQ(BytesAfter("window:sink=3+recent=40", 30), 30 * kTokenBytes);
  EXPECT_EQ(BytesAfter("window:sink=3+recent=40", 100), 43 * kTokenBytes);
  EXPECT_EQ(BytesAfter("random:capacity=50+every=20", 79), (50 + 19) * kTokenBytes);
  EXPECT_EQ(BytesAfter("random:capacity=50+every=20", 80), 50 * kTokenBytes);
}

TEST(Eviction, NamesWhatLeavesNoRoom) {
  ExpectRefused("random:capacity=16+recent=12", "expected more than the 16 tokens");
}

TEST(RandomEviction, PinsThePromptAndTheNewest) {
  MethodDriver driver("random:capacity=60+every=10+recent=6");
  driver.Append(20);
  driver.Append(15, /*ends_prompt=*/true);
  for (int64_t n = 36; n <= 200; ++n) driver.Append(1);
  const std::vector<int64_t> kept = Kept(driver, 0);
  ASSERT_EQ(kept.size(), 60u);
  for (int64_t token = 0; token < 35; ++token) EXPECT_EQ(kept[static_cast<size_t>(token)], token);
  for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(kept[static_cast<size_t>(54 + i)], 194 + i);
  EXPECT_NE(kept, Kept(driver, 1)) << "heads draw for themselves";

  MethodDriver other("random:capacity=60+every=10+recent=6+seed=1");
  other.Append(35, true);
  other.Append(165);
  EXPECT_NE(Kept(other, 0), kept);
}

TEST(RandomEviction, APromptWithoutRoomIsDrawnFrom) {
  MethodDriver driver("random:capacity=60+every=10+recent=6");
  driver.Append(100, true);
  const std::vector<int64_t> kept = Kept(driver, 0);
  ASSERT_EQ(kept.size(), 60u);
  EXPECT_TRUE(std::equal(kept.begin(), kept.begin() + 4, std::vector<int64_t>{0, 1, 2, 3}.begin()));
  EXPECT_EQ(kept.back(), 99);
}

// Survivors of one step are spread evenly: old and new tokens have the same chance.
TEST(RandomEviction, DrawsEvenly) {
  int64_t low = 0, all = 0;
  for (int64_t seed = 0; seed < 40; ++seed) {
    MethodDriver driver("random:capacity=200+every=400+recent=0+sink=0+seed=" +
                        std::to_string(seed));
    driver.Append(400);
    for (int64_t head = 0; head < 2; ++head) {
      const std::vector<int64_t> kept = Kept(driver, head);
      all += std::ssize(kept);
      low += std::lower_bound(kept.begin(), kept.end(), 200) - kept.begin();
    }
  }
  // Hypergeometric: standard deviation 5 per draw, 45 over 80 draws.
  EXPECT_EQ(all, 80 * 200);
  EXPECT_NEAR(static_cast<double>(low), 8000, 5 * 45);
}

}  // namespace
}  // namespace pmkvq
