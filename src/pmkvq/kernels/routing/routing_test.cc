#include "pmkvq/kernels/routing/routing.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <set>
#include <vector>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

RoutingRule Rule(int64_t num_experts, int64_t num_chosen) {
  RoutingRule rule;
  rule.num_experts = num_experts;
  rule.num_chosen = num_chosen;
  return rule;
}

std::vector<RoutingRule> Rules() {
  std::vector<RoutingRule> rules = {Rule(6, 2), Rule(1, 1), Rule(12, 12), Rule(129, 8)};
  rules.push_back(Rule(6, 3));
  rules.back().normalize = true;
  rules.push_back(Rule(12, 4));  // DeepSeek-V2
  rules.back().factor = 16;
  rules.back().num_groups = 4;
  rules.back().num_chosen_groups = 2;
  rules.push_back(Rule(12, 4));  // DeepSeek-V3
  rules.back().score = RouterScore::kSigmoid;
  rules.back().normalize = true;
  rules.back().factor = 2.5;
  rules.back().num_groups = 3;
  rules.back().num_chosen_groups = 2;
  rules.back().group_top = 2;
  rules.push_back(Rule(7, 2));
  rules.back().score = RouterScore::kSigmoid;
  return rules;
}

struct Routed {
  std::vector<double> scores;
  std::vector<int32_t> experts;
  std::vector<double> weights;
};

Routed Route(const RoutingRule& rule, const std::vector<double>& logits, const float* bias) {
  const int64_t rows = std::ssize(logits) / rule.num_experts;
  Routed routed{logits, std::vector<int32_t>(static_cast<size_t>(rows * rule.num_chosen)),
                std::vector<double>(static_cast<size_t>(rows * rule.num_chosen))};
  RouteRows(rule, bias, rows, routed.scores.data(), routed.experts.data(), routed.weights.data());
  return routed;
}

std::vector<double> RandomLogits(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<double> values(static_cast<size_t>(count));
  for (double& value : values) value = random.Uniform() * 6 - 3;
  return values;
}

std::vector<float> RandomBias(int64_t count, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>(random.Uniform() - 0.5);
  return values;
}

// The rule as it is published, by sorting.
Routed Oracle(const RoutingRule& rule, const std::vector<double>& logits, const float* bias) {
  const auto n = static_cast<size_t>(rule.num_experts);
  std::vector<double> scores(n);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += std::exp(logits[i]);
  for (size_t i = 0; i < n; ++i) {
    scores[i] = rule.score == RouterScore::kSoftmax ? std::exp(logits[i]) / sum
                                                    : 1 / (1 + std::exp(-logits[i]));
  }
  std::vector<double> choice = scores;
  for (size_t i = 0; i < n && bias != nullptr; ++i) choice[i] += double{bias[i]};
  const auto best_of = [](const std::vector<double>& values) {
    std::vector<size_t> order(values.size());
    std::iota(order.begin(), order.end(), size_t{0});
    std::stable_sort(order.begin(), order.end(),
                     [&](size_t a, size_t b) { return values[a] > values[b]; });
    return order;
  };
  const size_t size = n / static_cast<size_t>(rule.num_groups);
  std::vector<double> groups;
  for (size_t begin = 0; begin < n; begin += size) {
    std::vector<double> members(choice.begin() + static_cast<int64_t>(begin),
                                choice.begin() + static_cast<int64_t>(begin + size));
    std::sort(members.rbegin(), members.rend());
    groups.push_back(std::accumulate(members.begin(), members.begin() + rule.group_top, 0.0));
  }
  std::vector<size_t> best_groups = best_of(groups);
  best_groups.resize(static_cast<size_t>(rule.num_chosen_groups));
  Routed routed;
  for (const size_t expert : best_of(choice)) {
    if (std::count(best_groups.begin(), best_groups.end(), expert / size) == 0) continue;
    if (std::ssize(routed.experts) == rule.num_chosen) break;
    routed.experts.push_back(static_cast<int32_t>(expert));
    routed.weights.push_back(scores[expert]);
  }
  const double total =
      rule.normalize ? std::accumulate(routed.weights.begin(), routed.weights.end(), 0.0) : 1.0;
  for (double& weight : routed.weights) weight *= rule.factor / total;
  return routed;
}

TEST(Routing, IsThePublishedRule) {
  for (const RoutingRule& rule : Rules()) {
    for (const bool has_bias : {false, true}) {
      constexpr int64_t kRows = 40;
      const std::vector<double> logits = RandomLogits(kRows * rule.num_experts, 3);
      const std::vector<float> values = RandomBias(rule.num_experts, 4);
      const float* const bias = has_bias ? values.data() : nullptr;
      const Routed routed = Route(rule, logits, bias);
      for (int64_t row = 0; row < kRows; ++row) {
        const auto begin = logits.begin() + row * rule.num_experts;
        const Routed expected = Oracle(rule, {begin, begin + rule.num_experts}, bias);
        for (int64_t j = 0; j < rule.num_chosen; ++j) {
          const auto at = static_cast<size_t>(row * rule.num_chosen + j);
          EXPECT_EQ(routed.experts[at], expected.experts[static_cast<size_t>(j)]);
          const double weight = expected.weights[static_cast<size_t>(j)];
          EXPECT_NEAR(routed.weights[at], weight, 1e-14 * weight);
        }
      }
    }
  }
}

