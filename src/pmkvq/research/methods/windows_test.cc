// Windows: which tokens leave them, by hand; groups of keys that straddle pages.
#include "pmkvq/research/methods/windows.h"

#include <gtest/gtest.h>

#include "pmkvq/base/error.h"
#include "support/expect_error.h"
#include "support/method_driver.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::Rows;

TEST(TokenWindow, CountsWhatIsQuantised) {
  const TokenWindow sliding{.sink = 0, .recent = 100, .block = 1};
  EXPECT_EQ(sliding.NumQuantized(0), 0);
  EXPECT_EQ(sliding.NumQuantized(100), 0);
  EXPECT_EQ(sliding.NumQuantized(101), 1);
  const TokenWindow flushed{.sink = 32, .recent = 0, .block = 128};
  EXPECT_EQ(flushed.NumQuantized(20), 0);
  EXPECT_EQ(flushed.NumQuantized(159), 0);
  EXPECT_EQ(flushed.NumQuantized(160), 128);
  EXPECT_EQ(flushed.QuantizedEnd(287), 160);
  EXPECT_EQ(flushed.QuantizedEnd(288), 288);
  const TokenWindow both{.sink = 4, .recent = 10, .block = 8};
  EXPECT_EQ(both.NumQuantized(21), 0);
  EXPECT_EQ(both.NumQuantized(22), 8);
  EXPECT_EQ(both.QuantizedEnd(30), 20);
}

TEST(TokenWindow, BytesByHand) {
  MethodContext context;
  context.geometry = {1, 4, 2, 64};  // 128 values, 256 bytes, a token.
  const TokenWindow window{.sink = 32, .recent = 0, .block = 128};
  const AffineFormat format{2, DType::kF16};
  EXPECT_EQ(WindowedBytes(context, format, 128, window, 0), 0);
  EXPECT_EQ(WindowedBytes(context, format, 128, window, 159), 159 * 256);
  // 128 groups of 32 bytes of codes and 4 of metadata.
  EXPECT_EQ(WindowedBytes(context, format, 128, window, 170), 128 * 36 + 42 * 256);
}

// Keeps keys in blocks of 24 tokens behind a sink of 120: the group of tokens 120 - 143 straddles
// the first two pages.
class Straddling final : public CacheMethod {
 public:
  void OnAppend(int64_t, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    DamageKeyChannels(format, 24, window, tokens.first, block);
  }
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override { return num_tokens; }
  ByteGrowth Growth(int64_t) const override { return {}; }

  AffineFormat format{4, DType::kF16};
  TokenWindow window{.sink = 120, .recent = 0, .block = 24};
};

TEST(TokenWindow, GroupsOfKeysMayStraddlePages) {
  SimulatedConfig config;
  config.geometry = {1, 2, 2, 16};
  config.budget_bytes = {1000};
  const auto method = std::make_shared<Straddling>();
  SimulatedKvCache cache(config, method);
  const SequenceId seq = *cache.Open();
  const Rows rows = testing_support::MakeRows(config.geometry, 5, 0, 0, 150);
  std::vector<float> out(rows.q.size());
  ASSERT_EQ(cache.Reserve(seq, 150), ReserveResult::kReserved);
  cache.BeginForward({{seq, 150}});
  cache.AppendAndAttend(0, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
  cache.EndForward();
  for (int64_t column = 0; column < 32; ++column) {
    std::vector<float> expected;
    for (int64_t t = 0; t < 150; ++t) {
      expected.push_back(ToFloat(ToF16(rows.k[static_cast<size_t>(t * 32 + column)])));
    }
    DamageGroup(method->format, 24, 1, expected.data() + 120);
    for (int64_t t = 0; t < 150; ++t) {
      ASSERT_EQ(cache.Block(seq, 0).Key(t, column / 16)[column % 16],
                expected[static_cast<size_t>(t)])
          << t << " " << column;
    }
  }
}

TEST(TokenWindow, ResidualIsAMultipleOfTheGroup) {
  EXPECT_EQ(ReadResidual(ParseMethodSpec("x:residual=96"), 128, 32), 96);
  EXPECT_EQ(ReadResidual(ParseMethodSpec("x"), 128, 32), 128);
  ExpectError<InvalidInput>([] { ReadResidual(ParseMethodSpec("x:residual=100"), 128, 32); },
                            {"--kv", "residual=100, expected a multiple of the group 32"});
  ExpectError<InvalidInput>([] { ReadResidual(ParseMethodSpec("x:residual=8"), 128, 32); },
                            {"--kv", "residual=8, expected a multiple of the group 32"});
}

}  // namespace
}  // namespace pmkvq
