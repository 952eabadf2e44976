// Ending long work early: a flag that a signal handler may set, and where long work reads it.
//
// Whoever starts long work opens a CancelScope with the flag. The work calls CancelPoint between
// its pieces, which should take 0.1 s at most, and throws Cancelled there once the flag is set.
// Every item of ParallelFor (base/parallel.h) is such a piece, also on worker threads. So a
// function that runs long, and whose loops are not ParallelFor's, calls CancelPoint; it needs no
// parameter. A function that must not be left half done opens an UncancelledScope.
//
//   CancelScope scope(&flag, "calibrate");  // Cancelled's message: "[calibrate] interrupted"
//   for (const std::string& line : lines) {
//     CancelPoint();
//     Process(line);
//   }
//
// Threads: a scope belongs to the thread that opened it, and must be closed in reverse order. A
// thread that is started by hand sees no scope; it opens one with the same flag.
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

namespace internal {

// One scope in the chain of a thread's open scopes.
struct CancelLink {
  const CancelFlag* flag = nullptr;  // May be null.
  const char* where = "";
  bool shields = false;  // Flags of outer scopes do not count.
  const CancelLink* outer = nullptr;
};

// The innermost open scope of this thread. ParallelFor lends the caller's to its workers.
inline constinit thread_local const CancelLink* open_cancel_link = nullptr;

inline void ThrowIfAnyIsCancelled(const CancelLink* link) {
  for (; link != nullptr && !link->shields; link = link->outer) {
    ThrowIfCancelled(link->flag, link->where);
  }
}

}  // namespace internal

// Throws Cancelled when the flag of an open scope of this thread is set. Costs a load or two.
inline void CancelPoint() { internal::ThrowIfAnyIsCancelled(internal::open_cancel_link); }

// While it lives, CancelPoint reads `flag`, too. Both arguments must outlive the scope; `flag` may
// be null, which changes nothing.
class CancelScope {
 public:
  CancelScope(const CancelFlag* flag, const char* where)
      : link_{flag, where, false, internal::open_cancel_link} {
    internal::open_cancel_link = &link_;
  }
  ~CancelScope() { internal::open_cancel_link = link_.outer; }
  CancelScope(const CancelScope&) = delete;
  CancelScope& operator=(const CancelScope&) = delete;

 private:
  internal::CancelLink link_;
};

// While it lives, CancelPoint never throws, except for scopes that are opened inside it.
class UncancelledScope {
 public:
  UncancelledScope() : link_{nullptr, "", true, internal::open_cancel_link} {
    internal::open_cancel_link = &link_;
  }
  ~UncancelledScope() { internal::open_cancel_link = link_.outer; }
  UncancelledScope(const UncancelledScope&) = delete;
  UncancelledScope& operator=(const UncancelledScope&) = delete;

 private:
  friend class CancellableAgainScope;
  internal::CancelLink link_;
};

// While it lives, inside an UncancelledScope of the same thread, the scopes around that one count
// again: for a part that may be left half done, in work that otherwise may not.
class CancellableAgainScope {
 public:
  explicit CancellableAgainScope(const UncancelledScope& shield)
      : link_{nullptr, "", false, shield.link_.outer}, inner_(internal::open_cancel_link) {
    internal::open_cancel_link = &link_;
  }
  ~CancellableAgainScope() { internal::open_cancel_link = inner_; }
  CancellableAgainScope(const CancellableAgainScope&) = delete;
  CancellableAgainScope& operator=(const CancellableAgainScope&) = delete;

 private:
  internal::CancelLink link_;
  const internal::CancelLink* inner_;  // Opened inside the shield.
};

}  // namespace pmkvq
