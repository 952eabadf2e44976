// What a whole sequence's forward pass and its gradient do on a CUDA device between products of
// matrices: norms, RoPE, SiLU, cross entropy, roundings. For calibration (model/device/
// device_profile.h); serving uses kernels/device_rows.
//
// Operands of products are F32, or F16 with a power of two for each row (ScaledRows): 11
// significant bits in one part and 22 in two, whatever the row's size. Gradients would be too small
// for plain F16, and some activations too large.
//
// Query heads are grouped by KV head, [Hkv, rows, G, D], so that the heads of a group are rows of
// one product.
//
// All pointers are of the device. Functions launch on the stream and return. Sums have a fixed
// order. Threads: one caller per stream. Errors: Unsupported in a program without CUDA,
// DeviceError.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// Row r stands for scales[r] times the sum of rows r and, with two parts, part_rows + r of
// [parts * part_rows, width]. Scales are powers of two; of F32 they are 1.
struct ScaledRows {
  std::byte* data = nullptr;
  DType type = DType::kF16;  // kF16, or kF32 with one part.
  int parts = 1;             // 1 or 2
  int64_t part_rows = 0;
  float* scales = nullptr;  // [rows]
};
// What a product with such an operand gives: row r times scales[r].
struct ScaledSums {
  const float* data = nullptr;  // [rows, width]
  const float* scales = nullptr;
};

// Notes the first value that is not finite: the least of step << 32 | row. `first` starts with all
// bits set; null: nothing is noted.
struct FiniteCheck {
  uint64_t* first = nullptr;
  uint32_t step = 0;
};

// largest = max(largest, |x|) over `count` values of F16, BF16 or F32. Not a number where one is
// not.
void FindLargest(const std::byte* x, DType type, int64_t count, float* largest, Stream& stream);
// out [count] F16 = x * factor, rounded.
void ScaleToF16(const std::byte* x, DType type, int64_t count, float factor, std::byte* out,
                Stream& stream);

// x += sums (+ bias [width], or null), where there are sums. Then, where `weight` is not null,
//   out = x / sqrt(mean(x^2) + eps) * weight.
struct SequenceNorm {
  float* x = nullptr;  // [rows, width]
  int64_t rows = 0;
  int64_t width = 0;
  ScaledSums sums;
  const float* bias = nullptr;
  const float* weight = nullptr;
  float eps = 0.0f;
  ScaledRows out;
  FiniteCheck check;  // Of x.
};
void AddAndNormSequence(const SequenceNorm& op, Stream& stream);

// dx += the gradient of that norm with respect to x, given dy. Then, where out.data is not null,
// out = dx.
struct SequenceNormGrad {
  const float* x = nullptr;  // [rows, width]
  int64_t rows = 0;
  int64_t width = 0;
  ScaledSums dy;
  const float* weight = nullptr;
  float eps = 0.0f;
  float* dx = nullptr;  // [rows, width]
  ScaledRows out;
  FiniteCheck check;  // Of dx.
};
void AddNormGrad(const SequenceNormGrad& op, Stream& stream);

struct SequenceHeadShape {
  int64_t rows = 0;
  int64_t num_heads = 0;          // H
  int64_t num_kv_heads = 0;       // Hkv
  int64_t head_dim = 0;           // D, even, at most 256
  const float* bias = nullptr;    // [(H + 2 Hkv) D], or null
  const float* q_norm = nullptr;  // [D], or null
  const float* k_norm = nullptr;  // [D], or null
  float eps = 0.0f;
  const float* rotations = nullptr;  // MakeRotations (kernels/device_rows) [rows, D/2, 2]
};
// Rows of a stacked projection [rows, (H + 2 Hkv) D] into queries, keys and values: bias, norms of
// heads, RoPE. q [Hkv, rows, G, D]; k, v [rows, Hkv, D].
void MakeSequenceHeads(const SequenceHeadShape& shape, const ScaledSums& sums, float* q, float* k,
                       float* v, Stream& stream);
// Their gradients back to the projection's output, [rows, (H + 2 Hkv) D]. `sums` as above: read
// where heads have norms.
void SequenceHeadsGrad(const SequenceHeadShape& shape, const ScaledSums& sums, const float* dq,
                       const float* dk, const float* dv, const ScaledRows& out, Stream& stream);

// out [rows, H D] = heads * inverses - other * other_inverses, all [Hkv, rows, G, D] and
// [Hkv, rows, G]. Null inverses are 1; a null `other` is 0.
struct GroupedHeads {
  const float* data = nullptr;
  const float* inverses = nullptr;
};
void GatherHeads(const SequenceHeadShape& shape, const GroupedHeads& heads,
                 const GroupedHeads& other, const ScaledRows& out, Stream& stream);
// out [Hkv, rows, G, D] = sums [rows, H D].
void ScatterHeads(const SequenceHeadShape& shape, const ScaledSums& sums, float* out,
                  Stream& stream);

// out = silu(gate) * up of sums [rows, 2 width], gate first.
void SiluMulSequence(const ScaledSums& sums, int64_t rows, int64_t width, const ScaledRows& out,
                     Stream& stream);
// out [rows, 2 width] = the gradients of gate and up, given that of their product.
void SiluMulSequenceGrad(const ScaledSums& sums, const ScaledSums& dproduct, int64_t rows,
                         int64_t width, const ScaledRows& out, Stream& stream);

// losses [rows] = -log softmax(logits)[target], 0 for rows with target -1. Where gradient.data is
// not null, gradient = weight * (softmax(logits) - onehot(target)), 0 for rows with target -1. An
// F32 gradient may lie where the logits do.
void SequenceCrossEntropy(const ScaledSums& logits, const int32_t* targets, int64_t rows,
                          int64_t vocab_size, float weight, double* losses,
                          const ScaledRows& gradient, Stream& stream);

// squares [rows] = the sum of the squares of each row.
void SumSquaresOfRows(const ScaledSums& sums, int64_t rows, int64_t width, double* squares,
                      Stream& stream);
// sums [num_sums] = of `count` values each, which begin `stride` apart.
void SumDoubles(const double* values, int64_t count, int64_t stride, int64_t num_sums, double* sums,
                Stream& stream);

}  // namespace pmkvq
