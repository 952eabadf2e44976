#include "pmkvq/research/methods/confkv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/io/safetensors.h"
#include "support/damage_rows.h"
#include "support/method_rule.h"

namespace pmkvq {
namespace {

using testing_support::ByToken;
using testing_support::Damaged;
using testing_support::NamedTensors;
using testing_support::TensorsOf;

// tests/golden/methods/confkv.safetensors: budgets of 24 to 64 tokens, sink 4, window 16, 4 blocks.
class ConfKvGolden : public testing::Test {
 protected:
  ConfKvGolden()
      : file_(SafetensorsFile::Open(PMKVQ_SOURCE_DIR "/tests/golden/methods/confkv.safetensors")) {
    rule_.min_budget = 24;
    rule_.max_budget = 64;
    rule_.sink = 4;
    rule_.window = 16;
    rule_.num_layers = 4;
  }
  const float* Floats(const char* name, const Shape& shape) const {
    return file_.Get(name, DType::kF32, shape).As<float>();
  }
  SafetensorsFile file_;
  ConfKvRule rule_;
};

TEST_F(ConfKvGolden, BudgetsFollowConfidence) {
  const float* const logits = Floats("logits", {6, 64});
  const float* const confidence = Floats("confidence", {6});
  const float* const budget = Floats("budget", {6});
  const auto* const of_block = file_.Get("budget_of_block", DType::kI32, {6, 4}).As<int32_t>();
  for (int64_t step = 0; step < 6; ++step) {
    const double found = ConfKvRule::Confidence({logits + step * 64, 64});
    EXPECT_NEAR(found, confidence[step], 1e-4 * 0.4);
    EXPECT_NEAR(rule_.Budget(found), budget[step], 1e-4 * 64);
    for (int64_t layer = 0; layer < 4; ++layer) {
      EXPECT_EQ(rule_.BlockBudget(rule_.Budget(found), layer), of_block[step * 4 + layer]);
    }
  }
  EXPECT_EQ(ConfKvRule::Confidence(std::vector<float>{3.0f}), 1.0);
  EXPECT_NEAR(ConfKvRule::Confidence(std::vector<float>{-1e30f, 0, -1e30f}), 1.0, 1e-12);
}

TEST_F(ConfKvGolden, ScoresRankTokens) {
  const float* const sums = Floats("attention_sums", {4, 80});
  const float* const expected = Floats("score", {4, 80});
  for (int64_t layer = 0; layer < 4; ++layer) {
    const std::vector<double> attention(sums + layer * 80, sums + (layer + 1) * 80);
    const std::vector<double> scores = rule_.Scores(attention);
    for (size_t i = 0; i < 80; ++i) EXPECT_NEAR(scores[i], expected[layer * 80 + i], 1e-4);
  }
}

TEST_F(ConfKvGolden, OldTokensHaveEightBits) {
  const float* const x = Floats("int8.x", {8, 32});
  const float* const expected = Floats("int8.read", {8, 32});
  for (int64_t row = 0; row < 8; ++row) {
    std::vector<float> values(x + row * 32, x + (row + 1) * 32);
    DamageSymmetric8(DType::kF32, 32, values.data());
    for (size_t i = 0; i < 32; ++i) EXPECT_NEAR(values[i], expected[row * 32 + i], 4e-4f);
  }
  std::vector<float> zeros(4, 0.0f);
  DamageSymmetric8(DType::kF16, 4, zeros.data());
  EXPECT_EQ(zeros, std::vector<float>(4, 0.0f));
}

// A block of 2 KV heads: flat logits want the largest budget, a peak the smallest.
class ConfKvTest : public testing::Test {
 protected:
  static constexpr int64_t kSink = 2;
  static constexpr int64_t kWindow = 8;
  static constexpr const char* kSpec = "confkv:min=20+max=60+sink=2+window=8";

  // Logits are flat but for the tokens `sure`.
  DamageResult Run(int64_t num_tokens, const std::vector<int64_t>& sure, int64_t prompt_len = 0) {
    given_ = TensorsOf({1, 4, 2, 64}, num_tokens);
    NamedTensors tensors = given_;
    Tensor logits(DType::kF32, {num_tokens, 5});
    for (const int64_t token : sure) logits.As<float>()[token * 5] = 80.0f;
    tensors.emplace("logits", std::move(logits));
    return Damaged(tensors, kSpec, prompt_len);
  }
  static std::vector<int64_t> Kept(const DamageResult& result, int64_t head) {
    const int64_t num_tokens = result.kept.shape()[2];
    std::vector<int64_t> kept;
    for (int64_t token = 0; token < num_tokens; ++token) {
      if (result.kept.As<uint8_t>()[head * num_tokens + token] == 1) kept.push_back(token);
    }
    return kept;
  }
  // By token [T, heads, 64].
  std::vector<float> Given(const char* name) const { return ByToken(given_.at(name)); }

