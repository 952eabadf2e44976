// SubGen's samples against golden data, its estimate through the cache's attention.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <set>

#include "pmkvq/research/methods/subgen_rule.h"
#include "support/method_golden.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::ExpectGolden;
using testing_support::ExpectRefused;
using testing_support::MethodDriver;
using testing_support::MethodGolden;

TEST(SubGen, Golden) {
  const MethodGolden golden("subgen");
  const std::vector<float> k = golden.Floats("k");  // [T, D]
  const std::vector<float> v = golden.Floats("v");
  const std::vector<float> coin_k = golden.Floats("coin_k");
  const std::vector<float> coin_v = golden.Floats("coin_v");
  const std::vector<int32_t> cluster_of_token = golden.Integers("cluster_of_token");
  const SubGenRule rule{4, 16, 64, 1.0};
  SubGenHead head;
  for (size_t t = 0; t < 120; ++t) {
    const std::vector<double> for_key(coin_k.begin() + static_cast<std::ptrdiff_t>(t * 4),
                                      coin_k.begin() + static_cast<std::ptrdiff_t>(t * 4 + 4));
    const std::vector<double> for_value(coin_v.begin() + static_cast<std::ptrdiff_t>(t * 16),
                                        coin_v.begin() + static_cast<std::ptrdiff_t>(t * 16 + 16));
    const std::vector<SubGenHead::Cluster> before = head.clusters();
    head.AddKey(rule, static_cast<int64_t>(t), {k.data() + t * 8, 8}, for_key);
    head.AddValue(rule, static_cast<int64_t>(t), {v.data() + t * 8, 8}, for_value);
    const auto joined = static_cast<size_t>(cluster_of_token[t]);
    ASSERT_LT(joined, head.clusters().size());
    EXPECT_EQ(head.clusters()[joined].count, joined < before.size() ? before[joined].count + 1 : 1)
        << t;
  }
  const std::vector<int32_t> counts = golden.Integers("cluster_counts");
  const std::vector<int32_t> samples = golden.Integers("cluster_samples");
  ASSERT_EQ(head.clusters().size(), counts.size());
  for (size_t i = 0; i < counts.size(); ++i) {
    EXPECT_EQ(head.clusters()[i].count, counts[i]);
    for (size_t j = 0; j < 4; ++j) EXPECT_EQ(head.clusters()[i].samples[j], samples[i * 4 + j]);
  }
  const std::vector<int32_t> slots = golden.Integers("value_slots");
  for (size_t i = 0; i < slots.size(); ++i) EXPECT_EQ(head.slots()[i].token, slots[i]);
  EXPECT_NEAR(head.mu(), 1434.946409806596, 1e-3);

  // The two sums, and their quotient, from the weights that attention is given.
  const std::vector<float> q = golden.Floats("q");  // [5, D]
  std::vector<float> numerator;
  std::vector<float> denominator;
  std::vector<float> estimate;
  for (size_t row = 0; row < 5; ++row) {
    std::vector<double> above(8);
    double below = 0;
    for (const SubGenHead::LogWeights& weight : head.Weights(rule)) {
      const auto at = static_cast<size_t>(weight.token) * 8;
      double score = 0;
      for (size_t i = 0; i < 8; ++i) score += double{q[row * 8 + i]} * double{k[at + i]};
      for (size_t i = 0; i < 8; ++i) {
        above[i] += std::exp(score + weight.numerator) * double{v[at + i]};
      }
      below += std::exp(score + weight.denominator);
    }
    denominator.push_back(static_cast<float>(below));
    for (const double x : above) {
      numerator.push_back(static_cast<float>(x));
      estimate.push_back(static_cast<float>(x / below));
    }
  }
  ExpectGolden(numerator, golden.Floats("numerator"));
  ExpectGolden(denominator, golden.Floats("denominator"));
  ExpectGolden(estimate, golden.Floats("estimate"));
}

