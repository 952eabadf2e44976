// KIVI against a scalar reading of its rule: which tokens are quantised, along which axis.
#include <gtest/gtest.h>

#include <algorithm>

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
using testing_support::RuleCase;

struct Rule {
  int bits;
  int64_t group;
  int64_t residual;
  bool flushes_values;
};

// What a prefill of `n` tokens leaves.
KeysAndValues Expected(const testing_support::Rows& given, int64_t n, const Rule& rule) {
  KeysAndValues expected{given.k, given.v};
  const int64_t keys = n - n % rule.residual;
  const int64_t values = rule.flushes_values ? keys : std::max<int64_t>(0, n - rule.residual);
  for (int64_t token = 0; token < keys; token += rule.group) {
    for (int64_t head = 0; head < kMethodShape.heads; ++head) {
      for (int64_t channel = 0; channel < kMethodShape.dim; ++channel) {
        QuantizeChannel(expected.first, kMethodShape, token, rule.group, head, channel, rule.bits);
      }
    }
  }
  for (int64_t token = 0; token < values; ++token) {
    QuantizeToken(expected.second, kMethodShape, token, std::min(rule.group, kMethodShape.dim),
                  rule.bits);
  }
  return expected;
}

using Case = RuleCase<Rule>;

class KiviTest : public testing::TestWithParam<Case> {};

TEST_P(KiviTest, PrefillAndDecodeFollowTheRule) {
  ExpectRule(GetParam(), {1, 30, 1, 95, 1, 1, 128, 1, 200, 1, 1}, Expected);
}

INSTANTIATE_TEST_SUITE_P(Specs, KiviTest,
                         testing::Values(Case{"kivi", {2, 32, 128, false}},
                                         Case{"kivi:bits=4+group=128", {4, 128, 128, false}},
                                         Case{"kivi:residual=32", {2, 32, 32, false}},
                                         Case{"kivi:group=64+residual=192", {2, 64, 192, false}},
                                         Case{"kivi:reference+bits=4", {4, 128, 128, true}}));

TEST(Kivi, BytesByHand) {
  // A token at full precision: 2 heads * 64 * 2 = 256 bytes of K and as many of V.
  // A quantised one at 2 bits, G = 32: 128 values take 32 bytes of codes and 4 pairs of 4
  // bytes, 48.
  EXPECT_EQ(BytesAfter("kivi", 1), 512);
  EXPECT_EQ(BytesAfter("kivi", 127), 127 * 512);
  EXPECT_EQ(BytesAfter("kivi", 128), 128 * 48 + 128 * 256);
  EXPECT_EQ(BytesAfter("kivi", 129), (128 * 48 + 256) + (48 + 128 * 256));
  EXPECT_EQ(BytesAfter("kivi", 300), (256 * 48 + 44 * 256) + (172 * 48 + 128 * 256));
  // G = 128: keys have one pair for 128 tokens of each of 128 channels: 32 + 4 bytes a token;
  // values one for 64 channels: 32 + 8.
  EXPECT_EQ(BytesAfter("kivi:reference", 300), (256 * 36 + 44 * 256) + (256 * 40 + 44 * 256));
  EXPECT_EQ(BytesAfter("kivi:group=128+bits=4", 300),
            (256 * 68 + 44 * 256) + (172 * 72 + 128 * 256));
}

TEST(Kivi, ConstantChannelsAndTokensStayFinite) {
  MethodDriver driver("kivi");
  std::vector<float> zeros(4 * kMethodShape.dim, 0.0f);
  std::vector<float> out(4 * kMethodShape.dim);
  for (int64_t n = 0; n < 300; ++n) {
    ASSERT_EQ(driver.store().Reserve(driver.seq(), 1), ReserveResult::kReserved);
    driver.store().BeginForward({{driver.seq(), 1}});
    driver.store().AppendAndAttend(0, zeros.data(), zeros.data(), zeros.data(), out.data());
    driver.store().EndForward();
    ASSERT_EQ(out, zeros);
  }
  EXPECT_EQ(driver.Stored().first,
            std::vector<float>(300 * kMethodShape.heads * kMethodShape.dim, 0.0f));
}

TEST(Kivi, NamesWhatIsWrong) {
  ExpectRefused("kivi:bits=3", "bits=3, expected one of 4, 2");
  ExpectRefused("kivi:group=16", "group=16, expected one of 128, 64, 32");
  ExpectRefused("kivi:residual=16", "residual=16, expected a whole number in [32, 4096]");
  ExpectRefused("kivi:residual=80", "residual=80, expected a multiple of the group 32");
  ExpectRefused("kivi:refrence",
                "unknown word 'refrence' for kivi, expected bits=, group=, residual=, "
                "reference");
}

}  // namespace
}  // namespace pmkvq
