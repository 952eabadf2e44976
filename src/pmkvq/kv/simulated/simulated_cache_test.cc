#include "pmkvq/kv/simulated/simulated_cache.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "pmkvq/base/error.h"
#include "pmkvq/base/float16.h"
#include "support/cache_driver.h"
#include "support/dense_kv_store.h"
#include "support/expect_error.h"

namespace pmkvq {
namespace {

using testing_support::DenseKvStore;
using testing_support::ExpectError;
using testing_support::MakeRows;
using testing_support::Rows;

constexpr UniformKvGeometry kGeometry{2, 4, 2, 16};

// Leaves values alone, says what it needs, and remembers what it was told.
struct ProbeState : MethodState {
  void Truncate(int64_t num_tokens) override { cut_to = num_tokens; }
  int64_t cut_to = -1;
};

class Probe : public CacheMethod {
 public:
  explicit Probe(MethodNeeds needs) : needs_(needs) {}
  MethodNeeds needs() const override { return needs_; }
  std::unique_ptr<MethodState> NewState(int64_t layer) const override {
    auto state = std::make_unique<ProbeState>();
    if (layer == 0) first_state = state.get();
    return state;
  }
  void OnAppend(int64_t layer, const AppendedTokens& tokens, SimulatedBlock& block,
                MethodState*) const override {
    if (layer != 0) return;
    appended = {tokens.first, tokens.count};
    sums.clear();
    first_input = needs_.block_input ? *tokens.block_input : 0.0f;
    if (needs_.attention) {
      sums.assign(tokens.attention_sums,
                  tokens.attention_sums + block.num_kv_heads() * block.num_tokens());
    }
    if (negates_first_key && tokens.first > 0) {
      for (int64_t i = 0; i < block.head_dim(); ++i) block.Key(0, 0)[i] *= -1.0f;
    }
  }
  // Rises to 500 bytes before every fourth token and falls with it.
  int64_t BlockBytes(int64_t, int64_t num_tokens) const override {
    return num_tokens / 4 * 100 + num_tokens % 4 * 150;
  }
  ByteGrowth Growth(int64_t) const override { return {1, 4}; }

  bool negates_first_key = false;
  mutable ProbeState* first_state = nullptr;
  mutable std::pair<int64_t, int64_t> appended;
  mutable std::vector<double> sums;
  mutable float first_input = 0.0f;  // Of the first new token.

