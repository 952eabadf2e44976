// The fixed order in which partial sums are added: a binary tree over their indices.
#pragma once

#include <bit>
#include <cstdint>

namespace pmkvq {

// parts[begin] <- the sum of the arrays parts[begin, end) of n floats, each `stride` floats behind
// the one before it. The other arrays are overwritten.
//
// The left subtree has the greatest power of two below the number of arrays. So the sum over 8
// arrays has bit for bit the value of a sum over 2 (or 4) ranks, each of which has added its 4 (or
// 2) neighbouring arrays in this order before.
inline void AddInTree(float* parts, int64_t begin, int64_t end, int64_t n, int64_t stride) {
  const int64_t count = end - begin;
  if (count <= 1) return;
  const auto left = static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(count)) / 2);
  AddInTree(parts, begin, begin + left, n, stride);
  AddInTree(parts, begin + left, end, n, stride);
  float* sum = parts + begin * stride;
  const float* right = parts + (begin + left) * stride;
  for (int64_t i = 0; i < n; ++i) sum[i] += right[i];
}

}  // namespace pmkvq
