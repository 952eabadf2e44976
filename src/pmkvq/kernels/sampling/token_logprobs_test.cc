#include "pmkvq/kernels/sampling/token_logprobs.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

constexpr int64_t kRows = 9;

// With many equal logits.
std::vector<float> CoarseLogits(int64_t vocab_size, uint64_t seed) {
  Random random(seed);
  std::vector<float> logits(static_cast<size_t>(kRows * vocab_size));
  for (float& logit : logits) logit = static_cast<float>(random.Below(60)) / 4.0f - 5.0f;
  return logits;
}

TEST(TokenLogprobReader, RowsHaveTheBitsOfTheDefinition) {
  TokenLogprobReader reader;
  for (const int64_t vocab_size : {1, 7, 256, 1000, 40001}) {
    const std::vector<float> logits = CoarseLogits(vocab_size, 3);
    std::vector<int32_t> tokens;
    for (int64_t r = 0; r < kRows; ++r) {
      tokens.push_back(static_cast<int32_t>((r * 977) % vocab_size));
    }
    for (const int64_t num_top : {0, 1, 6}) {
      for (const int threads : {1, 3}) {
        const auto results = reader.Read(logits.data(), vocab_size, tokens, num_top, threads);
        ASSERT_EQ(std::ssize(results), kRows);
        for (size_t r = 0; r < results.size(); ++r) {
          const TokenLogprobs expected = ref::LogprobsOf(
              logits.data() + static_cast<int64_t>(r) * vocab_size, vocab_size, tokens[r], num_top);
          ASSERT_TRUE(results[r].has_value());
          EXPECT_EQ(results[r]->drawn.token, tokens[r]);
          EXPECT_EQ(results[r]->drawn.logprob, expected.drawn.logprob);
          ASSERT_EQ(results[r]->top.size(), expected.top.size());
          for (size_t i = 0; i < expected.top.size(); ++i) {
            EXPECT_EQ(results[r]->top[i].token, expected.top[i].token);
            EXPECT_EQ(results[r]->top[i].logprob, expected.top[i].logprob);
          }
        }
      }
    }
  }
}

TEST(TokenLogprobReader, LogitsThatAreNotFiniteConcernTheirRowOnly) {
  constexpr int64_t kVocab = 3000;
  const float inf = std::numeric_limits<float>::infinity();
  TokenLogprobReader reader;
  const std::vector<int32_t> tokens(kRows, 5);
  for (const float odd : {inf, -inf, std::nanf("")}) {
    std::vector<float> logits = CoarseLogits(kVocab, 4);
    logits[2 * kVocab + 2999] = odd;
    const auto results = reader.Read(logits.data(), kVocab, tokens, 2, 2);
    for (size_t r = 0; r < results.size(); ++r) EXPECT_EQ(results[r].has_value(), r != 2);
  }
}

TEST(TokenLogprobReader, NoRows) {
  TokenLogprobReader reader;
  EXPECT_TRUE(reader.Read(nullptr, 10, {}, 2, 2).empty());
}

}  // namespace
}  // namespace pmkvq
