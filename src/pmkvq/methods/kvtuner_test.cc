// KVTuner against a scalar reading of its rule.
#include <gtest/gtest.h>

#include <algorithm>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/method_driver.h"
#include "support/scalar_quantizer.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::KeysAndValues;
using testing_support::MethodDriver;
using testing_support::QuantizeChannel;
using testing_support::QuantizeToken;
using testing_support::RowShape;

constexpr RowShape kShape{2, 64};

struct Rule {
  int k_bits = 4;
  int v_bits = 2;
  int64_t group = 64;
  bool per_channel = false;
  int64_t residual = 32;
};

KeysAndValues Expected(const testing_support::Rows& given, int64_t n, const Rule& rule) {
  KeysAndValues expected{given.k, given.v};
  for (int64_t t = 0; t < n; ++t) {
    if (!rule.per_channel) QuantizeToken(expected.first, kShape, t, rule.group, rule.k_bits);
    if (!rule.per_channel || t < n - rule.residual) {
      QuantizeToken(expected.second, kShape, t, rule.group, rule.v_bits);
    }
  }
  if (!rule.per_channel) return expected;
  for (int64_t t = 0; t < n - n % rule.residual; t += rule.group) {
    for (int64_t column = 0; column < 128; ++column) {
      QuantizeChannel(expected.first, kShape, t, rule.group, column / 64, column % 64, rule.k_bits);
    }
  }
  return expected;
}

struct Case {
  const char* spec;
  Rule rule;
};

class KvTunerTest : public testing::TestWithParam<Case> {};

TEST_P(KvTunerTest, PrefillAndDecodeFollowTheRule) {
  const auto& [spec, rule] = GetParam();
  MethodDriver driver(spec);
  for (const int64_t chunk : {1, 30, 1, 95, 1, 1, 128, 1}) {
    driver.Append(chunk);
    const int64_t n = driver.store().NumTokens(driver.seq());
    const KeysAndValues expected = Expected(driver.Given(n), n, rule);
    const KeysAndValues stored = driver.Stored();
    for (size_t i = 0; i < expected.first.size(); ++i) {
      ASSERT_NEAR(stored.first[i], expected.first[i], 1e-5f) << n << " " << i;
      ASSERT_NEAR(stored.second[i], expected.second[i], 1e-5f) << n << " " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Specs, KvTunerTest,
    testing::Values(Case{"kvtuner", {}}, Case{"kvtuner:k=8+v=4", {.k_bits = 8, .v_bits = 4}},
                    Case{"kvtuner:k=2+v=8+group=16", {.k_bits = 2, .v_bits = 8, .group = 16}},
                    Case{"kvtuner:axis=channel", {.group = 32, .per_channel = true}},
                    Case{"kvtuner:axis=channel+k=2+group=64+residual=192",
                         {.k_bits = 2, .group = 64, .per_channel = true, .residual = 192}}));

TEST(KvTuner, BytesByHand) {
  const auto bytes = [](const std::string& spec, int64_t num_tokens) {
    MethodDriver driver(spec);
    driver.Append(num_tokens);
    return driver.BlockBytes();
  };
  // Per token 2 heads: 32 + 4 bytes of K at 4 bits, 16 + 4 of V at 2.
  EXPECT_EQ(bytes("kvtuner", 1), 72 + 40);
  EXPECT_EQ(bytes("kvtuner", 300), 300 * (72 + 40));
  EXPECT_EQ(bytes("kvtuner:k=8+v=8", 300), 300 * 2 * (128 + 8));
  // Groups of 32: 4 of 16 + 4 bytes a token of K, 4 of 8 + 4 of V; at full precision 256.
  EXPECT_EQ(bytes("kvtuner:axis=channel", 300), (288 * 80 + 12 * 256) + (268 * 48 + 32 * 256));
}

TEST(KvTuner, NamesWhatIsWrong) {
  const auto expect = [](const std::string& spec, const std::string& part) {
    ExpectError<InvalidInput>([&] { MethodDriver driver(spec); }, {"--kv", spec, part});
  };
  expect("kvtuner:k=3", "k=3, expected one of 8, 4, 2");
  expect("kvtuner:axis=head", "axis=head, expected one of token, channel");
  expect("kvtuner:group=48", "group 48, expected a divisor of head_dim 64");
  expect("kvtuner:axis=channel+group=16", "group=16, expected one of 128, 64, 32");
  expect("kvtuner:axis=channel+residual=40", "residual=40, expected a multiple of the group 32");
  expect("kvtuner:residual=32", "residual=32, expected axis=channel with it");
  expect("kvtuner:bits=4", "unknown key 'bits' for kvtuner, expected k=, v=, axis=, group=");
}

}  // namespace
}  // namespace pmkvq
