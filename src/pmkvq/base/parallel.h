// Loops shared out to the threads of a pool: the process's, or the one that the calling thread has
// bound (base/thread_pool.h).
#pragma once

#include <algorithm>
#include <cmath>
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

// How many of `num_threads` threads a loop is worth that takes one thread about `work_ns`
// nanoseconds; at least 1. The rule of all ops. They estimate their work from shapes, so that the
// number depends on nothing else, and no bits on the number.
//
// Each further thread costs the caller 3 us where it sleeps (a futex call; measured: a loop of two
// empty items takes 0.1 us when the worker spins, 3.1 us when it sleeps, which it does 100 us after
// its last loop) and next to nothing where it spins. So work / t + 3 us * t is to be small, which
// it is at t = sqrt(work / 3 us). A thread that begins later than that finds nothing to do unless
// there is more for each than its way takes, some 10 us: none gets less than 15 us.
//
// 30 us of work pay for 2 threads, 200 us for 8, 0.8 ms for 16.
inline int UsefulThreads(int num_threads, double work_ns) {
  constexpr double kWakeNs = 3e3;
  constexpr double kLeastNs = 15e3;  // Of each thread.
  const double useful = std::min(work_ns / kLeastNs, std::sqrt(work_ns / kWakeNs));
  return static_cast<int>(std::clamp<double>(useful, 1.0, std::max(num_threads, 1)));
}

// Calls body(item, worker) once for every item of [0, num_items), from up to `num_threads` threads.
//
// Items are begun in ascending order and run in any; `worker` in [0, max(1, num_threads)) differs
// between calls that run at the same time, so it can index scratch memory. What an item computes
// must not depend on `worker`. An item should take 10 us or more. No memory is allocated, except
// when a call asks for more threads than any before it.
// Threads: a call from inside a body, or while another thread's call runs on the same pool, is an
// ordinary loop in the caller, with worker 0.
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
