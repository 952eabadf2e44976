#include "pmkvq/kernels/sampling/batch_sampler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> RandomLogits(int64_t count, double bound, uint64_t seed) {
  Random random(seed);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = static_cast<float>((random.Uniform() * 2 - 1) * bound);
  return values;
}

// A row with all that SamplingRow points to.
struct Asked {
  std::vector<float> logits;
  SamplingParams params;
  LogitRules rules;
  TokenCounts counts;
  std::vector<int32_t> forbidden;
  int64_t num_logprobs = -1;
  Random random{0};

  SamplingRow row() {
    return {logits.data(), &params, &rules, &counts, forbidden, &random, num_logprobs};
  }
};

// Rows that differ in everything that a request may ask for.
std::vector<Asked> ManyRows(int64_t num_rows, int64_t vocab_size) {
  std::vector<Asked> rows(static_cast<size_t>(num_rows));
  const auto last = static_cast<int32_t>(vocab_size - 1);
  for (int64_t r = 0; r < num_rows; ++r) {
    Asked& asked = rows[static_cast<size_t>(r)];
    asked.logits = RandomLogits(vocab_size, 12.0, static_cast<uint64_t>(r));
    asked.params = {r % 5 == 0 ? 0.0 : 0.6, r % 3 == 0 ? 20 : 0, r % 4 == 3 ? 1.0 : 0.95,
                    r % 7 == 1 ? 0.02 : 0.0};
    if (r % 2 == 1) asked.rules.bias = {{3, 30.0f}, {last, 11.0f}};
    if (r % 4 == 2) {
      asked.rules.repetition_penalty = 1.3;
      asked.rules.presence_penalty = 0.5;
      asked.counts = {{5, 2}, {last / 2, 0}, {3, 1}};
    }
    if (r % 3 == 1) asked.forbidden = {3, last};
    asked.num_logprobs = r % 4 - 1 + (r % 8 == 5 ? 4 : 0);
    asked.random = Random(static_cast<uint64_t>(r) + 100);
  }
  return rows;
}

std::vector<SampledRow> SampleAll(std::vector<Asked>& asked, int num_threads,
                                  BatchSampler& sampler) {
  std::vector<SamplingRow> rows;
  for (Asked& one : asked) rows.push_back(one.row());
  const auto results = sampler.Sample(rows, std::ssize(asked.front().logits), num_threads);
  return {results.begin(), results.end()};
}

void ExpectSame(const TokenLogprobs& a, const TokenLogprobs& b) {
  EXPECT_EQ(a.drawn.token, b.drawn.token);
  EXPECT_EQ(a.drawn.logprob, b.drawn.logprob);
  ASSERT_EQ(a.top.size(), b.top.size());
  for (size_t i = 0; i < a.top.size(); ++i) {
    EXPECT_EQ(a.top[i].token, b.top[i].token);
    EXPECT_EQ(a.top[i].logprob, b.top[i].logprob);
  }
}

// Tokens, log-probabilities and the state of the random numbers are those of the definitions,
// however many rows and threads there are (rows are shared out whole or in pieces).
TEST(BatchSamplerTest, EachRowGetsWhatItGetsAlone) {
  BatchSampler sampler;  // Its memory goes from call to call.
  for (const int64_t vocab_size : {7, 1000, 40001}) {
    for (const int64_t num_rows : {1, 3, 24}) {
      for (const int threads : {1, 2, 3}) {
        std::vector<Asked> asked = ManyRows(num_rows, vocab_size);
        const std::vector<Asked> before = asked;
        const std::vector<SampledRow> results = SampleAll(asked, threads, sampler);
        for (size_t r = 0; r < results.size(); ++r) {
          SCOPED_TRACE(testing::Message() << "row " << r << " of " << num_rows << ", V "
                                          << vocab_size << ", " << threads << " threads");
          Asked alone = before[r];
          ApplyLogitRules(alone.rules, alone.counts, alone.logits.data());
          for (const int32_t id : alone.forbidden) alone.logits[static_cast<size_t>(id)] = -kInf;
          const auto token =
              ref::SampleToken(alone.params, alone.logits.data(), vocab_size, alone.random);
          ASSERT_TRUE(token.has_value());
          ASSERT_EQ(results[r].outcome, SamplingOutcome::kDrawn);
          EXPECT_EQ(results[r].token, *token);
          EXPECT_EQ(asked[r].random.Next(), alone.random.Next());
          EXPECT_EQ(asked[r].logits, alone.logits);
          ASSERT_EQ(results[r].logprobs.has_value(), alone.num_logprobs >= 0);
          if (!results[r].logprobs) continue;
          ExpectSame(*results[r].logprobs, ref::LogprobsOf(before[r].logits.data(), vocab_size,
                                                           *token, alone.num_logprobs));
        }
      }
    }
  }
}

TEST(BatchSamplerTest, LogitsThatAreNotFiniteConcernTheirRowOnly) {
  for (const int64_t num_rows : {2, 16}) {
    for (const float odd : {kInf, -kInf, std::nanf("")}) {
      std::vector<Asked> asked = ManyRows(num_rows, 40001);
      asked[1].logits[40000] = odd;
      const std::vector<Asked> before = asked;
      BatchSampler sampler;
      const std::vector<SampledRow> results = SampleAll(asked, 2, sampler);
      EXPECT_EQ(results[1].outcome, SamplingOutcome::kNotFinite);
      EXPECT_FALSE(results[1].logprobs.has_value());
      EXPECT_EQ(asked[1].logits[3], before[1].logits[3]) << "rules change nothing";
      Random untouched = before[1].random;
      EXPECT_EQ(asked[1].random.Next(), untouched.Next());
      EXPECT_EQ(results[0].outcome, SamplingOutcome::kDrawn);
    }
  }
}

