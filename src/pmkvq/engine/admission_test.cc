#include "pmkvq/engine/admission.h"

#include <gtest/gtest.h>

#include <cmath>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;

constexpr int64_t kMaxLen = 4096;

CacheConfig PoolOf(int64_t bytes, int floor_bits = 4) {
  CacheConfig config;
  config.geometry = UniformKvGeometry{2, 4, 2, 128};
  config.policy = PolicyKind::kOldestFirst;
  config.floor_bits = floor_bits;
  config.pool.bytes = bytes;
  config.budget_bytes = SplitBudget(bytes, EvenWeights(config));
  return config;
}

int64_t BytesAtWidth(const CacheConfig& config, int64_t num_tokens, int bits) {
  return 2 * BlockBytes(config, 0, num_tokens, bits, bits);
}

TEST(LengthForecastTest, BeforeAnyAnswerItIsThePrior) {
  const LengthForecast forecast(32768);
  EXPECT_EQ(forecast.Survival(0), 1);
  EXPECT_NEAR(forecast.Survival(6144), 0.5, 1e-9);
  // Half as long: z = ln(2) / 0.9.
  EXPECT_NEAR(forecast.Survival(3072), 0.5 * std::erfc(-std::log(2.0) / 0.9 / std::sqrt(2.0)),
              1e-9);
}

// Without censored lengths it is the part of lengths that is larger.
TEST(LengthForecastTest, ManyLengthsOutweighThePrior) {
  LengthForecast forecast(4096);
  Random random(1);
  for (int i = 0; i < 4000; ++i) {
    forecast.Add(static_cast<int64_t>(500 + random.Below(1000)), false);
  }
  EXPECT_NEAR(forecast.Survival(512), 1, 0.02);
  EXPECT_NEAR(forecast.Survival(1024), 0.476, 0.03);
  EXPECT_LT(forecast.Survival(1536), 0.02);
}

// Half of the answers are cut at 1,000 tokens; that says nothing against longer ones.
TEST(LengthForecastTest, CutLengthsAreOnlyLowerBounds) {
  LengthForecast cut(4096);
  LengthForecast as_ends(4096);
  for (int i = 0; i < 1000; ++i) {
    for (LengthForecast* const forecast : {&cut, &as_ends}) {
      forecast->Add(2000, false);
      forecast->Add(1000, forecast == &cut);
    }
  }
  EXPECT_GT(cut.Survival(1800), 0.97);
  EXPECT_NEAR(as_ends.Survival(1800), 0.5, 0.02);
}

TEST(LengthForecastTest, OldLengthsAreForgotten) {
  LengthForecast forecast(4096);
  for (int i = 0; i < 2000; ++i) forecast.Add(3000, false);
  EXPECT_GT(forecast.Survival(1000), 0.97);
  for (int i = 0; i < 2000; ++i) forecast.Add(100, false);
  EXPECT_LT(forecast.Survival(1000), 0.02);
}

TEST(AdmissionTest, ExpectedBytesAreThoseOfTheWorstTimeToCome) {
  const CacheConfig config = PoolOf(1 << 24);
  Admission admission(config, PoolAdmission::kExpected, 8, kMaxLen);
  for (int i = 0; i < 2000; ++i) admission.AddLength(1000, false);
  // Certain to draw 1,000 tokens: it is largest right before its end.
  const PoolLoad fresh = {200, 0, kMaxLen, 0};
  EXPECT_NEAR(admission.ExpectedBytes({&fresh, 1}),
              static_cast<double>(BytesAtWidth(config, 200 + 768, 8)),
              0.03 * static_cast<double>(BytesAtWidth(config, 200 + 768, 8)));
  // max_tokens cuts it.
  const PoolLoad bounded = {200, 0, 210, 0};
  EXPECT_EQ(admission.ExpectedBytes({&bounded, 1}),
            static_cast<double>(BytesAtWidth(config, 200, 8)));
  // Two that do not grow at the same time are less than the sum.
  const PoolLoad old = {1100, 900, kMaxLen, 0};
  const std::vector<PoolLoad> both = {fresh, old};
  EXPECT_LT(admission.ExpectedBytes(both),
            admission.ExpectedBytes({&fresh, 1}) + admission.ExpectedBytes({&old, 1}));
}