TEST(SubGen, AFullSetOfClustersTakesEveryKey) {
  const SubGenRule rule{2, 1, 2, 1.0};
  SubGenHead head;
  const std::vector<double> never(2, 1.0);
  for (const float x : {0.0f, 10.0f, 100.0f, 9.5f}) {
    const std::vector<float> key = {x};
    head.AddKey(rule, static_cast<int64_t>(x), key, never);
  }
  ASSERT_EQ(head.clusters().size(), 2u);
  EXPECT_EQ(head.clusters()[0].count, 1);
  EXPECT_EQ(head.clusters()[1].count, 3) << "100 is nearer to 10, though beyond delta";
  EXPECT_EQ(head.clusters()[1].samples, (std::vector<int64_t>{10, 10}));
}

TEST(SubGen, TokensInNoSampleAreGoneAndTheWindowIsExact) {
  MethodDriver driver("subgen:recent=40+values=8+clusters=4+samples=2");
  for (const int64_t chunk : {60, 1, 1, 100, 38}) driver.Append(chunk);
  const SimulatedBlock& block = driver.block();
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t token = 160; token < 200; ++token) EXPECT_TRUE(block.IsKept(token, head));
    EXPECT_LE(block.NumKept(head), 40 + 8 + 4 * 2);
    EXPECT_GT(block.NumKept(head), 40);
  }
  MethodDriver at_once("subgen:recent=40+values=8+clusters=4+samples=2");
  at_once.Append(200);
  MethodDriver other_seed("subgen:recent=40+values=8+clusters=4+samples=2+seed=2");
  other_seed.Append(200);
  bool differs = false;
  for (int64_t head = 0; head < 2; ++head) {
    for (int64_t token = 0; token < 200; ++token) {
      EXPECT_EQ(at_once.block().IsKept(token, head), block.IsKept(token, head)) << token;
      differs |= other_seed.block().IsKept(token, head) != block.IsKept(token, head);
    }
  }
  EXPECT_TRUE(differs);
  driver.store().Truncate(driver.seq(), 100);
  driver.Append(100);
  EXPECT_LE(driver.block().NumKept(0), 40 + 8 + 4 * 2);
}

// One sampled token is the only one in its cluster and has all slots: the estimate is exact.
TEST(SubGen, OneSampledTokenIsExact) {
  const auto output = [](const std::string& spec) {
    MethodDriver driver(spec, {1, 1, 1, 64}, DType::kF32);
    driver.Append(21);
    testing_support::Rows rows = testing_support::MakeRows(driver.geometry(), 3, 0, 21, 1);
    std::vector<float> out(64);
    EXPECT_EQ(driver.store().Reserve(driver.seq(), 1), ReserveResult::kReserved);
    driver.store().BeginForward({{driver.seq(), 1}});
    driver.store().AppendAndAttend(0, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    driver.store().EndForward();
    return out;
  };
  const std::vector<float> exact = output("subgen:recent=64");
  const std::vector<float> sampled = output("subgen:recent=20");  // Of one token.
  for (size_t i = 0; i < exact.size(); ++i) EXPECT_NEAR(sampled[i], exact[i], 1e-5);
  EXPECT_NE(output("subgen:recent=5"), exact);
}

TEST(SubGen, BytesAreOfTheClustersThatThereAre) {
  // A row of a head: 128 bytes. Two heads; slots: 8 pairs and mu.
  const int64_t slots = 2 * (8 * 256 + 4);
  MethodDriver one("subgen:recent=40+values=8+samples=2+delta=1000000");
  one.Append(40);
  EXPECT_EQ(one.BlockBytes(), 40 * 512);
  one.Append(60);
  EXPECT_EQ(one.BlockBytes(), 40 * 512 + slots + 2 * (3 * 128 + 4)) << "one cluster a head";
  MethodDriver many("subgen:recent=40+values=8+samples=2+delta=0+clusters=16");
  many.Append(50);
  EXPECT_EQ(many.BlockBytes(), 40 * 512 + slots + 2 * 10 * (3 * 128 + 4));
  many.Append(100);
  EXPECT_EQ(many.BlockBytes(), 40 * 512 + slots + 2 * 16 * (3 * 128 + 4)) << "the most";
}

TEST(SubGen, NamesWhatIsWrong) {
  ExpectRefused("subgen:samples=0", "samples=0, expected a whole number in [1, 64]");
}

}  // namespace
}  // namespace pmkvq
