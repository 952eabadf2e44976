// Quantised weights in the memory of a device: q8 weights (weight_q8.h) and blocks of GGUF files,
// put into the order in which products read them (device_codes.h).
//
// On the device a matrix is tiles of 16 rows and 128 columns. Both sizes are filled up with weights
// of zero. Tiles of the same 16 rows follow each other, then come those of the next 16. Matrices of
// one format whose rows are multiples of 16 may lie one behind the other, as one matrix.
//
// A weight is scale * (code - offset) + minimum. A tile holds codes, then their higher bits, then
// scales, in the order in which the lanes of a warp take them to a tensor-core product. `r` is the
// row in the tile, g = r % 8, side = r / 8; `c` is the column in its group of 32, group = column /
// 32; lane = 4 g + c % 16 / 4; pair = c % 4 / 2 + 2 (c / 16); odd = c % 2.
//
//   8 bits     byte 512 group + 16 lane + 8 side + 2 pair + odd
//   others     lower 4 bits: word 128 (group / 2) + 4 lane + 2 (group % 2) + pair / 2, from bit
//              4 side + 8 (pair % 2) + 16 odd on; where codes are places in a table, from bit
//              4 odd + 8 side + 16 (pair % 2) on
//   5 bits     the fifth, behind the lower ones: word 2 lane + group / 2, bit
//              pair + 4 side + 8 (group % 2) + 16 odd
//   6 bits     two more, behind the lower ones: word 4 lane + group, from bit
//              2 (pair % 2) + 8 (pair / 2) + 4 side + 16 odd on
//
// Scales, for each g one behind the other; a half is two groups, and both rows of g lie side by
// side in each entry:
//   Q8, Q8_0, Q4_0, Q5_0, IQ4_NL   for each half 2 BF16 (Q8) or F16 of its groups
//   Q4_1, Q5_1                     for each half 2 F16; then 2 F16, the minima
//   Q4_K, Q5_K                     F16 of scales, F16 of minima with its sign changed; for each
//   half
//                                  2 bytes, the scales' factors; then 2 bytes, those of minima
//   IQ4_XS                         F16; for each half 2 bytes, the factors + 128
//   Q6_K                           F16; for each half 4 bytes, the factors of groups of 16, + 128
//
// Bytes for each weight: 8 bits 1.0625, Q6_K 0.828, Q5_K 0.719, Q4_K 0.594, Q4_0 0.5625,
// IQ4_XS 0.547: at most 1.06 times those of the file.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/gemm/gemm.h"
#include "pmkvq/tensor/device/exec_context.h"
#include "pmkvq/tensor/weight_format.h"

namespace pmkvq {

// Whether products read the codes of weights of that format.
bool HasDeviceCodes(WeightFormat format);

// Bytes of a matrix of `rows` outputs and `cols` inputs. The format has codes.
size_t DeviceCodesBytes(WeightFormat format, int64_t rows, int64_t cols);

// Writes a weight in the device's layout to host memory, out [DeviceCodesBytes], rows in their
// logical order, for the upload.
void LayOutCodes(const WeightView& weight, std::byte* out, const ExecContext& exec);

struct DeviceCodes {
  const std::byte* data = nullptr;  // [n, k] as above, at a multiple of 16 bytes.
  WeightFormat format = WeightFormat::kQ8;
  int64_t n = 0;
  int64_t k = 0;  // A multiple of 8, else Unsupported.
};

namespace internal {
// One weight of a matrix in the device's layout that lies in host memory.
float DeviceCodesAt(const DeviceCodes& w, int64_t row, int64_t col);
}  // namespace internal

}  // namespace pmkvq
