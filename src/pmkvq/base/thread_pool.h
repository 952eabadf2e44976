// Threads that share out loops: what ParallelFor (base/parallel.h) runs on.
//
// The calling thread takes part in its loop and can finish it alone: it waits only for items that
// a worker has begun, never for a worker that has not shown up. A worker that the scheduler keeps
// from running therefore costs nothing.
//
// ParallelFor uses the pool of the innermost ThreadPoolScope of the calling thread, without one
// that of the process. So engines on several threads, each with its pool, do not wait for each
// other.
//
// Lifetime: threads are started when a loop first asks for them, and joined by the destructor.
// Threads: TryRun may be called from any thread; the destructor not while a loop runs.
// fork: the child has none of the threads. Every pool that existed before runs no loops there
// (TryRun answers false), and its destructor joins nothing. Not to be called inside a loop.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>

namespace pmkvq {

using ParallelBody = void (*)(const void* context, int64_t item, int worker);

class ThreadPool {
 public:
  ThreadPool();
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  // The one that ParallelFor uses where no scope names another. Its threads are joined when the
  // process ends by exit() or a return from main, or when the library is unloaded; loops that begin
  // later run in their caller.
  static ThreadPool& OfProcess();

  // The one that ParallelFor uses on this thread.
  static ThreadPool& OfThread();

  // Calls body(context, item, worker) for every item of [0, num_items), as ParallelFor says.
  // num_threads and num_items are at least 2. False, with nothing done: another loop is running
  // (perhaps the one that the caller is part of), the threads were joined, or this is the child of
  // a fork.
  [[nodiscard]] bool TryRun(int num_threads, int64_t num_items, ParallelBody body,
                            const void* context);

  // Joins the threads; TryRun answers false from then on. Where a loop runs in another thread,
  // waits for its end. False, with nothing done: it did not end within `patience`.
  bool Join(std::chrono::milliseconds patience);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// While it lives, ParallelFor calls of this thread run on `pool`, which must outlive the scope.
// Threads: belongs to the thread that opened it, and is closed in reverse order.
class ThreadPoolScope {
 public:
  explicit ThreadPoolScope(ThreadPool& pool);
  ~ThreadPoolScope();
  ThreadPoolScope(const ThreadPoolScope&) = delete;
  ThreadPoolScope& operator=(const ThreadPoolScope&) = delete;

 private:
  ThreadPool* const outer_;
};

}  // namespace pmkvq