  // Who is kept of a KV head when the last of `num_tokens` tokens alone has a peak.
  std::vector<int64_t> Oracle(int64_t num_tokens, int64_t kv_head) const {
    const std::vector<float> q = Given("q");
    std::vector<float> k = Given("k");
    std::vector<double> attention;
    for (int64_t row = 0; row < num_tokens; ++row) {
      for (double& mass : attention) mass *= 0.95;
      attention.push_back(0);
      for (int64_t head = 2 * kv_head; head < 2 * kv_head + 2; ++head) {
        std::vector<double> weights;
        double total = 0;
        for (int64_t token = 0; token <= row; ++token) {
          double score = 0;
          for (int64_t i = 0; i < 64; ++i) {
            score += double{q[static_cast<size_t>((row * 4 + head) * 64 + i)]} *
                     double{k[static_cast<size_t>((token * 2 + kv_head) * 64 + i)]};
          }
          weights.push_back(std::exp(score / 8));
          total += weights.back();
        }
        for (size_t i = 0; i < weights.size(); ++i) attention[i] += weights[i] / total;
      }
      const int64_t old = row - kWindow;
      if (old >= kSink) {
        DamageSymmetric8(DType::kF32, 64, k.data() + (old * 2 + kv_head) * 64);
      }
    }
    const double most = *std::max_element(attention.begin(), attention.end());
    std::vector<std::pair<double, int64_t>> ranked;
    for (int64_t token = kSink; token < num_tokens - kWindow; ++token) {
      ranked.emplace_back(
          -0.9 * attention[static_cast<size_t>(token)] / most -
              0.1 * static_cast<double>(token + 1) / static_cast<double>(num_tokens),
          token);
    }
    std::sort(ranked.begin(), ranked.end());
    std::vector<int64_t> kept;
    for (int64_t token = 0; token < num_tokens; ++token) {
      if (token < kSink || token >= num_tokens - kWindow) kept.push_back(token);
    }
    for (size_t i = 0; i < 20 - kSink - kWindow; ++i) kept.push_back(ranked[i].second);
    std::sort(kept.begin(), kept.end());
    return kept;
  }

  // Of both heads: `wide` tokens at full precision, 4 bytes a value, and a float of attention.
  static int64_t Bytes(int64_t kept, int64_t wide) {
    return 2 * (wide * 2 * 64 * 4 + (kept - wide) * 2 * (64 + 4) + 4 * kept);
  }

  NamedTensors given_;
};

TEST_F(ConfKvTest, KeepsTheBestBySumsAndPlace) {
  const DamageResult result = Run(50, {49});
  for (int64_t head = 0; head < 2; ++head) EXPECT_EQ(Kept(result, head), Oracle(50, head));
  EXPECT_EQ(result.bytes[48], Bytes(49, 10));
  EXPECT_EQ(result.bytes[49], Bytes(20, 10));
  EXPECT_EQ(result.peak_bytes, Bytes(50, 10)) << "before the rule";
}

TEST_F(ConfKvTest, ABudgetThatRisesIsFilledByNewTokens) {
  const DamageResult result = Run(130, {49, 99});
  EXPECT_EQ(result.bytes[49], Bytes(20, 10));
  EXPECT_EQ(result.bytes[79], Bytes(50, 10));
  EXPECT_EQ(result.bytes[98], Bytes(60, 10)) << "the largest budget";
  EXPECT_EQ(result.bytes[99], Bytes(20, 10));
  EXPECT_EQ(Kept(result, 0).size(), 50u);
  EXPECT_EQ(result.peak_bytes, Bytes(61, 10));
}

TEST_F(ConfKvTest, WithinAPromptTheBudgetIsTheLargest) {
  const DamageResult result = Run(100, {99}, 100);
  EXPECT_EQ(Kept(result, 1).size(), 20u) << "the prompt's last logits count";
  EXPECT_EQ(result.peak_bytes, Bytes(61, 10)) << "as if its tokens came one by one";
}

TEST_F(ConfKvTest, RefusesBudgetsInTheWrongOrder) {
  testing_support::ExpectRefused("confkv:min=512+max=256", "max is less than min");
}

TEST_F(ConfKvTest, OlderTokensAreNarrow) {
  const DamageResult result = Run(40, {});
  for (const auto& [name, read] :
       {std::pair("k", &result.k_read), std::pair("v", &result.v_read)}) {
    std::vector<float> expected = Given(name);
    for (int64_t token = kSink; token < 40 - kWindow; ++token) {
      for (int64_t head = 0; head < 2; ++head) {
        DamageSymmetric8(DType::kF32, 64, expected.data() + (token * 2 + head) * 64);
      }
    }
    EXPECT_EQ(ByToken(*read), expected);
  }
}

}  // namespace
}  // namespace pmkvq
