#include "pmkvq/model/blocks/attention_mla.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "pmkvq/model/model_size.h"
#include "support/block_weights.h"
#include "support/dense_kv_store.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::BindRandomWeights;
using testing_support::DenseKvStore;
using testing_support::NormalDraw;

struct Variant {
  const char* name;
  int64_t query_rank;
  int64_t value_dim;  // Narrower or wider than queries, which have 20.
  bool in_pairs;
  bool split_up;
};

class AttentionMlaTest : public testing::TestWithParam<Variant> {
 protected:
  AttentionMlaTest() : config_(Config(GetParam())), rope_(Rope()), attention_(config_, rope_, 0) {
    attention_.Declare(list_);
    tensors_ = BindRandomWeights(list_, random_);
    positions_.resize(kTokens);
    std::iota(positions_.begin(), positions_.end(), int64_t{0});
  }

  static ModelConfig Config(const Variant& variant) {
    ModelConfig config;
    config.hidden_size = 24;
    config.num_layers = 1;
    config.num_heads = 3;
    config.num_kv_heads = 1;
    config.rms_norm_eps = 1e-3;
    MlaConfig mla;
    mla.query_rank = variant.query_rank;
    mla.latent = 16;
    mla.nope_dim = 12;
    mla.rope_dim = 8;
    mla.value_dim = variant.value_dim;
    mla.rope_in_pairs = variant.in_pairs;
    mla.split_up = variant.split_up;
    mla.score_factor = 1.4;
    config.head_dim = mla.nope_dim + mla.rope_dim;
    config.mla = mla;
    return config;
  }

  static RopeTable Rope() {
    RopeParams params;
    params.head_dim = 8;
    return RopeTable(params);
  }

  std::vector<double> RandomRows() {
    std::vector<double> values(static_cast<size_t>(kTokens * config_.hidden_size));
    for (double& value : values) value = NormalDraw(random_);
    return values;
  }

  // x + Attention(x) of the whole sequence.
  std::vector<double> Sequence(std::vector<double> x) {
    Scratch<double> scratch;
    const auto pass = attention_.Start(SequenceRows<double>{positions_, &scratch, 1});
    pass->ComputeStates(x.data());
    pass->AddAttention(x.data());
    return x;
  }

  // The rows of one step, those of `read` of which are computed.
  std::vector<float> Batched(const std::vector<double>& input, const std::vector<RowSlice>& slices,
                             const std::vector<RowSlice>& read, int threads, DenseKvStore& store) {
    std::vector<float> x(input.begin(), input.end());
    const SequenceId seq = store.Open().value();
    EXPECT_EQ(store.Reserve(seq, kTokens), ReserveResult::kReserved);
    store.BeginForward({{seq, kTokens, false}});
    Scratch<float> scratch;
    ForwardRows rows;
    rows.num_rows = kTokens;
    rows.positions = positions_.data();
    rows.slices = slices;
    rows.read_slices = read;
    for (const auto* list : {&slices, &read}) {
      for (const RowSlice& slice : *list) {
        rows.max_slice_rows = std::max(rows.max_slice_rows, slice.num_rows);
      }
    }
    rows.scratch = &scratch;
    rows.num_threads = threads;
    attention_.Forward(rows, store, x.data());
    store.EndForward();
    return x;
  }

  double Along(const std::vector<double>& values, const std::vector<double>& direction) const {
    return std::inner_product(values.begin(), values.end(), direction.begin(), 0.0);
  }

  static constexpr int64_t kTokens = 21;
  Random random_{3};
  const ModelConfig config_;
  const RopeTable rope_;
  AttentionMla attention_;
  WeightList list_;
  std::vector<Tensor> tensors_;
  std::vector<int64_t> positions_;
};

TEST_P(AttentionMlaTest, DeclaresTheWeightsOfTheConfig) {
  std::vector<std::string> names;
  for (const WeightSlot& slot : list_.slots()) names.push_back(slot.name);
  std::vector<std::string> expected = {"attn.norm"};
  const auto add = [&](std::initializer_list<const char*> more) {
    expected.insert(expected.end(), more.begin(), more.end());
  };
  if (GetParam().query_rank > 0) {
    add({"attn.q_a", "attn.q_a_norm", "attn.q_b"});
  } else {
    add({"attn.q"});
  }
  add({"attn.kv_a", "attn.kv_a_norm"});
  if (GetParam().split_up) {
    add({"attn.k_b", "attn.v_b"});
  } else {
    add({"attn.kv_b"});
  }
  add({"attn.o"});
  EXPECT_EQ(names, expected);
  EXPECT_DOUBLE_EQ(attention_.scale(), 1.4 / std::sqrt(20.0));
}

