// Long work in turns: a piece of a long computation, then something urgent, then the next piece.
//
// The work runs on a second thread, but never at the same time as the thread that owns it: Resume
// lets the work continue and waits until it pauses or ends. So both may use the same data without
// locks, and code in between needs no knowledge of being cut into pieces. It pauses at PausePoint,
// which every item of ParallelFor (base/parallel.h) passes.
//
//   Turns turns;
//   turns.Start([&] { Multiply(a, b, c); });
//   while (!turns.Resume(std::chrono::milliseconds(5))) ServeOthers();
//
// Threads: all calls come from one thread at a time. The work sees the open scopes of
// base/interrupt.h of whoever calls Resume, and its loops run on the pool of the first such caller.
#pragma once

#include <chrono>
#include <functional>
#include <memory>

namespace pmkvq {

namespace internal {

// The interface of a PausePoint to the work that runs on this thread.
class PausableWork {
 public:
  virtual ~PausableWork() = default;
  // Returns at once while the turn lasts; else after the next one has begun.
  virtual void PauseIfOver() = 0;
};

inline constinit thread_local PausableWork* pausable_work = nullptr;

}  // namespace internal

// A place where work may pause: nothing is half changed that the owner may see. Costs a load
// on threads without pausable work. Throws Cancelled where the owner gives the work up.
inline void PausePoint() {
  if (internal::pausable_work != nullptr) internal::pausable_work->PauseIfOver();
}

// While it lives, work of this thread does not pause.
class UnpausedScope {
 public:
  UnpausedScope() : work_(internal::pausable_work) { internal::pausable_work = nullptr; }
  ~UnpausedScope() { internal::pausable_work = work_; }
  UnpausedScope(const UnpausedScope&) = delete;
  UnpausedScope& operator=(const UnpausedScope&) = delete;

  // The work that does not pause meanwhile; null where there is none.
  internal::PausableWork* work() const { return work_; }

 private:
  internal::PausableWork* work_;
};

class Turns {
 public:
  Turns();
  // Gives the work up, if there is any.
  ~Turns();
  Turns(const Turns&) = delete;
  Turns& operator=(const Turns&) = delete;

  // `work` begins with the next Resume. There is none yet (check).
  void Start(std::function<void()> work);
  // Whether Start was called and the work has not ended.
  bool is_under_way() const;

  // Lets the work go on until it ends, or reaches its next PausePoint after `turn`. Returns whether
  // it has ended. Throws as the work does, which has then ended. The work starts on the first call
  // of all in a new thread; where the system gives none, it runs to its end in the caller.
  bool Resume(std::chrono::nanoseconds turn);

  // Ends the work: its PausePoint throws Cancelled, and an exception of the work is then dropped.
  // Nothing happens when there is none.
  void GiveUp();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmkvq
