// What a forward pass on a CUDA device does between matrix products: norms, RoPE, activations,
// roundings, each row of activations by itself. A row's bits depend on that row alone.
//
// Products read operands (ProductRows) and give sums (ProductSums). An operand of F16 or BF16 is
// the row rounded; with two parts also what the rounding left, as rows behind all of the first
// part, so that the sum of a row's two products is nearly that of the float row. Two parts of F16
// hold values up to 131008.
//
// All pointers are of the device. Functions launch on the stream and return. Threads: one caller
// per stream. Errors: Unsupported in a program without CUDA, DeviceError.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/kv_quant/page_moves.h"
#include "pmkvq/tensor/device/stream.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

// The operand of a product: part p of row r is row p * part_rows + r of [parts * part_rows, width].
struct ProductRows {
  std::byte* data = nullptr;
  DType type = DType::kBF16;  // kF16, kBF16, or kF32 with one part.
  int parts = 1;              // 1 or 2
  int64_t part_rows = 0;
};
// What such a product gives: row r is the sum of rows r and, with two parts, part_rows + r.
struct ProductSums {
  const float* data = nullptr;  // [parts * part_rows, width]; null: nothing.
  int parts = 1;
  int64_t part_rows = 0;
};

// What MakeRotations is given.
struct Rotations {
  const int32_t* positions = nullptr;  // [rows]
  const float* frequencies = nullptr;  // [pairs]
  int64_t pairs = 0;
  float factor = 1.0f;
  float* data = nullptr;  // [rows, pairs, 2]
};

// x [rows, width] = rows of `table` [V, width] of type F16, BF16 or F32, by tokens [rows], times
// `factor`; at the same time, where its data is not null, what MakeRotations does.
void EmbedRows(const std::byte* table, DType type, const int32_t* tokens, int64_t rows,
               int64_t width, float* x, Stream& stream, float factor = 1.0f,
               const Rotations& rotations = {});

// x += sums (+ bias [width], or null), where there are sums; where `sums_weight` is not null,
// behind a norm: x += (sums + bias) / sqrt(mean((sums + bias)^2) + eps) * sums_weight. Then, where
// `weight` is not null,
//   out = x / sqrt(mean(x^2) + eps) * weight.
// `picked` [rows], or null: out row r is of x row picked[r]; no sums then.
struct NormRows {
  float* x = nullptr;  // [rows, width]
  int64_t rows = 0;
  int64_t width = 0;
  ProductSums sums;
  const float* bias = nullptr;
  const float* sums_weight = nullptr;  // [width]
  const float* weight = nullptr;       // [width]
  float eps = 0.0f;
  const int32_t* picked = nullptr;
  ProductRows out;
};
void AddAndNormRows(const NormRows& op, Stream& stream);

// cos and sin of each pair's angle, [rows, D/2, 2]: position * frequency is rounded to float, its
// cosine and sine are those of double precision, times `factor`, as on the CPU (rope.h).
void MakeRotations(const Rotations& rotations, int64_t rows, Stream& stream);

// Rows of a stacked projection [H + 2 Hkv, D] into queries, keys and values:
//   + bias; q and k through a norm per head where it has one; RoPE; times factors, where given.
struct HeadRows {
  ProductSums sums;  // [rows, (H + 2 Hkv) D]
  int64_t rows = 0;
  int64_t num_heads = 0;          // H
  int64_t num_kv_heads = 0;       // Hkv
  int64_t head_dim = 0;           // D, even, at most 256
  const float* bias = nullptr;    // [(H + 2 Hkv) D]
  const float* q_norm = nullptr;  // [D]
  const float* k_norm = nullptr;  // [D]
  float eps = 0.0f;
  const float* rotations = nullptr;      // MakeRotations
  const float* query_factors = nullptr;  // [H, D/2]
  const float* key_factors = nullptr;    // [Hkv, D/2]
  float* q = nullptr;                    // [rows, H, D]
  float* k = nullptr;                    // [rows, Hkv, D]
  float* v = nullptr;                    // [rows, Hkv, D]
  float* raw_k = nullptr;                // [rows, Hkv, D] before RoPE and factors; may be null.
  // Where its arena is not null, rows are stored as AppendTokens stores them, and q, k and
  // v are not written. Row b is that of sequence b.
  AppendOperands append;
};
void MakeHeadRows(const HeadRows& op, Stream& stream);

// out = x [rows, width], rounded.
void RoundRows(const float* x, int64_t rows, int64_t width, const ProductRows& out, Stream& stream);

// out = silu(gate) * up of sums [rows, 2 width], gate first.
void SiluMulRows(const ProductSums& sums, int64_t rows, int64_t width, const ProductRows& out,
                 Stream& stream);
// The same with gelu (kernels/act/act.h).
void GeluMulRows(const ProductSums& sums, int64_t rows, int64_t width, const ProductRows& out,
                 Stream& stream);

// out [rows, width] = sums.
void AddPartsOfRows(const ProductSums& sums, int64_t rows, int64_t width, float* out,
                    Stream& stream);

// Heads x [count, width] times the normalised Walsh-Hadamard matrix, in place. width: 64, 128 or
// 256.
void HadamardRows(float* x, int64_t count, int64_t width, Stream& stream);

}  // namespace pmkvq