TEST(AdmissionTest, TheTargetMayLieBetweenWidths) {
  const CacheConfig config = PoolOf(1 << 24);
  const PoolLoad load = {1000, 0, 1000, 0};
  const auto bytes_at = [&](double bits) {
    return Admission(config, PoolAdmission::kExpected, bits, kMaxLen).ExpectedBytes({&load, 1});
  };
  EXPECT_EQ(bytes_at(16), static_cast<double>(BytesAtWidth(config, 1000, 16)));
  EXPECT_EQ(bytes_at(8), static_cast<double>(BytesAtWidth(config, 1000, 8)));
  EXPECT_NEAR(bytes_at(6),
              (static_cast<double>(BytesAtWidth(config, 1000, 8)) +
               static_cast<double>(BytesAtWidth(config, 1000, 4))) /
                  2,
              1);
  const PoolLoad wide = {1000, 0, 1000, 16};
  EXPECT_EQ(Admission(config, PoolAdmission::kExpected, 8, kMaxLen).ExpectedBytes({&wide, 1}),
            bytes_at(16));
}

TEST(AdmissionTest, GuaranteedCountsAllThatMayBeDrawnAtTheFloor) {
  const CacheConfig sizes = PoolOf(1 << 24);
  const PoolLoad load = {100, 0, 2000, 0};
  const int64_t one = FloorBytes(sizes, 2000);
  const std::vector<PoolLoad> running = {load, load};
  for (const int64_t missing : {0, 1}) {
    const Admission admission(PoolOf(3 * one - missing), PoolAdmission::kGuaranteed, 8, kMaxLen);
    EXPECT_EQ(admission.GuaranteedBytes(running), 2 * one);
    EXPECT_EQ(admission.Admits(running, load, false), missing == 0);
    EXPECT_TRUE(admission.Admits({}, load, false));
  }
  EXPECT_EQ(Admission(sizes, PoolAdmission::kExpected, 8, kMaxLen).SmallestPool(2000, 8),
            BytesAtWidth(sizes, 2000, 8));
}

TEST(AdmissionTest, AFloorAtTheTargetIsRefused) {
  for (const auto& [floor, target, name] :
       {std::tuple(8, 8.0, "--kv-floor"), std::tuple(4, 4.0, "--kv-floor"),
        std::tuple(2, 2.0, "--kv-target"), std::tuple(2, 17.0, "--kv-target"),
        std::tuple(2, std::nan(""), "--kv-target")}) {
    ExpectError<InvalidInput>(
        [&, f = floor, t = target] {
          const Admission admission(PoolOf(1 << 24, f), PoolAdmission::kExpected, t, kMaxLen);
        },
        {name});
  }
  CacheConfig fixed = PoolOf(1 << 24, 8);
  fixed.close_bits = 8;
  const Admission admission(fixed, PoolAdmission::kExpected, 4, kMaxLen);
  const PoolLoad load = {1000, 0, 1000, 0};
  EXPECT_EQ(admission.ExpectedBytes({&load, 1}), static_cast<double>(BytesAtWidth(fixed, 1000, 8)));
}

TEST(AdmissionTest, TheVictimIsTheLeastImportantThenTheOneWithTheFewestTokens) {
  EXPECT_EQ(ChooseVictim({}), std::nullopt);
  const std::vector<PoolHolder> one = {{1, 0, 5, 0}};
  EXPECT_EQ(ChooseVictim(one), std::nullopt) << "alone in the pool";
  const std::vector<PoolHolder> lengths = {{1, 0, 50, 0}, {2, 0, 5, 0}, {3, 0, 7, 0}};
  EXPECT_EQ(ChooseVictim(lengths), 2);
  const std::vector<PoolHolder> equal = {{1, 0, 5, 0}, {2, 0, 5, 0}};
  EXPECT_EQ(ChooseVictim(equal), 2) << "the youngest";
  const std::vector<PoolHolder> priorities = {{1, 10, 50, 0}, {2, 0, 5, 0}, {3, -1, 7, 0}};
  EXPECT_EQ(ChooseVictim(priorities), 1);
  const std::vector<PoolHolder> spared = {{1, 0, 50, 0}, {2, 0, 5, kMostPreemptions}};
  EXPECT_EQ(ChooseVictim(spared), 1);
  const std::vector<PoolHolder> all_spared = {{1, 0, 50, 3}, {2, 0, 5, 2}};
  EXPECT_EQ(ChooseVictim(all_spared), 2);
}

}  // namespace
}  // namespace pmkvq
