// Weights of 4 bits that are rounded for what they are multiplied with (weight_q4_rounding.h).
#pragma once

#include <cstdint>
#include <map>
#include <string>

#include "pmkvq/kernels/gemm/weight_q4.h"
#include "pmkvq/research/calib/calibration.h"

namespace pmkvq {

struct RoundedWeights {
  // By canonical name; the output head is "output_head", tied or not.
  std::map<std::string, Q4Weight> matrices;
  // Matrices that no token of the samples was multiplied with, as experts may be: rounded to the
  // nearest.
  int64_t num_unseen = 0;
};

// Whether a matrix of the model becomes Q4: not routers, and only where that saves a quarter of its
// bytes (FormatInMode) and rows are whole groups of 32.
bool IsRoundedToQ4(const Model::NamedMatrix& matrix);

// Rounds all of these, block by block, with the inputs that the samples give in the model as it is.
// The model is on the CPU (check). Without samples every matrix is rounded to the nearest.
//
// Memory: the residual stream of all samples, 4 E bytes a token; for each input of products of a
// block (4 of a dense one, two for each expert) 4 K^2 bytes, and 8 K^2 more for one at a time; and
// the result. Nothing is resumed. Throws Cancelled; InvalidInput for weights that are not finite,
// or too large for F16.
RoundedWeights RoundWeights(const CalibrationContext& context);

}  // namespace pmkvq
