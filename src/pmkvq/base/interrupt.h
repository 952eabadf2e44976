// A flag that a signal handler may set and that long loops read.
#pragma once

#include <atomic>

#include "pmkvq/base/error.h"

namespace pmkvq {

using CancelFlag = std::atomic<bool>;

inline bool IsCancelled(const CancelFlag* flag) {
  return flag != nullptr && flag->load(std::memory_order_relaxed);
}

// Throws Cancelled when the flag is set. `flag` may be null.
inline void ThrowIfCancelled(const CancelFlag* flag, const char* where) {
  if (IsCancelled(flag)) throw Cancelled(where, "interrupted");
}

}  // namespace pmkvq
