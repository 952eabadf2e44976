// Q_b (FakeQuantize of kernels/kv_quant) over whole tensors, spread over threads. Results do not
// depend on the thread count.
#pragma once

#include <cstdint>

namespace pmkvq {

// x, out [num_groups, group]; out may equal x.
void FakeQuantizeParallel(int64_t group, int bits, const float* x, int64_t num_groups, float* out,
                          int num_threads);

// Sum of |(Q_b(x) - x) * gradient| over all values (eq. 5), in double. x, gradient
// [num_groups, group].
double QuantizationDamage(int64_t group, int bits, const float* x, const float* gradient,
                          int64_t num_groups, int num_threads);

// Sum of x^2 in double.
double SumOfSquares(const float* x, int64_t count, int num_threads);

}  // namespace pmkvq
