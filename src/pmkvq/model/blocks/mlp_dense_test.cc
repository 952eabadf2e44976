#include "pmkvq/model/blocks/mlp_dense.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "support/block_weights.h"
#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::BindRandomWeights;
using testing_support::ExpectGradientIsAFiniteDifference;
using testing_support::NormalDraw;

// An MLP with random weights, bound by its declarations alone.
class MlpDenseTest : public testing::Test {
 protected:
  MlpDenseTest() : mlp_(config_) {
    WeightList list;
    mlp_.Declare(list);
    tensors_ = BindRandomWeights(list, random_);
  }

  static ModelConfig Config() {
    ModelConfig config;
    config.hidden_size = 24;
    config.intermediate_size = 40;
    return config;
  }

  template <class Real>
  std::vector<Real> RandomRows(int64_t num_rows) {
    std::vector<Real> values(static_cast<size_t>(num_rows * config_.hidden_size));
    for (Real& value : values) value = static_cast<Real>(NormalDraw(random_));
    return values;
  }

  template <class Real>
  SequenceRows<Real> Rows(int64_t num_tokens, Scratch<Real>& scratch) {
    positions_.resize(static_cast<size_t>(num_tokens));
    return {positions_, &scratch, 2};
  }

  Random random_{5};
  const ModelConfig config_ = Config();
  MlpDense mlp_;
  std::vector<Tensor> tensors_;
  std::vector<int64_t> positions_;
};

TEST_F(MlpDenseTest, GradientIsAFiniteDifference) {
  ExpectGradientIsAFiniteDifference(mlp_, config_.hidden_size, random_);
}

// Both forward passes are one template: the rows of a slice have the bits of a sequence of as many.
TEST_F(MlpDenseTest, BatchedRowsHaveTheBitsOfASequence) {
  for (const int64_t rows : {1, 5, 70}) {
    std::vector<float> sequence = RandomRows<float>(rows);
    std::vector<float> batched = RandomRows<float>(3);  // Rows that nobody reads stay.
    const std::vector<float> before = batched;
    batched.insert(batched.end(), sequence.begin(), sequence.end());
    Scratch<float> scratch;
    mlp_.Forward(Rows<float>(rows, scratch), sequence.data());

    const RowSlice all{0, rows + 3};
    const RowSlice read{3, rows};
    ForwardRows forward;
    forward.num_rows = rows + 3;
    forward.slices = {&all, 1};
    forward.read_slices = {&read, 1};
    forward.max_slice_rows = rows + 3;
    forward.scratch = &scratch;
    mlp_.Forward(forward, batched.data());
    const auto begin = batched.begin() + std::ssize(before);
    EXPECT_EQ(std::vector<float>(batched.begin(), begin), before);
    EXPECT_EQ(std::vector<float>(begin, batched.end()), sequence);
  }
}

}  // namespace
}  // namespace pmkvq
