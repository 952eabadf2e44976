// Asymmetric uniform quantisation of one group, as all methods here use it: floats in, damaged
// floats out. The rule is kernels/kv_quant's, for any width and any stride.
#pragma once

#include <cstdint>
#include <string>

#include "pmkvq/kv/kv_types.h"
#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

struct AffineFormat {
  int bits = 4;                       // 1 .. 8
  DType metadata_type = DType::kF16;  // Of min and range.
};

// The values that one group's codes stand for: min + code * step, code 0 .. max_code. Step 0: min.
struct AffineGrid {
  float min = 0;
  float step = 0;
  float max_code = 0;

  // The value of the code of x when codes above `highest` cannot be stored.
  float Read(float x, float highest) const;
};

// The grid of x[0], x[stride], ... x[(count - 1) * stride]; the bounds are rounded to the stored
// type as DamageGroup says. Throws UnfitValues where the type cannot hold them: values that are not
// finite, a minimum or a range beyond its largest value.
AffineGrid GridOf(const AffineFormat& format, int64_t count, int64_t stride, const float* x);

// Replaces x[0], x[stride], ... x[(count - 1) * stride] by the values that their codes stand for:
//   step = range / (2^bits - 1), code = round_half_even((x - min) / step), value = code * step +
//   min
// with min rounded down and range up to the stored type first. A group of range 0 keeps its value.
// Throws as GridOf.
void DamageGroup(const AffineFormat& format, int64_t count, int64_t stride, float* x);

// Every group of `group` consecutive values of one row [D].
void DamageRow(const AffineFormat& format, int64_t group, int64_t head_dim, float* row);

// Throws UnfitValues when one of x [count] is not finite: sums of large values may overflow.
void CheckFinite(const float* x, int64_t count);

// Bytes of `num_values` values in groups of `group`: codes and metadata. Each group's codes take
// whole bytes.
int64_t AffineBytes(const AffineFormat& format, int64_t num_values, int64_t group);

// Throws InvalidInput naming --kv `text` unless `group` divides head_dim.
void CheckGroup(const std::string& text, int64_t group, int64_t head_dim);

}  // namespace pmkvq
