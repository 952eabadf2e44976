// MixKVQ against a scalar reading of its rule: which channels have which width in which block.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::BytesAfter;
using testing_support::ExpectRefused;
using testing_support::ExpectRule;
using testing_support::KeysAndValues;
using testing_support::kMethodShape;
using testing_support::MethodDriver;
using testing_support::QuantizeChannel;
using testing_support::QuantizeToken;
using testing_support::Rows;
using testing_support::RuleCase;

constexpr int64_t kHeads = 4;  // Of queries; 0 and 1 share KV head 0.

struct Rule {
  int64_t num_high = 8;  // Of 128 channels.
  int64_t num_mid = 32;
  double tau16 = 0;
  double tau4 = 0;
  int64_t group = 32;
  int64_t residual = 128;
  int64_t sink = 0;
};

// A_d of channel `column` of [Hkv, D] in the block from `first` on.
double Salience(const Rows& given, int64_t first, int64_t residual, int64_t column) {
  const int64_t head = column / kMethodShape.dim;
  const int64_t channel = column % kMethodShape.dim;
  const int64_t end = first + residual;
  double sum = 0;
  for (int64_t t = 0; t < end; ++t) {
    for (int64_t of_group = 0; of_group < 2; ++of_group) {
      const int64_t row = t * kHeads + head * 2 + of_group;
      sum += std::abs(double{given.q[static_cast<size_t>(row * kMethodShape.dim + channel)]});
    }
  }
  std::vector<float> keys;
  for (int64_t t = first; t < end; ++t) keys.push_back(given.k[kMethodShape.At(t, head, channel)]);
  const auto [lowest, highest] = std::minmax_element(keys.begin(), keys.end());
  return sum / static_cast<double>(2 * end) * (double{*highest} - double{*lowest}) / 3;
}

int BitsOf(const std::vector<double>& salience, size_t column, const Rule& rule) {
  int64_t rank = 0;
  for (const double other : salience) rank += other > salience[column] ? 1 : 0;
  if (rank < rule.num_high && salience[column] > rule.tau16) return 16;
  return rank < rule.num_high + rule.num_mid && salience[column] > rule.tau4 ? 4 : 2;
}

KeysAndValues Expected(const Rows& given, int64_t n, const Rule& rule) {
  KeysAndValues expected{given.k, given.v};
  for (int64_t first = rule.sink; first + rule.residual <= n; first += rule.residual) {
    std::vector<double> salience;
    for (int64_t column = 0; column < 128; ++column) {
      salience.push_back(Salience(given, first, rule.residual, column));
    }
    for (int64_t column = 0; column < 128; ++column) {
      const int bits = BitsOf(salience, static_cast<size_t>(column), rule);
      for (int64_t t = first; t < first + rule.residual && bits < 16; t += rule.group) {
        QuantizeChannel(expected.first, kMethodShape, t, rule.group, column / 64, column % 64,
                        bits);
      }
    }
    for (int64_t t = first; t < first + rule.residual; ++t) {
      QuantizeToken(expected.second, kMethodShape, t, std::min<int64_t>(rule.group, 64), 2);
    }
  }
  return expected;
}

using Case = RuleCase<Rule>;

class MixKvqTest : public testing::TestWithParam<Case> {};

TEST_P(MixKvqTest, PrefillAndDecodeFollowTheRule) {
  ExpectRule(GetParam(), {5, 90, 1, 31, 1, 300, 1, 82, 1}, Expected);
}

// The driver's queries have a mean |q| of 1.06 and its keys a range of 4, so that A_d is about 1.4
// and each of the thresholds is passed by some channels.
INSTANTIATE_TEST_SUITE_P(
    Specs, MixKvqTest,
    testing::Values(Case{"mixkvq", {}},
                    Case{"mixkvq:high=0+mid=0.5", {.num_high = 0, .num_mid = 64}},
                    Case{"mixkvq:high=0.5+mid=0.5+tau16=1.42+tau4=1.38",
                         {.num_high = 64, .num_mid = 64, .tau16 = 1.42, .tau4 = 1.38}},
                    Case{"mixkvq:group=64+residual=64+sink=16",
                         {.group = 64, .residual = 64, .sink = 16}}));

