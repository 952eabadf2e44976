#include "pmkvq/base/parallel.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <memory>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "pmkvq/base/check.h"

namespace pmkvq::internal {
namespace {

// How long a thread waits awake before it sleeps. Longer than the gaps between the loops of one
// decode step, so that workers sleep between steps at most; short against a turn of the scheduler.
constexpr std::chrono::microseconds kSpinTime{100};
// How often it gives its processor to whoever wants it, perhaps the awaited thread. Not at once:
// most waits are over sooner, and who yields on a busy machine stays away for milliseconds.
constexpr std::chrono::microseconds kYieldInterval{25};
constexpr int kPausesPerCheck = 32;  // About a microsecond.
constexpr int kMaxThreads = 1024;
constexpr int kItemBits = 48;
constexpr uint64_t kItemMask = (uint64_t{1} << kItemBits) - 1;
constexpr size_t kCacheLine = 64;

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Where one thread sleeps until a condition holds that other threads make true.
//
// No wake-up is lost: the sleeper stores asleep_ and then reads the condition, the waker writes
// the condition and then reads asleep_, all sequentially consistent, so at least one of them sees
// the other's write. A wake-up may come without the condition.
class Sleeper {
 public:
  // Returns soon after `ready` holds.
  template <class Ready>
  void WaitUntil(const Ready& ready) {
    if (SpinUntil(ready)) return;
    while (!ready()) {
      asleep_.store(1, std::memory_order_seq_cst);
      if (!ready()) asleep_.wait(1, std::memory_order_relaxed);
      asleep_.store(0, std::memory_order_relaxed);
    }
  }

  // Costs one load unless the thread sleeps.
  void Wake() {
    if (asleep_.load(std::memory_order_seq_cst) == 0) return;
    if (asleep_.exchange(0, std::memory_order_relaxed) != 0) asleep_.notify_one();
  }

 private:
  template <class Ready>
  static bool SpinUntil(const Ready& ready) {
    using Clock = std::chrono::steady_clock;
    if (ready()) return true;
    const Clock::time_point begin = Clock::now();
    Clock::time_point next_yield = begin + kYieldInterval;
    for (Clock::time_point now = begin; now < begin + kSpinTime; now = Clock::now()) {
      for (int i = 0; i < kPausesPerCheck; ++i) {
        if (ready()) return true;
        Pause();
      }
      if (now < next_yield) continue;
      sched_yield();
      next_yield = now + kYieldInterval;
    }
    return false;
  }

  std::atomic<int> asleep_{0};
};

// The threads and the one loop that they may be running.
//
// claims_ holds (threads of the loop, items not begun yet). A thread begins an item by taking one
// off with a compare-and-swap, and only then reads the loop's fields. They cannot change under it:
// the caller leaves (and the next loop is set up) when all items are accounted for in finished_,
// and this thread's item is not. Before its claim succeeds a thread touches claims_ only, so one
// that comes late finds no items, or claims one of the next loop, rightly. No generation is needed:
// what a claim means does not depend on when claims_ was read.
//
// Order: the caller's store to claims_ releases the loop's fields, each claim (a read-modify-write,
// so it continues the release sequence) acquires them. A worker's addition to finished_ releases
// its items' results, and the caller's load acquires them. `busy_` hands the fields from one caller
// to the next in the same way.
class Pool {
 public:
  // Never destroyed: its threads wait on it until the process ends, whatever order statics die in.
  static Pool& Instance() {
    static Pool* const pool = new Pool;
    return *pool;
  }

  // False, with nothing done, if a loop is running.
  bool TryRun(int num_threads, int64_t num_items, ParallelBody body, const void* context) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    const Release release{busy_};
    StartThreads(num_threads - 1);
    body_ = body;
    context_ = context;
    num_items_ = num_items;
    finished_.store(0, std::memory_order_relaxed);
    claims_.store(
        (static_cast<uint64_t>(num_threads) << kItemBits) | static_cast<uint64_t>(num_items),
        std::memory_order_seq_cst);
    for (int i = 0; i + 1 < num_threads && i < std::ssize(workers_); ++i) {
      workers_[static_cast<size_t>(i)]->Wake();
    }
    const int64_t others = num_items - RunItems(0);
    caller_.WaitUntil([&] { return finished_.load(std::memory_order_seq_cst) == others; });
    RethrowError();
    return true;
  }

 private:
  struct Release {
    std::atomic<bool>& flag;
    ~Release() { flag.store(false, std::memory_order_release); }
  };

  // Fewer threads than wanted are enough.
  void StartThreads(int count) {
    while (std::ssize(workers_) < count) {
      auto sleeper = std::make_unique<Sleeper>();
      const auto worker = static_cast<int>(workers_.size()) + 1;
      workers_.reserve(workers_.size() + 1);
      try {
        std::thread([this, worker, own = sleeper.get()] { Work(worker, *own); }).detach();
      } catch (const std::system_error&) {
        return;
      }
      workers_.push_back(std::move(sleeper));
    }
  }

  [[noreturn]] void Work(int worker, Sleeper& sleeper) {
    for (;;) {
      sleeper.WaitUntil([&] { return HasItems(claims_.load(std::memory_order_seq_cst), worker); });
      const int64_t count = RunItems(worker);
      if (count == 0) continue;
      finished_.fetch_add(count, std::memory_order_seq_cst);
      caller_.Wake();
    }
  }

  static bool HasItems(uint64_t claims, int worker) {
    return (claims & kItemMask) != 0 && static_cast<uint64_t>(worker) < claims >> kItemBits;
  }

  // Runs items until none is left to begin. The number of items it accounts for: those it ran and,
  // after an exception, those that nobody will run.
  int64_t RunItems(int worker) noexcept {
    int64_t count = 0;
    uint64_t claims = claims_.load(std::memory_order_relaxed);
    while (HasItems(claims, worker)) {
      if (!claims_.compare_exchange_weak(claims, claims - 1, std::memory_order_acq_rel,
                                         std::memory_order_relaxed)) {
        continue;
      }
      ++count;
      try {
        body_(context_, num_items_ - static_cast<int64_t>(claims & kItemMask), worker);
      } catch (...) {
        if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
        count += static_cast<int64_t>(claims_.exchange(0, std::memory_order_acq_rel) & kItemMask);
      }
      claims = claims_.load(std::memory_order_relaxed);
    }
    return count;
  }

  void RethrowError() {
    if (!failed_.load(std::memory_order_relaxed)) return;
    failed_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }

  // Written by every claim, and read by waiting workers all the time.
  alignas(kCacheLine) std::atomic<uint64_t> claims_{0};
  alignas(kCacheLine) std::atomic<int64_t> finished_{0};
  alignas(kCacheLine) std::atomic<bool> busy_{false};
  Sleeper caller_;
  std::vector<std::unique_ptr<Sleeper>> workers_;  // Worker i + 1 at i.
  // The loop.
  ParallelBody body_ = nullptr;
  const void* context_ = nullptr;
  int64_t num_items_ = 0;
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

}  // namespace

void RunParallel(int num_threads, int64_t num_items, ParallelBody body, const void* context) {
  PMKVQ_CHECK(static_cast<uint64_t>(num_items) <= kItemMask);
  const auto threads =
      static_cast<int>(std::min<int64_t>(std::min(num_threads, kMaxThreads), num_items));
  if (Pool::Instance().TryRun(threads, num_items, body, context)) return;
  for (int64_t item = 0; item < num_items; ++item) body(context, item, 0);
}

}  // namespace pmkvq::internal
