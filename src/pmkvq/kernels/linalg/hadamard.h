// The fast Walsh-Hadamard transform.
#pragma once

#include <cmath>
#include <cstdint>

namespace pmkvq {

// x = H x in place, H[i, j] = (-1)^popcount(i & j) / sqrt(count): symmetric, orthonormal and its
// own inverse. `count` is a power of two. Real is float or double. Cost O(count log count).
template <class Real>
void Hadamard(Real* x, int64_t count) {
  for (int64_t half = 1; half < count; half *= 2) {
    for (int64_t begin = 0; begin < count; begin += 2 * half) {
      for (int64_t i = begin; i < begin + half; ++i) {
        const Real a = x[i];
        const Real b = x[i + half];
        x[i] = a + b;
        x[i + half] = a - b;
      }
    }
  }
  const Real scale = Real{1} / std::sqrt(static_cast<Real>(count));
  for (int64_t i = 0; i < count; ++i) x[i] *= scale;
}

// The same for heads: x [count] is whole runs of `width` values, each transformed by itself.
template <class Real>
void HadamardHeads(Real* x, int64_t count, int64_t width) {
  for (int64_t begin = 0; begin < count; begin += width) Hadamard(x + begin, width);
}

}  // namespace pmkvq
