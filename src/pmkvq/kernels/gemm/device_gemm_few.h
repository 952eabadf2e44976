// Products of at most 8 rows with a weight, on a CUDA device, at the speed at which the weight is
// read.
//
//   y[r, i] = sum_k (x0[r, k] + x1[r, k]) w[i, k]
//
// where x0 and x1 are the two parts of an operand (device_rows.h). Or, with `gated`, of a weight
// [2 n, k], gate first: silu(y[r, i]) * y[r, n + i], rounded to the operand of the next product.
// For decoding few sequences: the kernel asks for its first weights before it waits for the kernel
// ahead of it on the stream, so that memory is busy while a norm, or attention, runs on a corner of
// the device.
//
// Bits: a row's result depends on that row alone. It is not the same as DeviceGemm's.
//
// Threads: one caller per stream.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

inline constexpr int64_t kMostFewRows = 8;

// Whether there is code for weights [n, k] of the type.
constexpr bool HasFewRowsProduct(DType type, int64_t k) {
  return (type == DType::kF16 || type == DType::kBF16) && k % 64 == 0;
}

// All pointers are of the device, 16-byte aligned.
struct FewRowsProduct {
  // Rows first_row to first_row + rows - 1 of both parts, [2 * part_rows, k].
  ProductRows x;
  int64_t first_row = 0;
  int64_t rows = 0;              // At most kMostFewRows.
  const std::byte* w = nullptr;  // [n, k] of x.type, row-major.
  int64_t n = 0;
  int64_t k = 0;
  float* y = nullptr;  // [rows, n]
  // Where its data is not null, rows first_row, ... of it are written, and not y.
  ProductRows gated = {};
};

// Launches and returns. Throws Unsupported in a program without CUDA, DeviceError.
void MultiplyFewRows(const FewRowsProduct& op, Stream& stream);

}  // namespace pmkvq
