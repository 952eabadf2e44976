#include "pmkvq/kernels/sampling/sampling.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace pmkvq {
namespace {

// Token frequencies over many draws.
std::vector<double> Frequencies(const SamplingParams& params, const std::vector<float>& logits,
                                int num_draws, uint64_t seed = 1) {
  Random random(seed);
  std::vector<double> counts(logits.size());
  for (int i = 0; i < num_draws; ++i) {
    const int32_t token =
        SampleToken(params, logits.data(), static_cast<int64_t>(logits.size()), random).value();
    counts[static_cast<size_t>(token)] += 1.0 / num_draws;
  }
  return counts;
}

// What the filters should leave, by sorting everything and taking the definitions literally.
std::vector<double> ExpectedDistribution(const SamplingParams& params,
                                         const std::vector<float>& logits) {
  const size_t size = logits.size();
  std::vector<double> p(size);
  const double max = static_cast<double>(*std::max_element(logits.begin(), logits.end()));
  for (size_t i = 0; i < size; ++i) {
    p[i] = std::exp((static_cast<double>(logits[i]) - max) / params.temperature);
  }
  std::vector<size_t> order(size);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  const auto normalize = [&] {
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& value : p) value /= total;
  };
  if (params.top_k > 0) {
    for (size_t r = static_cast<size_t>(params.top_k); r < size; ++r) p[order[r]] = 0.0;
  }
  normalize();
  double mass = 0.0;
  for (const size_t id : order) {
    if (mass >= params.top_p) p[id] = 0.0;
    mass += p[id];
  }
  normalize();
  const double likeliest = p[order[0]];
  for (double& value : p) {
    if (value < params.min_p * likeliest) value = 0.0;
  }
  normalize();
  return p;
}

void ExpectDistribution(const SamplingParams& params, const std::vector<float>& logits) {
  constexpr int kDraws = 20000;
  const std::vector<double> expected = ExpectedDistribution(params, logits);
  const std::vector<double> found = Frequencies(params, logits, kDraws);
  for (size_t i = 0; i < logits.size(); ++i) {
    if (expected[i] == 0.0) {
      EXPECT_EQ(found[i], 0.0) << "token " << i << " was filtered";
    } else {
      // Five standard deviations of a binomial; the seed is fixed.
      const double deviation = std::sqrt(expected[i] * (1.0 - expected[i]) / kDraws);
      EXPECT_NEAR(found[i], expected[i], 5.0 * deviation + 1e-9) << "token " << i;
    }
  }
}

const std::vector<float> kLogits = {0.3f, 2.0f, -1.0f, 1.2f, 0.3f, -4.0f, 1.9f, 0.0f};

TEST(SamplingTest, ArgMaxTakesTheFirstOfEquals) {
  const float values[] = {1.0f, 3.0f, 3.0f, -2.0f};
  EXPECT_EQ(ArgMax(values, 4), 1);
  EXPECT_EQ(ArgMax(values, 1), 0);
  const float inf = std::numeric_limits<float>::infinity();
  const float low[] = {-inf, -inf, -5.0f};
  EXPECT_EQ(ArgMax(low, 3), 2);
}

TEST(SamplingTest, GreedyDrawsNothing) {
  Random random(7);
  Random untouched(7);
  SamplingParams params;
  params.top_k = 3;  // Filters do not matter.
  EXPECT_EQ(SampleToken(params, kLogits.data(), 8, random), 1);
  EXPECT_EQ(random.Next(), untouched.Next());
}

TEST(SamplingTest, OneDrawPerToken) {
  Random random(7);
  Random counted(7);
  SamplingParams params;
  params.temperature = 0.8;
  params.top_k = 5;
  params.top_p = 0.9;
  params.min_p = 0.05;
  EXPECT_TRUE(SampleToken(params, kLogits.data(), 8, random).has_value());
  counted.Next();
  EXPECT_EQ(random.Next(), counted.Next());
}

TEST(SamplingTest, Temperature) {
  for (const double temperature : {0.3, 1.0, 2.5}) {
    SamplingParams params;
    params.temperature = temperature;
    ExpectDistribution(params, kLogits);
  }
  SamplingParams cold;
  cold.temperature = 1e-6;
  EXPECT_NEAR(Frequencies(cold, kLogits, 100)[1], 1.0, 1e-9) << "the limit is greedy";
}