// The absorbed form of the batched rows, in two slices of which the last rows are read, against the
// plain form of a sequence. Float against double: sums of at most 32 products near 1, 1e-4 is a
// hundred times the error.
TEST_P(AttentionMlaTest, BatchedRowsAreThoseOfASequence) {
  const std::vector<double> input = RandomRows();
  const std::vector<double> expected = Sequence(input);
  const std::vector<float> before(input.begin(), input.end());
  constexpr int64_t kFirstRead = 8;
  DenseKvStore store(KvGeometryOf(config_));
  const std::vector<float> x =
      Batched(input, {{0, 15}, {15, kTokens - 15}}, {{kFirstRead, kTokens - kFirstRead}}, 1, store);
  for (size_t i = 0; i < x.size(); ++i) {
    if (static_cast<int64_t>(i) < kFirstRead * config_.hidden_size) {
      ASSERT_EQ(x[i], before[i]) << "nobody reads it";
    } else {
      ASSERT_NEAR(static_cast<double>(x[i]), expected[i], 1e-4) << i;
    }
  }
  EXPECT_EQ(store.Keys(0, 0).size(), static_cast<size_t>(kTokens * config_.mla->latent));
  DenseKvStore single_rows(KvGeometryOf(config_));
  std::vector<RowSlice> rows;
  for (int64_t row = 0; row < kTokens; ++row) rows.push_back({row, 1});
  const std::vector<float> singles =
      Batched(input, rows, {{kFirstRead, kTokens - kFirstRead}}, 2, single_rows);
  EXPECT_EQ(singles, x) << "bits of a row do not depend on its slice";
}

// Attention over states that are handed over is that over states that were changed, and leaves a
// pass as it was.
TEST_P(AttentionMlaTest, AttentionOfOtherStates) {
  const std::vector<double> x = RandomRows();
  Scratch<double> scratch;
  const auto pass = attention_.Start(SequenceRows<double>{positions_, &scratch, 2});
  pass->ComputeStates(x.data());
  const BlockStates<double> states = pass->States();
  const int64_t latent_count = kTokens * config_.mla->latent;
  const int64_t rope_count = kTokens * config_.mla->rope_dim;
  std::vector<double> latents(states.k, states.k + latent_count);
  std::vector<double> rope_keys(states.v, states.v + rope_count);
  std::vector<double> step(latents.size() + rope_keys.size());
  for (double& value : step) value = NormalDraw(random_);
  for (size_t i = 0; i < latents.size(); ++i) latents[i] += step[i];
  for (size_t i = 0; i < rope_keys.size(); ++i) rope_keys[i] += step[latents.size() + i];
  std::vector<double> out(x.size());
  pass->AttentionOf(latents.data(), rope_keys.data(), out.data());
  std::vector<double> after = x;
  pass->AddAttention(after.data());
  EXPECT_EQ(after, Sequence(x));

  const auto moved = attention_.Start(SequenceRows<double>{positions_, &scratch, 2});
  moved->ComputeStates(x.data());
  moved->AddToStates(step.data(), step.data() + latent_count);
  std::vector<double> zero(x.size());
  moved->AddAttention(zero.data());
  EXPECT_EQ(out, zero);
}

