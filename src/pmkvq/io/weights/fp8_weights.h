// Weights in float8 (E4M3) with scales, as checkpoints hold them, expanded to BF16.
//
// E4M3: a sign, 4 bits of exponent with bias 7, 3 of mantissa; exponent 0 is subnormal; 0x7f and
// 0xff are NaN, there is no infinity, and the largest value is 448. A weight is code x scale, the
// product in float, rounded to BF16: that errs by 2^-9 of the weight at most, the codes themselves
// by 2^-4.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "pmkvq/base/float16.h"
#include "pmkvq/io/quantization_config.h"
#include "pmkvq/io/weights/weight_source.h"

namespace pmkvq {

// Scale [i, j] is that of the weights [i * block_rows, (i + 1) * block_rows) x [j * block_cols,
// ...).
struct Fp8Scales {
  std::vector<float> values;  // [rows, cols]
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t block_rows = 0;
  int64_t block_cols = 0;
};

// Turns the E4M3 tensors of `tensors` that are weights into such ones: they get a format (BF16) and
// their scales, which are tensors beside them (weight_scale_inv or weight_scale; F32, F16 or BF16;
// of the tensor, of rows, or of blocks of `format`). Scales are not counted as weights of a block.
// Throws InvalidInput naming file, tensor, found and expected: no scales, scales of another shape
// or type, a scale that is not a positive number.
void AttachFp8Scales(const Fp8Format& format, std::vector<StoredWeight>& tensors);

// out [rows, cols] of a tensor with StoredWeight::fp8. Throws InvalidInput for a code that is NaN.
void ExpandFp8(const StoredWeight& weight, int num_threads, BF16* out);

}  // namespace pmkvq
