// Asymmetric quantisation of picked values, written from the papers, apart from
// research/methods/affine.h: the oracle of methods' tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "pmkvq/base/float16.h"

namespace pmkvq::testing_support {

// Replaces x[i] for i in `at` by what their codes at `bits` read back as, with f16 metadata. Values
// must be f16 values. In float, as exact halves between two codes would fall otherwise in double.
inline void QuantizeAt(std::vector<float>& x, const std::vector<size_t>& at, int bits) {
  float low = x[at[0]];
  float high = low;
  for (const size_t i : at) {
    low = std::min(low, x[i]);
    high = std::max(high, x[i]);
  }
  const float range = ToFloat(RoundUp<F16>(high - low));  // `low` is an f16 value already.
  const float step = range / static_cast<float>((1 << bits) - 1);
  for (const size_t i : at) {
    const float code = step > 0 ? std::nearbyint((x[i] - low) / step) : 0;
    x[i] = code * step + low;
  }
}

// Rows [T, heads, dim] of keys or values.
struct RowShape {
  int64_t heads = 2;
  int64_t dim = 64;

  size_t At(int64_t token, int64_t head, int64_t channel) const {
    return static_cast<size_t>((token * heads + head) * dim + channel);
  }
};

// Tokens first .. first + count - 1 of one channel as one group.
inline void QuantizeChannel(std::vector<float>& x, const RowShape& shape, int64_t first,
                            int64_t count, int64_t head, int64_t channel, int bits) {
  std::vector<size_t> at;
  for (int64_t i = 0; i < count; ++i) at.push_back(shape.At(first + i, head, channel));
  QuantizeAt(x, at, bits);
}

// One token in groups of `group` channels, all heads.
inline void QuantizeToken(std::vector<float>& x, const RowShape& shape, int64_t token,
                          int64_t group, int bits) {
  for (int64_t head = 0; head < shape.heads; ++head) {
    for (int64_t channel = 0; channel < shape.dim; channel += group) {
      std::vector<size_t> at;
      for (int64_t i = 0; i < group; ++i) at.push_back(shape.At(token, head, channel + i));
      QuantizeAt(x, at, bits);
    }
  }
}

}  // namespace pmkvq::testing_support
