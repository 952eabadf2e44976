// Methods that evict, against scalar readings of their rules: who is kept, and what that takes.
#include "pmkvq/research/methods/eviction.h"

#include <gtest/gtest.h>

#include <algorithm>

#include "support/evicting_driver.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
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

// What is kept does not depend on the chunks, its number is that of the rule, and bytes follow it.
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

// After a cut the masks of what is left stay, and the rule goes on.
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

INSTANTIATE_TEST_SUITE_P(Specs, StreamingEviction,
                         testing::Values(Streaming{"window:sink=3+recent=40", 43, 1}),
                         [](const auto& row) {
                           std::string name = row.param.spec;
                           for (char& c : name) c = std::isalnum(c) != 0 ? c : '_';
                           return name;
                         });

TEST(Eviction, CountsWhatIsKept) {
  EXPECT_EQ(BytesAfter("window:sink=3+recent=40", 30), 30 * kTokenBytes);
  EXPECT_EQ(BytesAfter("window:sink=3+recent=40", 100), 43 * kTokenBytes);
}

}  // namespace
}  // namespace pmkvq
