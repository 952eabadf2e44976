// Exact products of packed codes with 16-bit integers, for the fast mode of attention, which has
// them in place of products with floats.
//
// Floats become integers by their largest magnitude, x_i ~ factor * n_i with
//   factor = max|x| / 32767,  n_i = round_half_even(x_i * (32767 / max|x|)),
// so that no x_i moves by more than half a factor (and its own rounding). Codes stay as they are.
// Sums of at most 128 products are below 128 * 255 * 32767 < 2^31: nothing overflows, the order of
// additions does not matter, and all instruction sets give the same bits.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/attention/read_ahead.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"

namespace pmkvq::internal {

inline constexpr float kMaxInteger = 32767.0f;
// Magnitudes below this count as zero: 32767 / max|x| stays finite.
inline constexpr float kMinMagnitude = 1e-30f;
// Rows of codes in one product, and their columns: at most this many.
inline constexpr int64_t kMaxIntegerRows = 128;
// Rows in a tile at a time: at 128 bytes each it takes 8 KiB of first-level cache.
inline constexpr int64_t kIntegerTileRows = 64;
inline constexpr int64_t kIntegerTileSize = kIntegerTileRows / 4 * kMaxGroup;  // Words.

// Rows of packed codes, one group each (layout: kv_quant.h).
struct PackedRows {
  const std::byte* data = nullptr;  // Row t at data + t * row_bytes.
  int64_t row_bytes = 0;
  int64_t num_rows = 0;  // 1 to kMaxIntegerRows.
  int64_t columns = 0;   // Codes of a row, G.
  int bits = 8;
  // Row t, or the last one beyond it: blocks of rows are filled up with that.
  const std::byte* RowOrLast(int64_t t) const {
    return data + (t < num_rows ? t : num_rows - 1) * row_bytes;
  }
};

// Whether the functions below take such rows: a row must fill vectors of 16 bytes.
constexpr bool HasIntegerProducts(int64_t columns, int bits) {
  return PackedGroupBytes(columns, bits) % 16 == 0;
}

// Gives the factor of x [count] and writes its integers.
float QuantizeToIntegers(const float* x, int64_t count, int16_t* integers);

// Integers of one group in the order in which DotPackedRows of that width reads them.
void ArrangeForDots(int bits, int64_t columns, const int16_t* in, int16_t* out);

// sums[r, t] = sum_d x[r, d] code[t, d], r < num_x. x is arranged, rows `x_stride` apart; `sums`
// has rows of kMaxIntegerRows, written up to the next multiple of 4 tokens or more (those beyond
// num_rows mean nothing). `tile`: kIntegerTileSize, aligned to kAlignment, as `sums`.
// Memory of `ahead` is asked for meanwhile, about as much as the rows take.
void DotPackedRows(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride,
                   uint32_t* tile, int32_t* sums, ReadAhead* ahead);

// sums[r, d] = sum_t weights[r, t] code[t, d], r < num_x. `weights` has rows of kMaxIntegerRows,
// zeros from num_rows up to the next multiple of 4; `sums` has rows of `columns`.
void SumPackedRows(const PackedRows& rows, const int16_t* weights, int64_t num_x, uint32_t* tile,
                   int32_t* sums, ReadAhead* ahead);

// The Highway target whose code the functions above would run now (for tests).
int64_t IntegerProductsTarget();

// Scalar oracles; DotPackedRows takes x as QuantizeToIntegers writes it.
namespace ref {
float QuantizeToIntegers(const float* x, int64_t count, int16_t* integers);
void DotPackedRows(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride,
                   int32_t* sums);
void SumPackedRows(const PackedRows& rows, const int16_t* weights, int64_t num_x, int32_t* sums);
}  // namespace ref

}  // namespace pmkvq::internal
