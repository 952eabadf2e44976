// Prefetching for loops over groups.
#pragma once

#include <cstdint>

#include "pmkvq/base/aligned.h"

namespace pmkvq::internal {

// Prefetches `bytes` that lie 8 KiB after x. The hardware prefetcher stops at each page of memory
// (4 KiB) and starts again in the next. Behind the last group the prefetched memory is usually that
// of the caller's next call (the next head, the next page). Prefetching unmapped addresses is
// harmless.
inline void PrefetchAhead(const void* x, int64_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(x) + 8192;
  for (uintptr_t i = 0; i < static_cast<uintptr_t>(bytes); i += kAlignment) {
    __builtin_prefetch(reinterpret_cast<const void*>(begin + i));
  }
}

}  // namespace pmkvq::internal
