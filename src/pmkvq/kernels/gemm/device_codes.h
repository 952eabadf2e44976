// Products with quantised weights on a device (device_codes_layout.h), up to kDecodeRows rows, from
// the codes. The weight's bytes are read once for 32 rows.
//
// Numerics: operands are two parts of F16 (device_rows.h), codes are exact in F16. Sums of a group
// and of groups are float; of a group with a minimum also the sum of x is needed, which a tensor-
// core product with ones gives. A row's bits depend neither on the number of rows nor on the
// others.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/device_rows/device_rows.h"
#include "pmkvq/kernels/gemm/device_codes_layout.h"
#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// y[r, i] = sum_k (x0[r, k] + x1[r, k]) w[i, k]
struct DeviceCodesProduct {
  ProductRows x;  // Two parts of F16, at a multiple of 16 bytes.
  DeviceCodes w;
  float* y = nullptr;
  int64_t y_stride = 0;  // Elements from one row of y to the next: at least w.n.
  int64_t rows = 0;      // 1 .. kDecodeRows
};

// Launches on the stream and returns; may be captured, and may begin before the launch ahead of it
// has ended. Throws Unsupported in a program without code for the device.
void MultiplyCodes(const DeviceCodesProduct& product, Stream& stream);

// The weights as rows [n, k] of `type` (kF16, kBF16, kF32), each rounded to it once, for products
// of many rows. `out` begins at a multiple of 16 bytes. Launches and returns.
void ExpandCodes(const DeviceCodes& w, DType type, std::byte* out, Stream& stream);

namespace internal {
// Of a backend. The arguments are checked.
void MultiplyCodesCuda(const DeviceCodesProduct& product, Stream& stream);
void ExpandCodesCuda(const DeviceCodes& w, DType type, std::byte* out, Stream& stream);
}  // namespace internal

}  // namespace pmkvq
