// Parts of a block with random weights, and the check of their gradients.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "pmkvq/model/blocks/block.h"
#include "support/tiny_model.h"

namespace pmkvq::testing_support {

// Gives all declared weights random values, which lie in the tensors that are returned.
inline std::vector<Tensor> BindRandomWeights(const WeightList& list, Random& random) {
  std::vector<Tensor> tensors;
  tensors.reserve(list.slots().size());
  for (const WeightSlot& slot : list.slots()) {
    const bool is_norm = slot.role == WeightRole::kNorm;
    const Tensor& tensor = tensors.emplace_back(
        RandomTensor(DType::kF32, slot.shape, is_norm ? 1.0 : 0.0, is_norm ? 0.2 : 0.3, random));
    if (slot.matrix != nullptr) {
      *slot.matrix = {tensor.view().data, WeightFormat::kF32, slot.shape[0], slot.shape[1]};
    } else {
      slot.vector->assign(tensor.As<float>(), tensor.As<float>() + tensor.num_elements());
    }
  }
  return tensors;
}

// 300 rows: more than are computed at once. The derivative along a random direction, by central
// differences; their error is about e^2 of the third derivative, plus 1e-16 / e of the sum.
inline void ExpectGradientIsAFiniteDifference(const Mlp& mlp, int64_t hidden, Random& random) {
  constexpr int64_t kRows = 300;
  constexpr double kStep = 1e-5;
  const std::vector<int64_t> positions(kRows);
  const auto random_rows = [&] {
    std::vector<double> values(static_cast<size_t>(kRows * hidden));
    for (double& value : values) value = NormalDraw(random);
    return values;
  };
  const std::vector<double> x = random_rows();
  const std::vector<double> direction = random_rows();
  const std::vector<double> step = random_rows();
  // sum of direction * (y + Mlp(y)), y = x + distance * step.
  const auto along = [&](double distance) {
    std::vector<double> y = x;
    for (size_t i = 0; i < y.size(); ++i) y[i] += distance * step[i];
    Scratch<double> scratch;
    mlp.Forward(SequenceRows<double>{positions, &scratch, 2}, y.data());
    return std::inner_product(y.begin(), y.end(), direction.begin(), 0.0);
  };
  Scratch<double> scratch;
  std::vector<double> dx = direction;
  mlp.Grad(SequenceRows<double>{positions, &scratch, 2}, x.data(), dx.data());
  const double expected = (along(kStep) - along(-kStep)) / (2.0 * kStep);
  const double gradient = std::inner_product(dx.begin(), dx.end(), step.begin(), 0.0);
  EXPECT_NEAR(gradient, expected, 1e-6 * std::abs(expected) + 1e-6);
  EXPECT_GT(std::abs(expected), 1.0) << "a derivative to tell apart from none";
}

}  // namespace pmkvq::testing_support
