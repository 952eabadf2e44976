// What a method can do besides rewriting rows: weights of stored tokens, eviction, steps over all
// blocks, bytes that depend on its state.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "pmkvq/kv/kv_budget.h"
#include "pmkvq/kv/simulated/simulated_cache.h"
#include "support/cache_driver.h"

namespace pmkvq {
namespace {

using testing_support::MakeRows;
using testing_support::Rows;

constexpr UniformKvGeometry kGeometry{2, 4, 2, 16};
constexpr float kNever = -std::numeric_limits<float>::infinity();

struct Count : MethodState {
  void Truncate(int64_t num_tokens) override { cut_to = num_tokens; }
  int64_t cut_to = -1;
  int64_t seen = 0;
};

// Leaves the rules to the test.
class Scripted : public CacheMethod {
 public:
  MethodNeeds needs() const override { return what_it_needs; }
  std::unique_ptr<MethodState> NewState(int64_t) const override {
    return std::make_unique<Count>();
  }
  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState* state) const override {
    static_cast<Count*>(state)->seen += tokens.count;
    if (on_append) on_append(layer, tokens, block);
  }
  void OnStep(const StepInfo& step, std::span<SimulatedBlock> blocks,
              std::span<const std::unique_ptr<MethodState>> states) const override {
    if (on_step) on_step(step, blocks, states);
  }
  // A token of a KV head takes ten bytes.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return 20 * std::min(num_tokens, most_tokens);
  }
  ByteGrowth Growth(int64_t) const override { return {}; }
  int64_t BytesNow(int64_t, const SimulatedBlock& block, const MethodState*) const override {
    return 10 * block.NumKept();
  }
  std::optional<int64_t> SequenceBytes(int64_t num_tokens) const override {
    if (most_bytes == 0) return std::nullopt;
    return std::min(most_bytes, 40 * num_tokens);
  }

  MethodNeeds what_it_needs;
  int64_t most_bytes = 0;
  int64_t most_tokens = 1000;
  std::function<void(int64_t, const AppendedTokens&, SimulatedBlock&)> on_append;
  std::function<void(const StepInfo&, std::span<SimulatedBlock>,
                     std::span<const std::unique_ptr<MethodState>>)>
      on_step;
};

class SimulatedEviction : public testing::Test {
 protected:
  SimulatedEviction() {
    method_->what_it_needs.token_weights = true;
    method_->what_it_needs.own_bytes = true;
    config_.geometry = kGeometry;
    config_.float_type = DType::kF32;
    config_.budget_bytes = {1 << 20, 1 << 20};
  }

  SimulatedKvCache& cache() {
    if (cache_ == nullptr) {
      cache_ = std::make_unique<SimulatedKvCache>(config_, method_);
      EXPECT_EQ(cache_->Open(), 0);
    }
    return *cache_;
  }