TEST(Routing, OfEqualScoresTheFirst) {
  EXPECT_EQ(Route(Rule(6, 3), {1, 2, 2, 1, 2, 2}, nullptr).experts,
            (std::vector<int32_t>{1, 2, 4}));
  RoutingRule groups = Rule(6, 2);
  groups.num_groups = 3;
  EXPECT_EQ(Route(groups, {1, 1, 1, 1, 1, 1}, nullptr).experts, (std::vector<int32_t>{0, 1}));
}

// A group that is left out stays out, even where all of its rivals have negative choice scores.
TEST(Routing, GroupsThatAreLeftOutHaveNoExpert) {
  RoutingRule rule = Rule(4, 2);
  rule.score = RouterScore::kSigmoid;
  rule.num_groups = 2;
  rule.group_top = 2;
  const float bias[] = {-3, -3, -2, -9};
  EXPECT_EQ(Route(rule, {0, 0, 0, 0}, bias).experts, (std::vector<int32_t>{0, 1}));
}

TEST(Routing, AnyLogitsGiveDistinctExpertsInRange) {
  constexpr double kInf = std::numeric_limits<double>::infinity();
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  for (const RoutingRule& rule : Rules()) {
    for (const double odd : {kInf, -kInf, kNan, 1e300, -1e300}) {
      for (const bool all : {false, true}) {
        std::vector<double> logits = RandomLogits(rule.num_experts, 5);
        std::fill_n(logits.begin(), all ? std::ssize(logits) : 1, odd);
        const Routed routed = Route(rule, logits, nullptr);
        const std::set<int32_t> distinct(routed.experts.begin(), routed.experts.end());
        EXPECT_EQ(std::ssize(distinct), rule.num_chosen);
        EXPECT_GE(*distinct.begin(), 0);
        EXPECT_LT(*distinct.rbegin(), rule.num_experts);
      }
    }
  }
  const Routed routed = Route(Rule(3, 2), {1, kNan, 2}, nullptr);
  EXPECT_TRUE(std::isnan(routed.weights[0])) << "it is not hidden";
}

// Central differences with a step of 1e-5: 1e-10 of the third derivative, and 1e-11 of rounding.
// No two choice scores are so close that a step exchanges them.
TEST(Routing, GradientIsAFiniteDifference) {
  constexpr double kStep = 1e-5;
  for (const RoutingRule& rule : Rules()) {
    const std::vector<double> logits = RandomLogits(rule.num_experts, 7);
    const std::vector<double> dweights = RandomLogits(rule.num_chosen, 8);
    const std::vector<float> bias = RandomBias(rule.num_experts, 9);
    const Routed routed = Route(rule, logits, bias.data());
    std::vector<double> dlogits(logits.size());
    RouteRowsGrad(rule, 1, routed.scores.data(), routed.experts.data(), dweights.data(),
                  dlogits.data());
    for (size_t i = 0; i < logits.size(); ++i) {
      const auto along = [&](double step) {
        std::vector<double> moved = logits;
        moved[i] += step;
        const Routed there = Route(rule, moved, bias.data());
        EXPECT_EQ(there.experts, routed.experts);
        return std::inner_product(dweights.begin(), dweights.end(), there.weights.begin(), 0.0);
      };
      const double expected = (along(kStep) - along(-kStep)) / (2 * kStep);
      EXPECT_NEAR(dlogits[i], expected, 1e-8 * (1 + rule.factor));
    }
  }
}

TEST(Routing, PlacesAreGroupedByExpertInTheirOrder) {
  Random random(11);
  for (const int64_t count : {0, 1, 50}) {
    std::vector<int32_t> experts(static_cast<size_t>(count));
    for (int32_t& expert : experts) expert = static_cast<int32_t>(random.Below(7));
    std::vector<int32_t> first(8, -1);
    std::vector<int32_t> order(experts.size(), -1);
    GroupByExpert(experts, 7, first.data(), order.data());
    std::vector<int32_t> expected;
    for (int32_t expert = 0; expert < 7; ++expert) {
      EXPECT_EQ(first[static_cast<size_t>(expert)], std::ssize(expected));
      for (int32_t place = 0; place < count; ++place) {
        if (experts[static_cast<size_t>(place)] == expert) expected.push_back(place);
      }
    }
    EXPECT_EQ(first[7], count);
    EXPECT_EQ(order, expected);
  }
}

}  // namespace
}  // namespace pmkvq
