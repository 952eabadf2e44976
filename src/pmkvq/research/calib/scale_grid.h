// The exponents that the searches of key scales try, and the scales that they give. Private to this
// folder.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "pmkvq/research/calib/calibration.h"

namespace pmkvq {

inline constexpr const char* kRepScalesTask = "rep-scales";

// 1 - n / grid
double AlphaAt(int n, int grid);
// max_keys^alpha within the bounds [1e-4, 1e4].
Tensor ScalesAt(const Tensor& max_keys, double alpha);
std::string HashTensors(const std::vector<Tensor>& tensors);

// The first of the least losses, which has the largest alpha.
double BestAlpha(const std::vector<double>& loss, int grid);

// SearchRepScales of a model of latent blocks; its arguments are checked.
RepScales SearchLatentScales(const CalibrationContext& context, const std::vector<Tensor>& max_keys,
                             const RepScaleOptions& options);

}  // namespace pmkvq
