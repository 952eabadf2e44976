// Memory that a loop over groups reads soon.
#pragma once

#include <cstdint>

#include "pmkvq/base/aligned.h"

namespace pmkvq::internal {

// Asks for the cache lines of `bytes` that lie 8 KiB after x. Hardware looks ahead only within a
// page of memory (4 KiB) and begins anew in each. Beyond the last group stands what the caller most
// likely has next (the next head, the next page); asking for lines that do not exist does nothing.
inline void PrefetchAhead(const void* x, int64_t bytes) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(x) + 8192;
  for (uintptr_t i = 0; i < static_cast<uintptr_t>(bytes); i += kAlignment) {
    __builtin_prefetch(reinterpret_cast<const void*>(begin + i));
  }
}

}  // namespace pmkvq::internal
