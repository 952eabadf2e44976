#include "pmkvq/kernels/sampling/logit_rules.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace pmkvq {
namespace {

TEST(LogitRules, ByHand) {
  // Tokens 0 and 1 were in the prompt, 1 and 2 were drawn, 2 three times.
  const TokenCounts counts = {{0, 0}, {1, 1}, {2, 3}};
  std::vector<float> logits = {4, -2, 6, 1, 0.5f};
  LogitRules rules;
  EXPECT_TRUE(rules.changes_nothing());
  ApplyLogitRules(rules, counts, logits.data());
  EXPECT_EQ(logits, (std::vector<float>{4, -2, 6, 1, 0.5f}));

  rules.repetition_penalty = 2;
  rules.frequency_penalty = 0.5;
  rules.presence_penalty = 0.25;
  rules.bias = {{3, -100.0f}, {4, 2.0f}};
  EXPECT_FALSE(rules.changes_nothing());
  ApplyLogitRules(rules, counts, logits.data());
  EXPECT_EQ(logits, (std::vector<float>{2, -4 - 0.5f - 0.25f, 3 - 1.5f - 0.25f, -99, 2.5f}));
}

TEST(LogitRules, ForbiddenTokensStayForbidden) {
  const float forbidden = -std::numeric_limits<float>::infinity();
  std::vector<float> logits = {forbidden, 1};
  LogitRules rules;
  rules.repetition_penalty = 1.5;
  rules.presence_penalty = -2;
  rules.bias = {{0, 100.0f}};
  ApplyLogitRules(rules, {{0, 2}}, logits.data());
  EXPECT_EQ(logits[0], forbidden);
}

TEST(Logprobs, AreTheLogSoftmax) {
  const std::vector<float> logits = {1, 3, 3, -2, 0};
  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x));
  const TokenLogprobs result = ref::LogprobsOf(logits.data(), 5, 3, 4);
  EXPECT_EQ(result.drawn.token, 3);
  EXPECT_NEAR(result.drawn.logprob, -2 - std::log(sum), ref::kLogprobError);
  ASSERT_EQ(result.top.size(), 4u);
  const std::vector<int32_t> order = {1, 2, 0, 4};  // Of equal ones the lowest id.
  for (size_t i = 0; i < order.size(); ++i) {
    EXPECT_EQ(result.top[i].token, order[i]);
    EXPECT_NEAR(result.top[i].logprob,
                static_cast<double>(logits[static_cast<size_t>(order[i])]) - std::log(sum),
                ref::kLogprobError);
  }
  EXPECT_TRUE(ref::LogprobsOf(logits.data(), 5, 0, 0).top.empty());
  EXPECT_EQ(ref::LogprobsOf(logits.data(), 5, 0, 100).top.size(), 5u);
}

TEST(Logprobs, LargeLogitsDoNotOverflow) {
  const std::vector<float> logits = {30000, 29999, -std::numeric_limits<float>::infinity()};
  const TokenLogprobs result = ref::LogprobsOf(logits.data(), 3, 0, 3);
  EXPECT_NEAR(result.drawn.logprob, -std::log1p(std::exp(-1.0)), ref::kLogprobError);
  EXPECT_EQ(result.top[2].logprob, -std::numeric_limits<double>::infinity());
}

}  // namespace
}  // namespace pmkvq