TEST(MixKvq, ThresholdsDemote) {
  // What the case above relies on: all three widths appear among the channels.
  MethodDriver driver("mixkvq:high=0.5+mid=0.5+tau16=1.42+tau4=1.38");
  driver.Append(128);
  const Rows given = driver.Given(128);
  std::vector<double> salience;
  for (int64_t column = 0; column < 128; ++column) {
    salience.push_back(Salience(given, 0, 128, column));
  }
  const Rule rule{.num_high = 64, .num_mid = 64, .tau16 = 1.42, .tau4 = 1.38};
  std::map<int, int> counts;
  for (size_t i = 0; i < salience.size(); ++i) ++counts[BitsOf(salience, i, rule)];
  EXPECT_GT(counts[16], 0);
  EXPECT_GT(counts[4], 0);
  EXPECT_GT(counts[2], 0);
}

TEST(MixKvq, ForgetsNoQueriesWhenTokensAreCut) {
  // A block that is stored twice is ranked with the queries of both times. Of the first channel the
  // queries are large at first, of the second they are later; keys are alike.
  const auto keeps_first = [](bool cut) {
    MethodDriver driver("mixkvq:high=0.0078125+mid=0", {1, 1, 1, 128});
    const auto append = [&](size_t large) {
      std::vector<float> q(128 * 128, 0.0f), kv(128 * 128), out(128 * 128);
      for (size_t t = 0; t < 128; ++t) {
        q[t * 128 + large] = large == 0 ? 3.0f : 1.0f;
        kv[t * 128] = kv[t * 128 + 1] = static_cast<float>(t);
      }
      ASSERT_EQ(driver.store().Reserve(driver.seq(), 128), ReserveResult::kReserved);
      driver.store().BeginForward({{driver.seq(), 128}});
      driver.store().AppendAndAttend(0, q.data(), kv.data(), kv.data(), out.data());
      driver.store().EndForward();
    };
    if (cut) {
      append(0);
      driver.store().Truncate(driver.seq(), 0);
    }
    append(1);
    return driver.block().Key(1, 0)[0] == 1.0f;  // Exact: at 16 bits.
  };
  EXPECT_FALSE(keeps_first(false));
  EXPECT_TRUE(keeps_first(true));
}

TEST(MixKvq, BytesByHand) {
  // A token at full precision: 2 heads * 64 * 2 = 256 bytes of K and as many of V. The means of
  // |q|: 128 floats.
  EXPECT_EQ(BytesAfter("mixkvq", 1), 512 + 512);
  EXPECT_EQ(BytesAfter("mixkvq", 127), 127 * 512 + 512);
  // A block of K: 8 channels * 128 tokens at 2 bytes; 32 channels at 4 bits, 4 groups of 16 + 4
  // bytes each; 88 at 2 bits, 4 groups of 8 + 4; 128 tags of 2 bits.
  constexpr int64_t kKeys = 8 * 256 + 32 * 4 * 20 + 88 * 4 * 12 + 32;
  constexpr int64_t kValues = 128 * 4 * 12;
  EXPECT_EQ(BytesAfter("mixkvq", 128), kKeys + kValues + 512);
  EXPECT_EQ(BytesAfter("mixkvq", 300), 2 * (kKeys + kValues) + 44 * 512 + 512);
  EXPECT_EQ(BytesAfter("mixkvq:sink=32", 300), 2 * (kKeys + kValues) + 44 * 512 + 512);
  EXPECT_EQ(BytesAfter("mixkvq:sink=64", 300), kKeys + kValues + 172 * 512 + 512);
  // Room that thresholds leave empty counts.
  EXPECT_EQ(BytesAfter("mixkvq:tau16=9+tau4=9", 128), kKeys + kValues + 512);
  EXPECT_EQ(BytesAfter("mixkvq:high=0+mid=0", 128), 128 * 4 * 12 + 32 + kValues + 512);
}

TEST(MixKvq, NamesWhatIsWrong) {
  ExpectRefused("mixkvq:high=2", "high=2, expected a number in [0, 1]");
  ExpectRefused("mixkvq:high=0.5+mid=0.6",
                "high 0.5 and mid 0.6 are shares of the channels, expected at most 1 together");
  ExpectRefused("mixkvq:mid=0.97", "high 0.0625 and mid 0.97 are shares");
  ExpectRefused("mixkvq:tau16=-1", "tau16=-1, expected a number in [0, 1000000]");
  ExpectRefused("mixkvq:residual=100", "residual=100, expected a multiple of the group 32");
  ExpectRefused(
      "mixkvq:tau=1",
      "unknown key 'tau' for mixkvq, expected high=, mid=, tau16=, tau4=, group=, residual=, "
      "sink=");
}

}  // namespace
}  // namespace pmkvq
