// Kitty against a scalar reading of its rule: which channels are boosted in which page, which
// tokens wait in which buffer.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectAfterEachAppend;
using testing_support::ExpectRefused;
using testing_support::KeysAndValues;
using testing_support::kMethodShape;
using testing_support::MethodDriver;
using testing_support::QuantizeChannel;
using testing_support::QuantizeToken;

// Of 64 channels those that at least 64 - `count` others do not exceed in mean |k|.
bool IsBoosted(const std::vector<float>& keys, int64_t page, int64_t head, int64_t channel,
               int64_t count) {
  const auto mean = [&](int64_t c) {
    double sum = 0;
    for (int64_t t = page; t < page + 128; ++t) {
      sum += std::abs(double{keys[kMethodShape.At(t, head, c)]});
    }
    return sum / 128;
  };
  int64_t num_larger = 0;
  for (int64_t other = 0; other < kMethodShape.dim; ++other) {
    if (mean(other) > mean(channel)) ++num_larger;
  }
  return num_larger < count;
}

KeysAndValues Expected(const testing_support::Rows& given, int64_t n, int64_t sink,
                       int64_t num_boosted) {
  KeysAndValues expected{given.k, given.v};
  for (int64_t page = sink; page + 128 <= n; page += 128) {
    for (int64_t head = 0; head < kMethodShape.heads; ++head) {
      for (int64_t channel = 0; channel < kMethodShape.dim; ++channel) {
        const int bits = IsBoosted(given.k, page, head, channel, num_boosted) ? 4 : 2;
        QuantizeChannel(expected.first, kMethodShape, page, 128, head, channel, bits);
      }
    }
  }
  // A page of values is quantised when the 128 tokens behind it are in the ring.
  for (int64_t page = sink; page + 256 <= n; page += 128) {
    for (int64_t i = 0; i < 128; ++i) QuantizeToken(expected.second, kMethodShape, page + i, 64, 2);
  }
  return expected;
}

struct Case {
  const char* spec;
  int64_t sink;
  int64_t num_boosted;
};

class KittyTest : public testing::TestWithParam<Case> {};

TEST_P(KittyTest, PrefillAndDecodeFollowTheRule) {
  const auto& [spec, sink, num_boosted] = GetParam();
  MethodDriver driver(spec);
  ExpectAfterEachAppend(
      driver, {20, 139, 1, 1, 126, 1, 1, 250, 1}, 1e-5f,
      [sink = sink, num_boosted = num_boosted](const testing_support::Rows& given, int64_t n) {
        return Expected(given, n, sink, num_boosted);
      });
}

INSTANTIATE_TEST_SUITE_P(Specs, KittyTest,
                         testing::Values(Case{"kitty", 32, 8}, Case{"kitty:boost=0.25", 32, 16},
                                         Case{"kitty:boost=0.1+sink=0", 0, 6},
                                         Case{"kitty:boost=0", 32, 0},
                                         Case{"kitty:boost=1+sink=3", 3, 64}));

TEST(Kitty, BytesByHand) {
  // A token at full precision: 2 heads * 64 * 2 = 256 bytes of K and as many of V. Sink and buffer
  // of both, and the ring of V: (160 + 160 + 128) tokens.
  constexpr int64_t kBuffers = 448 * 256;
  // A page of K: the first plane of 128 channels * 128 tokens / 4, the second of 16 channels, 4
  // bytes of metadata and a rank for each channel. Of V: 128 * 128 / 4, and 4 for each token and
  // head.
  constexpr int64_t kKeyPage = 4096 + 16 * 32 + 128 * 4 + 128;
  constexpr int64_t kValuePage = 4096 + 128 * 2 * 4;
  EXPECT_EQ(BytesAfter("kitty", 1), kBuffers);
  EXPECT_EQ(BytesAfter("kitty", 159), kBuffers);
  EXPECT_EQ(BytesAfter("kitty", 160), kBuffers + kKeyPage);
  EXPECT_EQ(BytesAfter("kitty", 287), kBuffers + kKeyPage);
  EXPECT_EQ(BytesAfter("kitty", 288), kBuffers + 2 * kKeyPage + kValuePage);
  EXPECT_EQ(BytesAfter("kitty", 600), kBuffers + 4 * kKeyPage + 3 * kValuePage);
  EXPECT_EQ(BytesAfter("kitty:boost=0.25", 160), kBuffers + kKeyPage + 16 * 32);
  // Nothing boosted, nothing ranked.
  EXPECT_EQ(BytesAfter("kitty:boost=0+sink=0", 128), kBuffers - 64 * 256 + 4096 + 128 * 4);
}

TEST(Kitty, NamesWhatIsWrong) {
  ExpectRefused("kitty:boost=12.5", "boost=12.5, expected a number in [0, 1]");
  ExpectRefused("kitty:sink=-1", "sink=-1, expected a whole number in [0, 4096]");
  ExpectRefused("kitty:bits=2", "unknown key 'bits' for kitty, expected boost=, sink=");
}

}  // namespace
}  // namespace pmkvq
