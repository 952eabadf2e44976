// What calibration measures on a CUDA device: largest keys, the damage of quantisation, quantised
// keys of many scales. Q_b is FakeQuantize (kv_quant.h), with the same bits.
//
// All pointers are of the device. Functions launch on the stream and return. Threads: one caller
// per stream. Errors: Unsupported in a program without CUDA, DeviceError.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// largest [heads, dim / 2] = max(largest, |k|) over rows of k [rows, heads, dim] and both of a pair
// (i, i + dim / 2).
void FindLargestKeys(const float* k, int64_t rows, int64_t heads, int64_t dim, float* largest,
                     Stream& stream);

inline constexpr int kNumDamageWidths = 4;
inline constexpr int64_t kDamageParts = 1024;
// parts [kNumDamageWidths, kDamageParts], of b = 16, 8, 4, 2: their sums over the parts are those
// of |(Q_b(x) - x) g| over x and g [num_groups, group], in double.
void MeasureDamage(int64_t group, const float* x, const float* gradient, int64_t num_groups,
                   double* parts, Stream& stream);

// out [points, rows, heads, dim] = s Q_b(x / s) of x [rows, heads, dim] with scales [points, heads,
// dim / 2] (s of a point, head and pair); null: one point, s = 1.
struct ScaledQuantization {
  const float* x = nullptr;
  int64_t rows = 0;
  int64_t heads = 0;
  int64_t dim = 0;
  int64_t group = 0;  // Divides dim; at most 128.
  int bits = 4;
  const float* scales = nullptr;
  int64_t points = 1;
  DType out_type = DType::kF16;  // Or kF32.
  std::byte* out = nullptr;
};
void QuantizeScaled(const ScaledQuantization& op, Stream& stream);

}  // namespace pmkvq