 private:
  MethodNeeds needs_;
};

SimulatedConfig ConfigOf(DType type, int64_t budget = 1 << 20) {
  SimulatedConfig config;
  config.geometry = kGeometry;
  config.float_type = type;
  config.max_sequences = 2;
  config.budget_bytes = {budget, budget};
  return config;
}

const RopeTable& Rope() {
  static const RopeTable table([] {
    RopeParams params;
    params.head_dim = kGeometry.head_dim;
    return params;
  }());
  return table;
}

struct Part {
  SequenceId seq;
  int64_t num_tokens;
};

// One Forward; returns the outputs of all blocks. `rope`: the rows are keys before RoPE.
std::vector<float> Forward(KvStore& store, const std::vector<Part>& parts, bool rope = false) {
  Batch batch;
  std::vector<int64_t> firsts;
  for (const Part& part : parts) {
    firsts.push_back(store.NumTokens(part.seq));
    EXPECT_EQ(store.Reserve(part.seq, part.num_tokens), ReserveResult::kReserved);
    batch.push_back({part.seq, part.num_tokens});
  }
  store.BeginForward(batch);
  std::vector<float> outputs;
  for (int64_t layer = 0; layer < kGeometry.num_layers; ++layer) {
    Rows all;
    std::vector<int64_t> positions;
    for (size_t i = 0; i < parts.size(); ++i) {
      const Part& part = parts[i];
      const int64_t first = firsts[i];
      const Rows rows =
          MakeRows(kGeometry, static_cast<uint64_t>(part.seq) + 1, layer, first, part.num_tokens);
      all.q.insert(all.q.end(), rows.q.begin(), rows.q.end());
      all.k.insert(all.k.end(), rows.k.begin(), rows.k.end());
      all.v.insert(all.v.end(), rows.v.begin(), rows.v.end());
      for (int64_t t = 0; t < part.num_tokens; ++t) positions.push_back(first + t);
    }
    // Any rows will do for the input: those of q.
    store.OfferExtras(layer,
                      {all.k.data(), all.q.data(), kGeometry.num_heads * kGeometry.head_dim});
    std::vector<float> rotated = all.k;
    if (rope) {
      ApplyRope(Rope(), positions.data(), static_cast<int64_t>(positions.size()),
                kGeometry.num_kv_heads, nullptr, rotated.data(), 1);
    }
    std::vector<float> out(all.q.size());
    store.AppendAndAttend(layer, all.q.data(), rotated.data(), all.v.data(), out.data());
    outputs.insert(outputs.end(), out.begin(), out.end());
  }
  store.EndForward();
  return outputs;
}

void ExpectNear(const std::vector<float>& found, const std::vector<float>& expected) {
  ASSERT_EQ(found.size(), expected.size());
  for (size_t i = 0; i < found.size(); ++i) ASSERT_NEAR(found[i], expected[i], 2e-5f) << i;
}

class SimulatedAttention : public testing::TestWithParam<MethodNeeds> {};

TEST_P(SimulatedAttention, EqualsDenseAttentionWhereNothingIsDamaged) {
  SimulatedConfig config = ConfigOf(DType::kF32);
  config.rope = &Rope();
  const bool rope = GetParam().keys_before_rope;
  SimulatedKvCache cache(config, std::make_shared<Probe>(GetParam()));
  DenseKvStore dense(kGeometry);
  for (KvStore* store : {static_cast<KvStore*>(&cache), static_cast<KvStore*>(&dense)}) {
    EXPECT_EQ(store->Open(), 0);
    EXPECT_EQ(store->Open(), 1);
  }
  const std::vector<std::vector<Part>> forwards = {
      {{0, 130}}, {{1, 3}}, {{0, 1}, {1, 1}}, {{1, 200}, {0, 7}}, {{0, 1}, {1, 1}}};
  for (const auto& parts : forwards) {
    ExpectNear(Forward(cache, parts, rope), Forward(dense, parts, rope));
  }
  EXPECT_FALSE(cache.Open().has_value());
  EXPECT_GE(cache.StoreStats().arena_bytes, 2u * 2 * (139 + 205) * 32 * sizeof(float));
}

INSTANTIATE_TEST_SUITE_P(Needs, SimulatedAttention,
                         testing::Values(MethodNeeds{}, MethodNeeds{false, true},
                                         MethodNeeds{true, false}));

TEST(SimulatedCache, HandsOverTheInputOfEachSequencesTokens) {
  const auto probe = std::make_shared<Probe>(MethodNeeds{false, false, true});
  SimulatedKvCache cache(ConfigOf(DType::kF32), probe);
  ASSERT_EQ(cache.Open(), 0);
  ASSERT_EQ(cache.Open(), 1);
  Forward(cache, {{1, 4}, {0, 2}});
  EXPECT_EQ(probe->first_input, MakeRows(kGeometry, 1, 0, 0, 1).q[0]);
  Forward(cache, {{0, 3}, {1, 1}});
  EXPECT_EQ(probe->first_input, MakeRows(kGeometry, 2, 0, 4, 1).q[0]);
}

TEST(SimulatedCache, AttentionSumsAreTheWeightsOfTheNewRows) {
  const auto probe = std::make_shared<Probe>(MethodNeeds{false, true});
  SimulatedKvCache cache(ConfigOf(DType::kF32), probe);
  ASSERT_EQ(cache.Open(), 0);
  Forward(cache, {{0, 5}});
  Forward(cache, {{0, 1}});
  EXPECT_EQ(probe->appended, std::make_pair(int64_t{5}, int64_t{1}));
  ASSERT_EQ(probe->sums.size(), 2u * 6);

  const std::vector<float> q = MakeRows(kGeometry, 1, 0, 5, 1).q;
  const std::vector<float> k = MakeRows(kGeometry, 1, 0, 0, 6).k;
  for (size_t kv_head = 0; kv_head < 2; ++kv_head) {
    std::vector<double> expected(6);
    for (size_t head = 2 * kv_head; head < 2 * kv_head + 2; ++head) {
      std::vector<double> weights(6);
      double total = 0;
      for (size_t m = 0; m < 6; ++m) {
        double score = 0;
        for (size_t i = 0; i < 16; ++i) {
          score += double{q[head * 16 + i]} * double{k[m * 32 + kv_head * 16 + i]};
        }
        weights[m] = std::exp(score / 4);
        total += weights[m];
      }
      for (size_t m = 0; m < 6; ++m) expected[m] += weights[m] / total;
    }
    for (size_t m = 0; m < 6; ++m) EXPECT_NEAR(probe->sums[kv_head * 6 + m], expected[m], 1e-5);
  }
}

TEST(SimulatedCache, StoresFullPrecisionValuesInTheFloatType) {
  SimulatedKvCache cache(ConfigOf(DType::kBF16), std::make_shared<Probe>(MethodNeeds{}));
  ASSERT_EQ(cache.Open(), 0);
  Forward(cache, {{0, 130}});
  const Rows rows = MakeRows(kGeometry, 1, 1, 0, 130);
  const SimulatedBlock& block = cache.Block(0, 1);
  ASSERT_EQ(block.num_tokens(), 130);
  for (int64_t t = 0; t < 130; ++t) {
    for (int64_t i = 0; i < 32; ++i) {
      const auto index = static_cast<size_t>(t * 32 + i);
      ASSERT_EQ(block.Key(t, i / 16)[i % 16], ToFloat(ToBF16(rows.k[index])));
      ASSERT_EQ(block.Value(t, i / 16)[i % 16], ToFloat(ToBF16(rows.v[index])));
    }
  }
}

TEST(SimulatedCache, KeysThatAMethodChangesLaterAreRotatedAgain) {
  const auto attend = [](bool negates) {
    SimulatedConfig config = ConfigOf(DType::kF32);
    config.rope = &Rope();
    const auto probe = std::make_shared<Probe>(MethodNeeds{true, false});
    probe->negates_first_key = negates;
    SimulatedKvCache cache(config, probe);
    EXPECT_EQ(cache.Open(), 0);
    Forward(cache, {{0, 3}}, true);
    const float before = std::as_const(cache).Block(0, 0).Key(0, 0)[0];
    Forward(cache, {{0, 1}}, true);  // Negates after it has attended.
    EXPECT_EQ(std::as_const(cache).Block(0, 0).Key(0, 0)[0], negates ? -before : before);
    return Forward(cache, {{0, 1}}, true);
  };
  const std::vector<float> plain = attend(false);
  const std::vector<float> changed = attend(true);
  EXPECT_GT(std::abs(plain[0] - changed[0]), 1e-3f) << "a head of KV head 0 reads the new key";
  EXPECT_EQ(plain[3 * 16], changed[3 * 16]) << "one of KV head 1 does not";
}

TEST(SimulatedCache, BudgetCountsTheMostOnTheWay) {
  const auto probe = std::make_shared<Probe>(MethodNeeds{});
  EXPECT_EQ(MostBlockBytes(*probe, 0, 3), 450);
  EXPECT_EQ(MostBlockBytes(*probe, 0, 4), 450);
  EXPECT_EQ(MostBlockBytes(*probe, 0, 7), 550);
  SimulatedKvCache cache(ConfigOf(DType::kF16, 500), probe);
  ASSERT_EQ(cache.Open(), 0);
  EXPECT_EQ(cache.Reserve(0, 7), ReserveResult::kBudgetExhausted);
  EXPECT_EQ(cache.Reserve(0, 8), ReserveResult::kBudgetExhausted) << "7 tokens lie on the way";
  Forward(cache, {{0, 3}});
  EXPECT_EQ(cache.SequenceStats(0).bytes, 2 * 450);
  Forward(cache, {{0, 1}});
  const KvSequenceStats stats = cache.SequenceStats(0);
  EXPECT_EQ(stats.bytes, 2 * 100);
  EXPECT_EQ(stats.peak_bytes, 2 * 450);
  EXPECT_EQ(stats.budget_bytes, 2 * 500);
  EXPECT_EQ(stats.num_tokens, 4);
  EXPECT_EQ(cache.LayerStats(0, 1).bytes, 100);
  EXPECT_EQ(cache.LayerStats(0, 1).budget_bytes, 500);
  Forward(cache, {{0, 2}});
  EXPECT_EQ(cache.Reserve(0, 1), ReserveResult::kBudgetExhausted);
  EXPECT_EQ(cache.NumTokens(0), 6) << "nothing was changed";
}

TEST(SimulatedCache, TruncateDropsTheTailAndTellsTheMethod) {
  const auto probe = std::make_shared<Probe>(MethodNeeds{});
  SimulatedKvCache cache(ConfigOf(DType::kF32), probe);
  SimulatedKvCache shorter(ConfigOf(DType::kF32), std::make_shared<Probe>(MethodNeeds{}));
  ASSERT_EQ(cache.Open(), 0);
  ASSERT_EQ(shorter.Open(), 0);
  Forward(cache, {{0, 300}});
  cache.Truncate(0, 131);
  EXPECT_EQ(probe->first_state->cut_to, 131);
  EXPECT_EQ(cache.NumTokens(0), 131);
  Forward(shorter, {{0, 131}});
  EXPECT_EQ(Forward(cache, {{0, 2}}), Forward(shorter, {{0, 2}}));

  cache.Truncate(0, 0);
  EXPECT_EQ(cache.SequenceStats(0).bytes, 0);
  cache.Close(0);
  ASSERT_EQ(cache.Open(), 0);
  EXPECT_EQ(cache.SequenceStats(0).peak_bytes, 0);
}

TEST(SimulatedCache, RefusesValuesThatDoNotFit) {
  for (const float bad : {1e6f, std::numeric_limits<float>::quiet_NaN()}) {
    SimulatedKvCache cache(ConfigOf(DType::kF16), std::make_shared<Probe>(MethodNeeds{}));
    ASSERT_EQ(cache.Open(), 0);
    ASSERT_EQ(cache.Reserve(0, 1), ReserveResult::kReserved);
    Rows rows = MakeRows(kGeometry, 1, 0, 0, 1);
    rows.v[31] = bad;
    cache.BeginForward({{0, 1}});
    std::vector<float> out(rows.q.size());
    cache.AppendAndAttend(1, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    cache.EndForward();
    const KvFailure* failure = cache.FailureOf(0);
    ASSERT_NE(failure, nullptr);
    EXPECT_EQ(failure->where, "kv cache, block 1, position 0");
    EXPECT_NE(failure->what.find("value"), std::string::npos) << failure->what;
    EXPECT_NE(failure->what.find(bad > 0 ? "--kv-dtype bf16" : "finite numbers"), std::string::npos)
        << failure->what;
    EXPECT_EQ(cache.NumTokens(0), 0);
    EXPECT_EQ(cache.Reserve(0, 1), ReserveResult::kFailed);
    cache.Close(0);
  }
}

// Methods compute with queries, inputs and attention weights; none of them meets one that is not
// finite.
TEST(SimulatedCache, RefusesWhatMethodsCannotComputeWith) {
  MethodNeeds attention;
  attention.attention = true;
  MethodNeeds input;
  input.block_input = true;
  const float inf = std::numeric_limits<float>::infinity();
  const auto fail = [&](const MethodNeeds& needs, float query, float in) {
    const auto probe = std::make_shared<Probe>(needs);
    SimulatedKvCache cache(ConfigOf(DType::kF32), probe);
    EXPECT_EQ(cache.Open(), 0);
    EXPECT_EQ(cache.Reserve(0, 2), ReserveResult::kReserved);
    Rows rows = MakeRows(kGeometry, 1, 0, 0, 2);
    std::fill(rows.q.begin() + 64, rows.q.begin() + 80, query);
    std::fill(rows.k.begin() + 32, rows.k.begin() + 48, 1e4f);
    std::vector<float> inputs(16, 1.0f);
    inputs[8] = in;
    cache.BeginForward({{0, 2}});
    std::vector<float> out(rows.q.size());
    cache.OfferExtras(0, {nullptr, inputs.data(), 8});
    cache.AppendAndAttend(0, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    cache.EndForward();
    const KvFailure* failure = cache.FailureOf(0);
    EXPECT_EQ(probe->appended.second, failure == nullptr ? 2 : 0);
    return failure == nullptr ? "" : failure->where + ": " + failure->what;
  };
  const std::string where = "kv cache, block 0, position 1: ";
  EXPECT_EQ(fail({}, 1.0f, 1.0f), "");
  EXPECT_EQ(fail({}, inf, 1.0f).find(where + "the model produced a non-finite query: found inf"),
            0u);
  EXPECT_EQ(fail(input, 1.0f, -inf).find(where + "the model produced a non-finite block input"),
            0u);
  EXPECT_EQ(fail(attention, 1.0f, 1.0f), "");
  EXPECT_EQ(fail(attention, 1e38f, 1.0f).find(where + "the model produced a non-finite attention"),
            0u);
}

// What the method holds between the tokens of a chunk counts.
TEST(SimulatedCache, PeaksWithinAChunkCount) {
  for (const int64_t chunk : {1, 3, 4, 11}) {
    SimulatedKvCache cache(ConfigOf(DType::kF32), std::make_shared<Probe>(MethodNeeds{}));
    ASSERT_EQ(cache.Open(), 0);
    for (int64_t n = 0; n < 44; n += chunk) {
      Forward(cache, {{0, std::min(chunk, 44 - n)}});
    }
    EXPECT_EQ(cache.SequenceStats(0).bytes, 2 * 1100) << chunk;
    EXPECT_EQ(cache.SequenceStats(0).peak_bytes, 2 * (1000 + 450)) << chunk;
  }
}

TEST(SimulatedCache, NamesTheBudgetThatHoldsNoToken) {
  ExpectError<InvalidInput>(
      [] {
        SimulatedKvCache cache(ConfigOf(DType::kF16, 149), std::make_shared<Probe>(MethodNeeds{}));
      },
      {"--kv-budget", "found 149 bytes for block 0", "at least 150"});
}

TEST(SimulatedKvCacheTest, AForwardWaitsWhileAnotherOneRuns) {
  const auto make = [] {
    return std::make_unique<SimulatedKvCache>(ConfigOf(DType::kF16),
                                              std::make_shared<Probe>(MethodNeeds{}));
  };
  const auto alone = make();
  const SequenceId first = *alone->Open();
  const SequenceId second = *alone->Open();
  const std::vector<float> expected = Forward(*alone, {{first, 20}});
  const std::vector<float> expected_between = Forward(*alone, {{second, 3}});

  const auto mixed = make();
  ASSERT_EQ(mixed->Open(), first);
  ASSERT_EQ(mixed->Open(), second);
  ASSERT_EQ(mixed->Reserve(first, 20), ReserveResult::kReserved);
  mixed->BeginForward({{first, 20}});
  std::vector<float> found;
  for (int64_t layer = 0; layer < kGeometry.num_layers; ++layer) {
    const Rows rows = MakeRows(kGeometry, static_cast<uint64_t>(first) + 1, layer, 0, 20);
    std::vector<float> out(rows.q.size());
    mixed->AppendAndAttend(layer, rows.q.data(), rows.k.data(), rows.v.data(), out.data());
    found.insert(found.end(), out.begin(), out.end());
    mixed->SwapForwards();
    if (layer == 0) {
      EXPECT_EQ(Forward(*mixed, {{second, 3}}), expected_between);
    }
    mixed->SwapForwards();
  }
  mixed->EndForward();
  EXPECT_EQ(found, expected);
  EXPECT_EQ(mixed->NumTokens(first), 20);
  EXPECT_EQ(mixed->NumTokens(second), 3);
}

}  // namespace
}  // namespace pmkvq
