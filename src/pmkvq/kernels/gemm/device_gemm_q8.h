// Products with q8 weights (weight_q8.h) on a device, up to kDecodeRows rows, from the codes: the
// weight's bytes are read once.
//
// On the device a matrix is tiles of 16 rows and 32 columns, a group of each row: 544 bytes, as
// many as the groups have. Both sizes are filled up with zeros. Tiles of the same 16 rows follow
// each other, then come those of the next 16. In a tile
//
//   bytes 0..511     a code, its sign as the highest bit and its magnitude in seven bits: of row r
//                    and column c, byte 256 (r / 8) + 8 (4 (r % 8) + c / 8) + c % 8
//   bytes 512..543   scales, BF16: of row r, byte 512 + 4 (r % 8) + 2 (r / 8)
//
// so that 8 bytes side by side are what one lane takes to a tensor-core product. Matrices whose
// rows are multiples of 16 may lie one behind the other, as one matrix.
//
// Numerics: codes are exact in 16 bits, and so is an F32 x as three BF16 values; sums of a group
// and of groups are float. A row's bits depend neither on the number of rows nor on the others.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/tensor/device/exec_context.h"
#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

namespace device_q8 {
inline constexpr int kRows = 16;  // Of a tile.
inline constexpr int kCols = 32;
inline constexpr int kCodeBytes = kRows * kCols;
inline constexpr int kTileBytes = kCodeBytes + 2 * kRows;
}  // namespace device_q8

// Bytes of a matrix of `rows` outputs and `cols` inputs.
size_t DeviceQ8Bytes(int64_t rows, int64_t cols);

// Writes a kQ8 weight in the device's layout to host memory, out [DeviceQ8Bytes], rows in their
// logical order, for the upload.
void LayOutQ8(const WeightView& weight, std::byte* out, const ExecContext& exec);

struct DeviceQ8Product {
  DType type = DType::kBF16;     // Of x: kF16, kBF16 or kF32.
  const std::byte* x = nullptr;  // [rows, K]
  const std::byte* w = nullptr;  // [N, K] as above.
  float* y = nullptr;            // [rows, N]
  int64_t rows = 0;              // 1 .. kDecodeRows
  int64_t n = 0;
  int64_t k = 0;            // A multiple of 8, else Unsupported.
  bool accumulate = false;  // y += x W^T in place of y = x W^T.
};

// x and w begin at multiples of 16 bytes. Launches on the stream and returns; may be captured.
// Throws Unsupported in a program without code for the device.
void MultiplyQ8(const DeviceQ8Product& product, Stream& stream);

// Weights [n, k] as rows of `type` (kF16, kBF16, kF32), code * scale rounded to it: for products of
// many rows. k is a multiple of 8, `out` begins at a multiple of 16 bytes. Launches and returns.
void ExpandQ8OnDevice(const std::byte* w, int64_t n, int64_t k, DType type, std::byte* out,
                      Stream& stream);

namespace internal {
// Of a backend. The arguments are checked.
void MultiplyQ8Cuda(const DeviceQ8Product& product, Stream& stream);
void ExpandQ8Cuda(const std::byte* w, int64_t n, int64_t k, DType type, std::byte* out,
                  Stream& stream);
// One weight of a matrix in the device's layout that lies in host memory.
float DeviceQ8At(const std::byte* w, int64_t k, int64_t row, int64_t col);
}  // namespace internal

}  // namespace pmkvq
