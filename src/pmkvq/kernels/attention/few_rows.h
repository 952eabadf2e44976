// Products of attention for few query rows, without packing: a matrix product copies all keys and
// values of a page first, which costs more than the product does.
//
// Each output is one sum, in order: acc = fma(a_k, b_k, acc) from 0, then scaled or added once. Its
// bits do not depend on the number of rows or on its place.
#pragma once

#include <cstdint>

namespace pmkvq {

// scores[r * scores_stride + t] = scale * sum_k q[r, k] * keys[k, t], t < count. `keys` [dim,
// stride], stride a multiple of 16 and at least count; columns behind count are read, not used.
void FewRowScores(const float* q, int64_t num_rows, int64_t dim, const float* keys, int64_t stride,
                  int64_t count, float scale, float* scores, int64_t scores_stride);

// out[r, d] += sum_t weights[r * weights_stride + t] * values[t, d], t < count; out [num_rows,
// dim]. Tokens of weight 0 in both rows of a pair are passed over, which leaves the sum as it is.
void FewRowValues(const float* weights, int64_t weights_stride, int64_t num_rows, int64_t dim,
                  const float* values, int64_t count, float* out);

namespace internal {
int64_t FewRowsTarget();  // Instruction set in use, for tests.
}

}  // namespace pmkvq
