// Several products in one loop against each of them alone.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <vector>

#include "pmkvq/kernels/gemm/gemm.h"

namespace pmkvq::testing_support {

// Expects the bits of each product alone from all in one loop, and gives them. x [rows, cols];
// weight 1 has no bias.
inline std::vector<std::vector<float>> ExpectSharedEqualsAlone(std::span<const WeightView> weights,
                                                               const std::vector<float>& x,
                                                               int64_t rows,
                                                               const std::vector<float>& bias) {
  std::vector<std::vector<float>> shared(weights.size());
  std::vector<Projection<float>> projections;
  for (size_t i = 0; i < weights.size(); ++i) {
    shared[i].resize(static_cast<size_t>(rows * weights[i].rows));
    projections.push_back({&weights[i], i == 1 ? nullptr : bias.data(), shared[i].data()});
  }
  MatMulShared<float>(x.data(), rows, projections, 2);
  for (size_t i = 0; i < weights.size(); ++i) {
    std::vector<float> alone(shared[i].size());
    MatMul(x.data(), rows, weights[i], projections[i].bias, alone.data(), 1);
    EXPECT_EQ(alone, shared[i]) << "weight " << i << ", " << rows << " rows";
  }
  return shared;
}

}  // namespace pmkvq::testing_support