TEST(SamplingTest, TopK) {
  for (const int64_t k : {1, 2, 4, 5, 8, 100}) {
    SamplingParams params;
    params.temperature = 1.0;
    params.top_k = k;
    ExpectDistribution(params, kLogits);  // k = 4 and 5 cut between equal logits 0 and 4.
  }
}

TEST(SamplingTest, TopP) {
  for (const double p : {0.01, 0.5, 0.9, 0.999}) {
    SamplingParams params;
    params.temperature = 0.9;
    params.top_p = p;
    ExpectDistribution(params, kLogits);
  }
}

// The set is the smallest one with *at least* the mass: probabilities 1/2, 1/4, 1/8, 1/8, exact.
TEST(SamplingTest, TopPAtItsBorder) {
  const float ln2 = static_cast<float>(std::log(2.0));
  const std::vector<float> logits = {0.0f, ln2, 0.0f, 2 * ln2};
  SamplingParams params;
  params.temperature = static_cast<double>(ln2) / std::log(2.0);
  params.top_p = 0.74;
  EXPECT_EQ(Frequencies(params, logits, 2000)[0], 0.0);
  EXPECT_EQ(Frequencies(params, logits, 2000)[2], 0.0);
  params.top_p = 0.8;  // One of the two equals: the lower id.
  EXPECT_GT(Frequencies(params, logits, 2000)[0], 0.0);
  EXPECT_EQ(Frequencies(params, logits, 2000)[2], 0.0);
  params.top_p = 0.9;
  EXPECT_GT(Frequencies(params, logits, 2000)[2], 0.0);
}

TEST(SamplingTest, MinP) {
  for (const double p : {0.001, 0.1, 0.5, 1.0}) {
    SamplingParams params;
    params.temperature = 1.1;
    params.min_p = p;
    ExpectDistribution(params, kLogits);
  }
}

TEST(SamplingTest, FiltersTogether) {
  SamplingParams params;
  params.temperature = 0.7;
  params.top_k = 6;
  params.top_p = 0.95;
  params.min_p = 0.1;
  ExpectDistribution(params, kLogits);
  params.top_p = 0.6;  // Of what top-k left.
  params.top_k = 3;
  ExpectDistribution(params, kLogits);
}

// A flat distribution over a large vocabulary: the prefix that top-p keeps is sorted in steps.
TEST(SamplingTest, TopPOfALargeFlatVocabulary) {
  constexpr int kVocab = 3000;
  const std::vector<float> logits(kVocab, 0.5f);
  SamplingParams params;
  params.temperature = 1.0;
  params.top_p = 0.5;
  const std::vector<double> found = Frequencies(params, logits, 3000);
  double low = 0.0;
  for (int i = 0; i < kVocab / 2; ++i) low += found[static_cast<size_t>(i)];
  EXPECT_NEAR(low, 1.0, 1e-9) << "the lower half of the ids among equals";
  EXPECT_GT(*std::max_element(found.begin() + 1400, found.begin() + 1500), 0.0);
}

TEST(SamplingTest, ImpossibleTokensAreNeverDrawn) {
  const float inf = std::numeric_limits<float>::infinity();
  SamplingParams params;
  params.temperature = 100.0;
  const std::vector<double> found = Frequencies(params, {-inf, 0.0f, -inf, 0.0f}, 1000);
  EXPECT_EQ(found[0], 0.0);
  EXPECT_EQ(found[2], 0.0);
  EXPECT_GT(found[1], 0.4);
}

// Logits come from weights and requests: no check may end the program for them.
TEST(SamplingTest, NothingIsDrawnFromLogitsThatAreNoDistribution) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<std::vector<float>> broken = {
      {0.0f, std::nanf(""), 1.0f}, {0.0f, inf, 1.0f}, {inf, inf, -inf}, {-inf, -inf, -inf}};
  for (const std::vector<float>& logits : broken) {
    for (const double temperature : {0.0, 1.0}) {
      Random random(1);
      Random untouched(1);
      SamplingParams params;
      params.temperature = temperature;
      params.top_p = 0.5;
      EXPECT_EQ(SampleToken(params, logits.data(), 3, random), std::nullopt);
      EXPECT_EQ(random.Next(), untouched.Next());
    }
  }
}

TEST(SamplingDeathTest, RefusesBrokenArguments) {
  Random random(1);
  SamplingParams params;
  const float fine[] = {0.0f, 1.0f};
  params.top_p = 0.0;
  EXPECT_DEATH(static_cast<void>(SampleToken(params, fine, 2, random)), "top_p");
}

}  // namespace
}  // namespace pmkvq
