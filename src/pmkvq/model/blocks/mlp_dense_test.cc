#include "pmkvq/model/blocks/mlp_dense.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "support/tiny_model.h"

namespace pmkvq {
namespace {

using testing_support::NormalDraw;
using testing_support::RandomTensor;

// An MLP with random weights, bound by its declarations alone.
class MlpDenseTest : public testing::Test {
 protected:
  MlpDenseTest() : mlp_(config_) {
    WeightList list;
    mlp_.Declare(list);
    tensors_.reserve(list.slots().size());
    for (const WeightSlot& slot : list.slots()) {
      const bool is_norm = slot.role == WeightRole::kNorm;
      const Tensor& tensor = tensors_.emplace_back(
          RandomTensor(DType::kF32, slot.shape, is_norm ? 1.0 : 0.0, is_norm ? 0.2 : 0.3, random_));
      if (is_norm) {
        slot.vector->assign(tensor.As<float>(), tensor.As<float>() + tensor.num_elements());
      } else {
        *slot.matrix = {tensor.view().data, WeightFormat::kF32, slot.shape[0], slot.shape[1]};
      }
    }
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

  // sum of direction * (x + Mlp(x)).
  double Along(const std::vector<double>& direction, std::vector<double> x) {
    Scratch<double> scratch;
    mlp_.Forward(Rows<double>(std::ssize(x) / config_.hidden_size, scratch), x.data());
    return std::inner_product(x.begin(), x.end(), direction.begin(), 0.0);
  }

  Random random_{5};
  const ModelConfig config_ = Config();
  MlpDense mlp_;
  std::vector<Tensor> tensors_;
  std::vector<int64_t> positions_;
};

// 300 rows: more than are computed at once. The derivative along a random direction, by central
// differences; their error is about e^2 of the third derivative, plus 1e-16 / e of the sum.
TEST_F(MlpDenseTest, GradientIsAFiniteDifference) {
  constexpr int64_t kRows = 300;
  const std::vector<double> x = RandomRows<double>(kRows);
  const std::vector<double> direction = RandomRows<double>(kRows);
  const std::vector<double> step = RandomRows<double>(kRows);
  Scratch<double> scratch;
  std::vector<double> dx = direction;
  mlp_.Grad(Rows<double>(kRows, scratch), x.data(), dx.data());
  constexpr double kStep = 1e-5;
  std::vector<double> above = x;
  std::vector<double> below = x;
  for (size_t i = 0; i < x.size(); ++i) {
    above[i] += kStep * step[i];
    below[i] -= kStep * step[i];
  }
  const double expected = (Along(direction, above) - Along(direction, below)) / (2.0 * kStep);
  const double gradient = std::inner_product(dx.begin(), dx.end(), step.begin(), 0.0);
  EXPECT_NEAR(gradient, expected, 1e-6 * std::abs(expected) + 1e-6);
  EXPECT_GT(std::abs(expected), 1.0) << "a derivative to tell apart from none";
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
