#include "pmkvq/model/blocks/attention_gqa.h"

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

// Attention with random weights, bound by its declarations alone; with and without the optional
// ones, and a sliding window.
class AttentionGqaTest : public testing::TestWithParam<bool> {
 protected:
  AttentionGqaTest() : config_(Config(GetParam())), rope_(Rope()), attention_(config_, rope_, 0) {
    WeightList list;
    attention_.Declare(list);
    tensors_ = BindRandomWeights(list, random_);
    positions_.resize(kTokens);
    std::iota(positions_.begin(), positions_.end(), int64_t{0});
  }

  static ModelConfig Config(bool with_optional_weights) {
    ModelConfig config;
    config.hidden_size = 24;
    config.num_layers = 1;
    config.num_heads = 4;
    config.num_kv_heads = 2;
    config.head_dim = 8;
    config.qkv_bias = with_optional_weights;
    config.o_bias = with_optional_weights;
    config.qk_norm = with_optional_weights;
    if (with_optional_weights) config.sliding_windows = {7};
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

  static constexpr int64_t kTokens = 21;
  Random random_{3};
  const ModelConfig config_;
  const RopeTable rope_;
  AttentionGqa attention_;
  std::vector<Tensor> tensors_;
  std::vector<int64_t> positions_;
};

TEST_P(AttentionGqaTest, DeclaresOptionalWeightsByTheConfig) {
  EXPECT_EQ(tensors_.size(), GetParam() ? 11u : 5u);
  EXPECT_EQ(attention_.weights().q_bias.empty(), !GetParam());
  EXPECT_EQ(attention_.weights().o_bias.empty(), !GetParam());
  EXPECT_EQ(attention_.weights().k_norm.empty(), !GetParam());
}

// Both passes over the same tokens; those of the batched one in two slices, of which the last rows
// are read. Float against double: sums of at most 32 products near 1, 1e-4 is a hundred times the
// error.
TEST_P(AttentionGqaTest, BatchedRowsAreThoseOfASequence) {
  const std::vector<double> input = RandomRows();
  const std::vector<double> expected = Sequence(input);
  std::vector<float> x(input.begin(), input.end());
  const std::vector<float> before = x;

  DenseKvStore store(KvGeometryOf(config_));
  const SequenceId seq = store.Open().value();
  ASSERT_EQ(store.Reserve(seq, kTokens), ReserveResult::kReserved);
  store.BeginForward({{seq, kTokens, false}});
  constexpr int64_t kFirstRead = 8;
  const RowSlice slices[] = {{0, 15}, {15, kTokens - 15}};
  const RowSlice read[] = {{kFirstRead, kTokens - kFirstRead}};
  Scratch<float> scratch;
  ForwardRows rows;
  rows.num_rows = kTokens;
  rows.positions = positions_.data();
  rows.slices = slices;
  rows.read_slices = read;
  rows.max_slice_rows = 15;
  rows.scratch = &scratch;
  attention_.Forward(rows, store, x.data());
  store.EndForward();
  for (size_t i = 0; i < x.size(); ++i) {
    if (static_cast<int64_t>(i) < kFirstRead * config_.hidden_size) {
      ASSERT_EQ(x[i], before[i]) << "nobody reads it";
    } else {
      ASSERT_NEAR(static_cast<double>(x[i]), expected[i], 1e-4) << i;
    }
  }
  EXPECT_EQ(store.Keys(seq, 0).size(), static_cast<size_t>(kTokens * config_.kv_dim()));
}

// The derivative of sum(direction * (x + Attention(x))) along a random step, by central differences
// in double: their error is about 1e-10 of the third derivative, plus 1e-16 / 1e-5 of the sum.
TEST_P(AttentionGqaTest, GradientIsAFiniteDifference) {
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
  const auto along = [&](const std::vector<double>& values) {
    return std::inner_product(values.begin(), values.end(), direction.begin(), 0.0);
  };
  const double expected = (along(Sequence(above)) - along(Sequence(below))) / (2.0 * kStep);
  EXPECT_NEAR(std::inner_product(dx.begin(), dx.end(), step.begin(), 0.0), expected,
              1e-6 * std::abs(expected) + 1e-6);
  EXPECT_GT(std::abs(expected), 1.0) << "a derivative to tell apart from none";
}

INSTANTIATE_TEST_SUITE_P(OptionalWeights, AttentionGqaTest, testing::Bool());

}  // namespace
}  // namespace pmkvq