// The derivative of sum(direction * (x + Attention(x))) along a random step, by central differences
// in double: their error is about 1e-10 of the third derivative, plus 1e-16 / 1e-5 of the sum.
TEST_P(AttentionMlaTest, GradientIsAFiniteDifference) {
  const std::vector<double> x = RandomRows();
  const std::vector<double> direction = RandomRows();
  const std::vector<double> step = RandomRows();
  Scratch<double> scratch;
  const auto pass = attention_.Start(SequenceRows<double>{positions_, &scratch, 2});
  pass->ComputeStates(x.data());
  std::vector<double> after = x;
  pass->AddAttention(after.data());
  std::vector<double> dx = direction;
  pass->AttentionGrad(dx.data());
  pass->ProjectionOutputGrad();
  pass->InputGrad(x.data(), dx.data());

  constexpr double kStep = 1e-5;
  std::vector<double> above = x;
  std::vector<double> below = x;
  for (size_t i = 0; i < x.size(); ++i) {
    above[i] += kStep * step[i];
    below[i] -= kStep * step[i];
  }
  const double expected =
      (Along(Sequence(above), direction) - Along(Sequence(below), direction)) / (2.0 * kStep);
  EXPECT_NEAR(Along(dx, step), expected, 1e-6 * std::abs(expected) + 1e-6);
  EXPECT_GT(std::abs(expected), 1.0) << "a derivative to tell apart from none";
}

// The same with respect to what is cached, and to the matrix that makes it, whose floats are moved
// by 2^-10 each, which is exact; the third derivative then counts for 1e-6.
TEST_P(AttentionMlaTest, GradientsOfStatesAndTheirProjection) {
  const std::vector<double> x = RandomRows();
  const std::vector<double> direction = RandomRows();
  Scratch<double> scratch;
  const auto pass = attention_.Start(SequenceRows<double>{positions_, &scratch, 1});
  pass->ComputeStates(x.data());
  std::vector<double> after = x;
  pass->AddAttention(after.data());
  pass->AttentionGrad(direction.data());
  const int64_t widths[] = {config_.mla->latent, config_.mla->rope_dim};
  const BlockStates<double> states = pass->States();
  const double* const gradients[] = {states.dk, states.dv};
  for (const size_t side : {0, 1}) {
    std::vector<double> delta(static_cast<size_t>(kTokens * widths[side]));
    for (double& value : delta) value = 1e-5 * NormalDraw(random_);
    const std::vector<double> gradient(gradients[side], gradients[side] + delta.size());
    const auto moved = [&] {
      Scratch<double> other;
      const auto perturbed = attention_.Start(SequenceRows<double>{positions_, &other, 1});
      perturbed->ComputeStates(x.data());
      perturbed->AddToStates(side == 0 ? delta.data() : nullptr,
                             side == 1 ? delta.data() : nullptr);
      std::vector<double> y = x;
      perturbed->AddAttention(y.data());
      return Along(y, direction);
    };
    const double up = moved();
    for (double& value : delta) value = -value;
    const double slope = (moved() - up) / 2;
    EXPECT_NEAR(Along(delta, gradient), slope, 1e-5 * std::abs(slope) + 1e-10) << side;
    EXPECT_GT(std::abs(slope), 1e-6) << side;
  }

  pass->ProjectionOutputGrad();
  const auto of_weights = pass->ProjectionWeightGrad(x.data());
  const auto slot = std::find_if(list_.slots().begin(), list_.slots().end(),
                                 [](const auto& each) { return each.name == "attn.kv_a"; });
  float* const values = tensors_[static_cast<size_t>(slot - list_.slots().begin())].As<float>();
  const int64_t latent_count = widths[0] * config_.hidden_size;
  for (const int64_t at : {int64_t{3}, latent_count - 5, latent_count + 2,
                           latent_count + widths[1] * config_.hidden_size - 1}) {
    constexpr float kStep = 0x1p-10;
    const float before = values[at];
    const auto loss = [&](float value) {
      values[at] = value;
      return Along(Sequence(x), direction);
    };
    const double above = loss(before + kStep);
    const double moved_up = double{values[at]} - before;
    const double below = loss(before - kStep);
    const double slope = (above - below) / (moved_up + before - double{values[at]});
    values[at] = before;
    const double gradient = at < latent_count ? of_weights.k[at] : of_weights.v[at - latent_count];
    EXPECT_NEAR(gradient, slope, 1e-4 * std::abs(slope) + 1e-5) << at;
  }
}

INSTANTIATE_TEST_SUITE_P(Variants, AttentionMlaTest,
                         testing::Values(Variant{"OneMatrix", 0, 12, true, false},
                                         Variant{"QueryRankAndWideValues", 14, 28, true, false},
                                         Variant{"Halves", 0, 20, false, false},
                                         Variant{"SplitWithQueryRank", 14, 12, true, true}),
                         [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace pmkvq
