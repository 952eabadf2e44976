// Loops shared out to the threads of the process's pool (base/thread_pool.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/thread_pool.h"
#include "pmkvq/base/turns.h"

namespace pmkvq {

namespace internal {

// See ParallelFor; num_threads and num_items are at least 2.
void RunParallel(int num_threads, int64_t num_items, ParallelBody body, const void* context);

}  // namespace internal

// Calls body(item, worker) once for every item of [0, num_items), from up to `num_threads` threads.
//
// Items are begun in ascending order and run in any; `worker` in [0, max(1, num_threads)) differs
// between calls that run at the same time, so it can index scratch memory. What an item computes
// must not depend on `worker`. An item should take 10 us or more. No memory is allocated, except
// when a call asks for more threads than any before it.
// Threads: a call from inside a body, or while another thread's call runs, is an ordinary loop in
// the caller, with worker 0.
// Errors: after an exception no further item is begun; the first one is rethrown in the caller.
// Each item begins with a CancelPoint (base/interrupt.h) of the caller's scopes: throws Cancelled.
// Work in turns (base/turns.h) may pause between items, never while one of them runs.
template <class Body>
void ParallelFor(int num_threads, int64_t num_items, const Body& body) {
  if (num_threads <= 1 || num_items <= 1) {
    for (int64_t item = 0; item < num_items; ++item) {
      CancelPoint();
      PausePoint();
      const UnpausedScope whole_item;
      body(item, 0);
    }
    return;
  }
  const auto call = [](const void* context, int64_t item, int worker) {
    (*static_cast<const Body*>(context))(item, worker);
  };
  internal::RunParallel(num_threads, num_items, call, std::addressof(body));
}

// Calls body(begin, end) for pieces of [0, size) of `grain` each (the last may be shorter), as
// ParallelFor. The pieces do not depend on the number of threads.
template <class Body>
void ParallelForRanges(int num_threads, int64_t size, int64_t grain, const Body& body) {
  ParallelFor(num_threads, (size + grain - 1) / grain, [&](int64_t piece, int /*worker*/) {
    const int64_t begin = piece * grain;
    body(begin, std::min(size, begin + grain));
  });
}

}  // namespace pmkvq
