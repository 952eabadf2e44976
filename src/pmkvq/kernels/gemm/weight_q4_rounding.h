// Rounding of weights to 4-bit codes with the second moment of their inputs.
//
// Of a matrix W [N, K] that is multiplied with inputs x, the error that counts is that of the
// outputs, sum over x of |(W - Q) x|^2 = tr (W - Q) H (W - Q)^T with H = sum of x x^T. Columns are
// rounded one after the other, and what rounding column k left is made up for in the columns behind
// it, as GPTQ does (Frantar et al. 2022, arXiv 2210.17323, equations 2 and 3): with U^T U = H^-1, U
// upper triangular, and the error e = (w_k - q_k) / U[k, k],
//     w_j -= e U[k, j] for j > k.
// Scale and minimum of a group of 32 are set when its first column's turn comes, by least squares
// with the weight 1 / U[k, k]^2 of column k.
#pragma once

#include <cstdint>

#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/kernels/gemm/weight_q4.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

// Adds x^T x to the second moment [K, K], of which only i <= j is kept; x [num_rows, K]. Bits do
// not depend on the number of threads.
void AddSecondMoment(const float* x, int64_t num_rows, int64_t cols, float* moment,
                     const ExecContext& exec);

// In place: the second moment becomes U [K, K] of (H + damping)^-1, where damping is a hundredth of
// the mean of H's diagonal, ten times as much for each time that H cannot be inverted so. A moment
// of zeros gives the identity, with which rounding is to the nearest. Throws InvalidInput when the
// moment holds a value that is not finite. Takes 8 K^2 bytes meanwhile.
void FactorForRounding(int64_t cols, float* moment);

// As QuantizeWeightToQ4 (weight_q4.h), but rounded with `factor`, U [K, K]; K is a multiple of 32
// (check). Bits do not depend on the number of threads; they do on BLAS.
[[nodiscard]] bool RoundWeightToQ4(const WeightView& weight, const float* factor,
                                   const ExecContext& exec, Q4Weight& out);

}  // namespace pmkvq
