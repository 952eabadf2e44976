#include "pmkvq/base/turns.h"

#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/thread_pool.h"

namespace pmkvq {

// Whose turn it is decides who may touch everything else here, and the mutex that guards it orders
// the memory accesses of both threads.
struct Turns::Impl final : internal::PausableWork {
  using Clock = std::chrono::steady_clock;
  enum class Whose : uint8_t { kOwner, kWork };

  ~Impl() override {
    if (!thread.joinable()) return;
    ends = true;
    PassTo(Whose::kWork);
    thread.join();
  }

  // On the thread of the work.
  void PauseIfOver() override {
    if (is_given_up) throw Cancelled("turns", "given up");
    if (Clock::now() < turn_ends) return;
    PassTo(Whose::kOwner);
    WaitFor(Whose::kWork);
    if (is_given_up) throw Cancelled("turns", "given up");
  }

  // Gives the turn to the work and waits until it comes back.
  void Run() {
    scopes.outer = internal::open_cancel_link;
    pool = &ThreadPool::OfThread();
    if (!thread.joinable()) {
      try {
        thread = std::thread([this] { Work(); });
      } catch (const std::system_error&) {  // Too many threads.
        std::exchange(work, nullptr)();
        return;
      }
    }
    PassTo(Whose::kWork);
    WaitFor(Whose::kOwner);
    if (error != nullptr) std::rethrow_exception(std::exchange(error, nullptr));
  }

  void Work() {
    internal::open_cancel_link = &scopes;
    for (;;) {
      WaitFor(Whose::kWork);
      if (ends) return;
      has_begun = true;
      internal::pausable_work = this;
      try {
        const ThreadPoolScope loops(*pool);
        work();
      } catch (...) {
        error = std::current_exception();
      }
      internal::pausable_work = nullptr;
      work = nullptr;
      has_begun = false;
      PassTo(Whose::kOwner);
    }
  }

  void PassTo(Whose next) {
    {
      const std::lock_guard<std::mutex> lock(mutex);
      whose = next;
    }
    passed.notify_all();
  }
  void WaitFor(Whose wanted) {
    std::unique_lock<std::mutex> lock(mutex);
    passed.wait(lock, [&] { return whose == wanted; });
  }

  std::mutex mutex;
  std::condition_variable passed;
  Whose whose = Whose::kOwner;
  std::thread thread;
  std::function<void()> work;  // Null: none.
  std::exception_ptr error;
  bool has_begun = false;
  bool is_given_up = false;
  bool ends = false;
  Clock::time_point turn_ends;
  ThreadPool* pool = nullptr;   // The owner's.
  internal::CancelLink scopes;  // Those of the owner, in front of which the work opens others.
};

Turns::Turns() : impl_(std::make_unique<Impl>()) {}

Turns::~Turns() { GiveUp(); }

void Turns::Start(std::function<void()> work) {
  PMKVQ_CHECK(!is_under_way());
  impl_->work = std::move(work);
  impl_->is_given_up = false;
}

bool Turns::is_under_way() const { return impl_->work != nullptr; }

bool Turns::Resume(std::chrono::nanoseconds turn) {
  PMKVQ_CHECK(is_under_way());
  impl_->turn_ends = Impl::Clock::now() + turn;
  impl_->Run();
  return !is_under_way();
}

void Turns::GiveUp() {
  if (!is_under_way()) return;
  if (!impl_->has_begun) {
    impl_->work = nullptr;
    return;
  }
  impl_->is_given_up = true;
  try {
    impl_->Run();
  } catch (...) {  // As a rule Cancelled, as it was told.
  }
}

}  // namespace pmkvq