  // The outputs of block 1.
  std::vector<float> Forward(int64_t num_tokens, bool ends_prompt = false) {
    EXPECT_EQ(cache().Reserve(0, num_tokens), ReserveResult::kReserved);
    const int64_t first = cache().NumTokens(0);
    cache().BeginForward({{0, num_tokens, false, ends_prompt}});
    std::vector<float> out;
    for (int64_t layer = 0; layer < kGeometry.num_layers; ++layer) {
      const Rows rows = MakeRows(kGeometry, 1, layer, first, num_tokens);
      out.resize(rows.q.size());
      KvExtras extras;
      extras.attention_input = rows.q.data();
      extras.input_width = kGeometry.num_heads * kGeometry.head_dim;
      cache().OfferExtras(layer, extras);
      cache().AppendAndAttend(layer, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    }
    if (!logits_.empty()) cache().OfferLogits(0, logits_);
    cache().EndForward();
    return out;
  }

  // Attention of the last of `num_tokens` tokens in block 1, [H, D], with log weights a and c of
  // token and KV head.
  static std::vector<float> Attend(
      int64_t num_tokens, const std::function<std::pair<float, float>(int64_t, int64_t)>& weights) {
    const Rows rows = MakeRows(kGeometry, 1, 1, 0, num_tokens);
    const float* const q = rows.q.data() + (num_tokens - 1) * 64;
    std::vector<float> out;
    for (int64_t head = 0; head < 4; ++head) {
      double below = 0;
      std::vector<double> sums(16);
      for (int64_t token = 0; token < num_tokens; ++token) {
        const float* const k = rows.k.data() + token * 32 + head / 2 * 16;
        double score = 0;
        for (int64_t i = 0; i < 16; ++i) score += double{q[head * 16 + i]} * double{k[i]};
        const auto [a, c] = weights(token, head / 2);
        below += std::exp(score / 4 + double{c});
        for (size_t i = 0; i < 16; ++i) {
          sums[i] += std::exp(score / 4 + double{a}) *
                     double{rows.v[static_cast<size_t>(token * 32 + head / 2 * 16) + i]};
        }
      }
      for (const double sum : sums) out.push_back(static_cast<float>(sum / below));
    }
    return out;
  }
  static void ExpectNear(const std::vector<float>& found, const std::vector<float>& expected) {
    ASSERT_EQ(found.size(), expected.size());
    for (size_t i = 0; i < found.size(); ++i) EXPECT_NEAR(found[i], expected[i], 2e-5f) << i;
  }

  std::shared_ptr<Scripted> method_ = std::make_shared<Scripted>();
  SimulatedConfig config_;
  std::vector<float> logits_;

 private:
  std::unique_ptr<SimulatedKvCache> cache_;
};

TEST_F(SimulatedEviction, AttentionMasksEvictedTokensByHead) {
  method_->on_append = [](int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block) {
    if (tokens.first > 0) return;
    EXPECT_TRUE(block.IsKept(1, 0));
    block.Evict(1, 0);
    block.Evict(1, 0);  // Once more changes nothing.
    if (layer == 1) block.Evict(3, 1);
  };
  Forward(5);
  const auto weights = [](int64_t token, int64_t head) {
    return (token == 1 && head == 0) || (token == 3 && head == 1) ? std::pair(kNever, kNever)
                                                                  : std::pair(0.0f, 0.0f);
  };
  ExpectNear(Forward(1), Attend(6, weights));
  const SimulatedBlock& block = cache().Block(0, 1);
  EXPECT_FALSE(block.IsKept(1, 0));
  EXPECT_TRUE(block.IsKept(1, 1));
  EXPECT_EQ(block.NumKept(0), 5);
  EXPECT_EQ(block.NumKept(), 10);
  EXPECT_DOUBLE_EQ(cache().SequenceStats(0).kept_share, (11.0 + 10.0) / 24);
  EXPECT_DOUBLE_EQ(cache().LayerStats(0, 1).kept_share, 10.0 / 12);

  // A cut that leaves an evicted token keeps the mask; one that drops it forgets it.
  cache().Truncate(0, 4);
  EXPECT_EQ(cache().Block(0, 1).NumKept(), 6);
  cache().Truncate(0, 3);
  EXPECT_EQ(cache().Block(0, 1).NumKept(1), 3);
  Forward(1);
  ExpectNear(Forward(1), Attend(5, [](int64_t token, int64_t head) {
               return token == 1 && head == 0 ? std::pair(kNever, kNever) : std::pair(0.0f, 0.0f);
             }));
}

TEST_F(SimulatedEviction, WeightsOfTheSumsMayDiffer) {
  const auto weights = [](int64_t token, int64_t head) -> std::pair<float, float> {
    if (token >= 4) return {0.0f, 0.0f};  // The chunk's rows see each other as they are.
    if (token == 0) return {kNever, 1.25f};
    return head == 0 ? std::pair(0.5f * static_cast<float>(token), -0.75f)
                     : std::pair(2.0f, kNever);
  };
  method_->on_append = [&](int64_t, const AppendedTokens& tokens, SimulatedBlock& block) {
    for (int64_t token = 0; token < (tokens.first == 0 ? 4 : 0); ++token) {
      for (int64_t head = 0; head < 2; ++head) {
        block.SetLogWeights(token, head, weights(token, head).first, weights(token, head).second);
      }
    }
  };
  Forward(4);
  EXPECT_EQ(cache().Block(0, 0).NumKept(), 8) << "one of the two weights is finite";
  const std::vector<float> out = Forward(3);
  ExpectNear({out.end() - 64, out.end()}, Attend(7, weights));
}

// A head whose stored tokens are all gone attends to its own token.
TEST_F(SimulatedEviction, AllStoredTokensMayGo) {
  method_->on_append = [&](int64_t, const AppendedTokens&, SimulatedBlock& block) {
    for (int64_t token = 0; token < block.num_tokens(); ++token) block.Evict(token, 0);
  };
  Forward(3);
  const std::vector<float> out = Forward(1);
  const Rows rows = MakeRows(kGeometry, 1, 1, 3, 1);
  for (size_t i = 0; i < 16; ++i) EXPECT_EQ(out[i], rows.v[i]);
}

TEST_F(SimulatedEviction, TellsWhatItsTokensAre) {
  std::vector<std::pair<bool, int64_t>> appended;
  method_->what_it_needs.attention_input = true;
  float input = 0;
  method_->on_append = [&](int64_t layer, const AppendedTokens& tokens, SimulatedBlock&) {
    EXPECT_EQ(tokens.below == nullptr, layer == 0);
    const int64_t below = layer == 0 ? -1 : static_cast<const Count*>(tokens.below)->seen;
    appended.emplace_back(tokens.ends_prompt, below);
    EXPECT_EQ(tokens.input_width, 64);
    input = tokens.attention_input[63];
  };
  Forward(3);
  Forward(2, true);
  Forward(1);
  const std::vector<std::pair<bool, int64_t>> expected = {{false, -1}, {false, 3},  {true, -1},
                                                          {true, 5},   {false, -1}, {false, 6}};
  EXPECT_EQ(appended, expected) << "the block below has seen the tokens";
  EXPECT_EQ(input, MakeRows(kGeometry, 1, 1, 5, 1).q[63]);
}

TEST_F(SimulatedEviction, StepsSeeAllBlocksAndTheLogits) {
  method_->what_it_needs.steps = true;
  method_->what_it_needs.logits = true;
  EXPECT_TRUE(cache().ExtraNeeds().logits);
  std::vector<std::vector<int64_t>> steps;
  method_->on_step = [&](const StepInfo& step, std::span<SimulatedBlock> blocks,
                         std::span<const std::unique_ptr<MethodState>> states) {
    EXPECT_EQ(blocks.size(), 2u);
    EXPECT_EQ(static_cast<const Count&>(*states[1]).seen, blocks[1].num_tokens());
    steps.push_back({step.first, step.count, step.ends_prompt ? 1 : 0, std::ssize(step.logits)});
    if (step.first > 0) blocks[1].Evict(0, 1);
  };
  Forward(4, true);
  logits_ = {1, 2, 3};
  Forward(1);
  logits_.clear();
  const std::vector<std::vector<int64_t>> expected = {{0, 4, 1, 0}, {4, 1, 0, 3}};
  EXPECT_EQ(steps, expected);
  method_->on_step = nullptr;
  ExpectNear(Forward(1), Attend(6, [](int64_t token, int64_t head) {
               return token == 0 && head == 1 ? std::pair(kNever, kNever) : std::pair(0.0f, 0.0f);
             }));
}

// Steps of a method without weights rewrite rows that attention reads in the float type.
TEST_F(SimulatedEviction, StepsMayRewriteRows) {
  method_->what_it_needs = {};
  method_->what_it_needs.steps = true;
  method_->on_step = [&](const StepInfo&, std::span<SimulatedBlock> blocks, const auto&) {
    for (int64_t head = 0; head < 2; ++head) {
      for (int64_t i = 0; i < 16; ++i) blocks[1].Value(0, head)[i] = 7.0f;
    }
  };
  Forward(1);
  method_->on_step = nullptr;
  const std::vector<float> out = Forward(1);
  const Rows rows = MakeRows(kGeometry, 1, 1, 0, 2);
  double first = 0, second = 0;
  for (size_t i = 0; i < 16; ++i) {
    first += double{rows.q[64 + i]} * double{rows.k[i]};
    second += double{rows.q[64 + i]} * double{rows.k[32 + i]};
  }
  const double weight = 1 / (1 + std::exp((second - first) / 4));
  EXPECT_NEAR(out[0], weight * 7 + (1 - weight) * double{rows.v[32]}, 2e-5);
}

// The peak is taken before the rule runs.
TEST_F(SimulatedEviction, BytesAreThoseOfTheState) {
  method_->on_append = [](int64_t, const AppendedTokens& tokens, SimulatedBlock& block) {
    if (!tokens.ends_prompt) return;
    for (int64_t token = 0; token < 6; ++token) block.Evict(token, 0);
  };
  Forward(5);
  EXPECT_EQ(cache().SequenceStats(0).bytes, 2 * 100);
  Forward(5, true);
  EXPECT_EQ(cache().SequenceStats(0).bytes, 2 * 140);
  EXPECT_EQ(cache().LayerStats(0, 1).bytes, 140);
  EXPECT_EQ(cache().SequenceStats(0).peak_bytes, 2 * 200);
  Forward(1);
  EXPECT_EQ(cache().SequenceStats(0).bytes, 2 * 160);
  EXPECT_EQ(cache().SequenceStats(0).peak_bytes, 2 * 200);
}

// A chunk counts as if its tokens came one by one, each with its step.
TEST_F(SimulatedEviction, NoPeakIsAboveTheBound) {
  method_->what_it_needs.steps = true;
  method_->most_tokens = 4;
  method_->on_step = [](const StepInfo& step, std::span<SimulatedBlock> blocks, const auto&) {
    for (SimulatedBlock& block : blocks) {
      for (int64_t token = 0; token < step.first + step.count - 3; ++token) {
        for (int64_t head = 0; head < 2; ++head) block.Evict(token, head);
      }
    }
  };
  Forward(10);
  EXPECT_EQ(cache().SequenceStats(0).bytes, 2 * 60);
  EXPECT_EQ(cache().SequenceStats(0).peak_bytes, 2 * 80);
}

TEST_F(SimulatedEviction, ABoundOfTheSequenceReplacesThoseOfBlocks) {
  method_->most_bytes = 300;
  EXPECT_EQ(BudgetsFor(*method_, 2, 100), (std::vector<int64_t>{150, 150}));
  EXPECT_EQ(BudgetsFor(*method_, 2, 3), (std::vector<int64_t>{60, 60}));
  config_.budget_bytes = {200, 99};
  const KvBudget budget(config_, method_);
  EXPECT_TRUE(budget.Holds(7));
  EXPECT_FALSE(budget.Holds(8));
  EXPECT_EQ(budget.SmallestThatHolds(8), 302);
  EXPECT_EQ(cache().Reserve(0, 8), ReserveResult::kBudgetExhausted);
  Forward(7);
  EXPECT_EQ(cache().SequenceStats(0).peak_bytes, 280);
}

TEST_F(SimulatedEviction, EvictingNeedsTokenWeights) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  method_->what_it_needs.token_weights = false;
  method_->on_append = [](int64_t, const AppendedTokens&, SimulatedBlock& block) {
    block.Evict(0, 0);
  };
  EXPECT_DEATH(Forward(1), "evicts without token_weights");
}

}  // namespace
}  // namespace pmkvq
