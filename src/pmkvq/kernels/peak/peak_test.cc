#include "pmkvq/kernels/peak/peak.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "pmkvq/base/random.h"
#include "pmkvq/kernels/peak/peak_vector.h"
#include "support/target_suite.h"

namespace pmkvq {
namespace {

PMKVQ_TARGET_SUITE(PeakTest, internal::PeakKernelTarget, "kernels/peak/peak_vector.cc");

std::vector<uint64_t> RandomWords(size_t count) {
  Random random(5);
  std::vector<uint64_t> words(count);
  for (uint64_t& word : words) word = random.Next();
  return words;
}

TEST_P(PeakTest, ReadsEveryWordOnce) {
  const std::vector<uint64_t> words = RandomWords(1003);
  for (const size_t count : {0u, 1u, 7u, 31u, 32u, 33u, 1003u}) {
    EXPECT_EQ(
        internal::SumWordsVector(words.data(), count),
        std::accumulate(words.begin(), words.begin() + static_cast<int64_t>(count), uint64_t{0}));
  }
}

TEST(PeakTest, ReadsTheSameOnAnyNumberOfThreads) {
  const std::vector<uint64_t> words = RandomWords((size_t{3} << 17) + 11);
  const uint64_t expected = std::accumulate(words.begin(), words.end(), uint64_t{0});
  EXPECT_EQ(SumWords(words, 1), expected);
  EXPECT_EQ(SumWords(words, 3), expected);
}

TEST(PeakTest, CopyCopiesAll) {
  const std::vector<uint64_t> source = RandomWords((size_t{2} << 17) + 5);
  std::vector<uint64_t> target(source.size());
  EXPECT_GT(MeasureCopyBandwidth(source, target, 2), 1e6);
  EXPECT_EQ(source, target);
}

// The chain x -> x / 2 + 1 ends at 2 from any start.
TEST_P(PeakTest, FloatChainsDoTheirSteps) {
  const internal::PeakWork one = internal::RunFloatChains(1, 1.0f);
  // Sum over chains i = 1 .. 12 of i / 2 + 1.
  EXPECT_EQ(one.result, 12.0 * 13.0 / 4.0 + 12.0);
  const internal::PeakWork many = internal::RunFloatChains(100, 1.0f);
  EXPECT_NEAR(many.result, 24.0, 1e-4);
  EXPECT_EQ(many.operations, 100 * one.operations);
}

TEST_P(PeakTest, Int8ChainsDependOnEveryStep) {
  const internal::PeakWork two = internal::RunInt8Chains(2, 3);
  EXPECT_NE(two.result, internal::RunInt8Chains(3, 3).result);
  EXPECT_NE(two.result, internal::RunInt8Chains(2, 5).result);
  EXPECT_EQ(internal::RunInt8Chains(20, 3).operations, 10 * two.operations);
}

// No processor does fewer than one operation in a thousand cycles, nor more than 4096 a cycle: a
// loop that the compiler removed, or a wrong unit, lies far outside.
TEST(PeakTest, RatesArePlausible) {
  const std::vector<uint64_t> words = RandomWords(size_t{1} << 21);
  for (const int threads : {1, 2}) {
    const double float_peak = MeasureFloatPeak(threads);
    const double int8_peak = MeasureInt8Peak(threads);
    const double read = MeasureReadBandwidth(words, threads);
    for (const double rate : {float_peak, int8_peak, read}) {
      EXPECT_GT(rate, 1e7);
      EXPECT_LT(rate, 4e13);
    }
  }
}

}  // namespace
}  // namespace pmkvq
