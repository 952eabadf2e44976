// Q_b of calibration for groups that lie in columns, as the keys of a transposed panel do: bounds
// are then found without sums across lanes. Bit-identical to FakeQuantize of kv_quant.h.
#pragma once

#include <cstdint>

namespace pmkvq {

// x, out [group, columns]: column c is one group of x[i, c] / divisor[i], quantised at `bits`
// (16, 8, 4, 2) and given back as floats (at 16 rounded to bfloat16). divisor [group], positive.
// out must not overlap x.
// Threads: pure. Errors: caller bugs only.
void FakeQuantizeColumns(int64_t group, int bits, const float* x, const float* divisor,
                         int64_t columns, float* out);

}  // namespace pmkvq
