// How many runs the pages of a sequence are cut into, where tensor cores attend
// (decode_attention.h).
#pragma once

#include "pmkvq/kernels/attention/decode_attention.h"

namespace pmkvq::internal {

// Sequences with fewer pages have runs of one page, the parts of which are dealt out to the four
// warps of a block: there is little to do, and it should begin everywhere at once.
inline constexpr int kDealtPages = 16;
inline bool DealsPages(const DecodeShape& shape) {
  return shape.float_type == DType::kF16 && shape.head_dim <= 128;
}
// The most runs of a sequence of at most `max_pages`; at least 1.
inline int MostDecodeRuns(const DecodeShape& shape, int64_t max_pages) {
  const int dealt =
      DealsPages(shape) ? static_cast<int>(std::min<int64_t>(max_pages, kDealtPages - 1)) : 0;
  return std::max({1, dealt, MostRuns(static_cast<int>(max_pages))});
}

}  // namespace pmkvq::internal
