// Products of a Forward on a device: which kernel multiplies which rows. Private to this folder.
//
// Rows of single tokens have the same bits in any batch. Engines of at most kMostFewRows sequences
// multiply them by a kernel that is faster and adds up in another order (device_gemm_few.h): it is
// chosen by the engine, not by the batch.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pmkvq/base/round_up.h"
#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/model/device/device_weights.h"
#include "pmkvq/model/device/device_workspace.h"
#include "pmkvq/model/forward_workspace.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

// Rows of one part of a product's operand: those of single tokens are always as many, so that their
// bits do not depend on the batch.
inline int64_t PartRows(int64_t rows) { return std::max(kDecodeRows, RoundUpTo(rows, 8)); }

// A matrix with codes as plain rows of its type, out [n, k]. Launches and returns.
void ExpandMatrix(const DeviceMatrix& matrix, std::byte* out, Stream& stream);

class DeviceProducts {
 public:
  DeviceProducts(DeviceWorkspace& workspace, Stream& stream, bool has_few_sequences)
      : own_(workspace), stream_(stream), has_few_sequences_(has_few_sequences) {}

  // Where rows go that are multiplied with such a matrix.
  ProductRows OperandOf(const DeviceMatrix& matrix, int64_t rows) const;
  bool MultipliesFew(const DeviceMatrix& matrix, bool are_single) const;
  // The product of OperandOf's rows. `are_single`: rows of single tokens.
  ProductSums Multiply(const DeviceMatrix& matrix, int64_t rows, bool are_single, float* sums);
  // Gate and up, their activation, and down, of OperandOf(gate_up)'s rows.
  ProductSums MultiplyMlp(const DeviceBlockWeights& weights, const RowSlice& slice, float* sums);
  // So that nothing has to be chosen, or loaded, while launches are captured.
  void Prepare(const DeviceWeights& weights);

 private:
  ProductSums MultiplyRows(const ProductRows& x, const DeviceMatrix& matrix, int64_t rows,
                           bool are_single, float* sums);
  void MultiplyFew(const ProductRows& x, const DeviceMatrix& matrix, int64_t rows, int64_t n,
                   float* y, const ProductRows& gated);

  DeviceWorkspace& own_;
  Stream& stream_;
  const bool has_few_sequences_;
};

}  // namespace pmkvq