TEST(BatchSamplerTest, RulesThatLeaveNoToken) {
  for (const float bias : {-kInf, kInf, std::nanf("")}) {
    std::vector<Asked> asked(1);
    asked[0].logits = {1, 2, 3};
    asked[0].num_logprobs = 2;
    if (bias == -kInf) {
      asked[0].forbidden = {0, 1, 2};
    } else {
      asked[0].rules.bias = {{1, bias}};
    }
    BatchSampler sampler;
    const std::vector<SampledRow> results = SampleAll(asked, 1, sampler);
    EXPECT_EQ(results[0].outcome, SamplingOutcome::kNoneLeft);
    EXPECT_FALSE(results[0].logprobs.has_value());
  }
}

// Rules that lower the likeliest tokens of most blocks, raise others, or both.
TEST(BatchSamplerTest, RulesMayChangeEveryMaximum) {
  constexpr int64_t kVocab = 2100;  // Nine blocks.
  BatchSampler sampler;
  for (uint64_t seed = 0; seed < 200; ++seed) {
    Random random(seed);
    std::vector<Asked> asked(1);
    Asked& one = asked[0];
    one.logits = RandomLogits(kVocab, 8.0, seed);
    for (float& logit : one.logits) logit = std::round(logit * 4.0f) / 4.0f;
    one.params = {seed % 3 == 0 ? 0.0 : 0.7, 0, seed % 3 == 1 ? 0.9 : 1.0, 0.0};
    one.num_logprobs = 3;
    one.rules.repetition_penalty = seed % 2 == 0 ? 1.5 : 0.8;
    one.rules.frequency_penalty = seed % 5 == 0 ? -1.0 : 0.5;
    for (int i = 0; i < 300; ++i) {
      one.counts.emplace(static_cast<int32_t>(random.Below(kVocab)),
                         static_cast<int64_t>(random.Below(4)));
    }
    for (int64_t block = 0; block < kVocab; block += internal::kSampleBlock) {
      const auto begin = one.logits.begin() + block;
      const auto end = begin + std::min(internal::kSampleBlock, kVocab - block);
      const auto best = static_cast<int32_t>(std::max_element(begin, end) - one.logits.begin());
      if (random.Below(2) == 0) one.counts[best] = 3;
      if (random.Below(4) == 0) one.forbidden.push_back(best);
      if (random.Below(4) == 0) one.rules.bias.emplace_back(best, -2.0f);
    }
    one.random = Random(seed + 1000);
    Asked alone = one;
    ApplyLogitRules(alone.rules, alone.counts, alone.logits.data());
    for (const int32_t id : alone.forbidden) alone.logits[static_cast<size_t>(id)] = -kInf;
    const TokenLogprobs before = ref::LogprobsOf(one.logits.data(), kVocab, 0, 3);
    const SampledRow drawn = SampleAll(asked, 1, sampler).front();
    ASSERT_EQ(drawn.outcome, SamplingOutcome::kDrawn);
    ASSERT_EQ(drawn.token,
              ref::SampleToken(alone.params, alone.logits.data(), kVocab, alone.random))
        << "seed " << seed;
    for (size_t i = 0; i < 3; ++i) {
      EXPECT_EQ(drawn.logprobs->top[i].token, before.top[i].token);
      EXPECT_EQ(drawn.logprobs->top[i].logprob, before.top[i].logprob);
    }
  }
}

TEST(BatchSamplerTest, NoRows) {
  BatchSampler sampler;
  EXPECT_TRUE(sampler.Sample({}, 10, 2).empty());
}

TEST(BatchSamplerDeathTest, TokenOutsideOfTheVocabulary) {
  std::vector<Asked> asked = ManyRows(1, 10);
  asked[0].forbidden = {10};
  BatchSampler sampler;
  EXPECT_DEATH(SampleAll(asked, 1, sampler), "vocab_size");
}

// Rows like a language model's are decided by bounds: what makes the op fast.
TEST(BatchSamplerTest, BoundsDecideNearlyAllDraws) {
  constexpr int64_t kVocab = 20000;
  int64_t num_undecided = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    auto logits = RandomLogits(kVocab, 1.0, seed);
    for (float& logit : logits) logit = 16.0f * logit * logit * logit;
    std::vector<float> block_max(static_cast<size_t>(internal::NumSampleBlocks(kVocab)));
    internal::ScanBlocks(logits.data(), kVocab, block_max.data());
    const internal::SampleRow row{logits.data(), kVocab, block_max.data(),
                                  *std::max_element(block_max.begin(), block_max.end())};
    const SamplingParams params{0.6, 0, 0.95, 0.0};
    std::vector<double> sums(block_max.size());
    internal::SumWeights(params, row, 0, sums);
    internal::SampleScratch scratch;
    num_undecided +=
        !internal::DrawFast(params, row, sums, internal::MassPrecision::kRough, 0.5, scratch);
  }
  EXPECT_LE(num_undecided, 2);
}

}  // namespace
}  // namespace pmkvq
