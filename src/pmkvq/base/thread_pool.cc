#include "pmkvq/base/thread_pool.h"

#include <pthread.h>
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
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/parallel.h"

namespace pmkvq {
namespace {

// How long a thread waits awake before it sleeps. Longer than the gaps between the loops of one
// decode step, so that workers sleep between steps at most; short against a turn of the scheduler.
constexpr std::chrono::microseconds kSpinTime{100};
// How often a waiting thread yields its processor, perhaps to the awaited thread. Not at once: most
// waits are shorter, and on a busy machine a thread that yields may not run again for milliseconds.
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

// The pool of the innermost scope of this thread; null: that of the process. Workers of a pool have
// it, so that a loop inside a loop finds its pool busy.
constinit thread_local ThreadPool* bound_pool = nullptr;

// How often this process is the child of a fork.
std::atomic<uint32_t> num_forks{0};

void CountForks() {
  [[maybe_unused]] static const int registered =
      pthread_atfork(nullptr, nullptr, [] { num_forks.fetch_add(1, std::memory_order_relaxed); });
}

// Lends a scope to this thread; by hand, since the scope changes from item to item.
class LentScope {
 public:
  LentScope() : own_(internal::open_cancel_link) {}
  ~LentScope() { internal::open_cancel_link = own_; }
  LentScope(const LentScope&) = delete;
  LentScope& operator=(const LentScope&) = delete;
  void Set(const internal::CancelLink* scope) { internal::open_cancel_link = scope; }

 private:
  const internal::CancelLink* own_;
};

}  // namespace

// The threads and the one loop that they may be running.
//
// claims_ holds (threads of the loop, items not begun yet). A thread begins an item by taking one
// off with a compare-and-swap, and only then reads the loop's fields. They cannot change under it:
// the caller leaves (and the next loop is set up) when all items are accounted for in finished_,
// and this thread's item is not. Before its claim succeeds a thread touches claims_ only, so a
// late thread finds no items, or claims an item of the next loop, which is correct. So claims_
// needs no generation number.
//
// Order: the caller's store to claims_ releases the loop's fields, each claim (a read-modify-write,
// so it continues the release sequence) acquires them. A worker's addition to finished_ releases
// its items' results, and the caller's load acquires them. `busy_` hands the fields from one caller
// to the next in the same way.
struct ThreadPool::Impl {
 public:
  explicit Impl(ThreadPool* pool) : pool_(pool) {}

  bool TryRun(int num_threads, int64_t num_items, ParallelBody body, const void* context) {
    if (IsForked() || busy_.exchange(true, std::memory_order_acquire)) return false;
    const Release release{busy_};
    StartThreads(num_threads - 1);
    body_ = body;
    context_ = context;
    num_items_ = num_items;
    scope_ = internal::open_cancel_link;
    finished_.store(0, std::memory_order_relaxed);
    claims_.store(
        (static_cast<uint64_t>(num_threads) << kItemBits) | static_cast<uint64_t>(num_items),
        std::memory_order_seq_cst);
    for (int i = 0; i + 1 < num_threads && i < std::ssize(*workers_); ++i) {
      (*workers_)[static_cast<size_t>(i)]->sleeper.Wake();
    }
    const int64_t others = num_items - RunItems(0);
    caller_.WaitUntil([&] { return finished_.load(std::memory_order_seq_cst) == others; });
    RethrowError();
    return true;
  }

  bool Join(std::chrono::milliseconds patience) {
    if (IsForked()) return true;
    const auto deadline = std::chrono::steady_clock::now() + patience;
    while (busy_.exchange(true, std::memory_order_acquire)) {  // And stays so: no loop begins.
      if (joined_) return true;
      if (std::chrono::steady_clock::now() >= deadline) return false;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    joined_ = true;
    ends_.store(true, std::memory_order_seq_cst);
    for (const std::unique_ptr<Worker>& worker : *workers_) worker->sleeper.Wake();
    for (const std::unique_ptr<Worker>& worker : *workers_) worker->thread.join();
    workers_->clear();
    return true;
  }

  // Neither joined nor destroyed: they are threads of the parent, if any.
  void AbandonForkedThreads() {
    if (IsForked()) (void)workers_.release();
  }

 private:
  struct Worker {
    Sleeper sleeper;
    std::thread thread;
  };
  struct Release {
    std::atomic<bool>& flag;
    ~Release() { flag.store(false, std::memory_order_release); }
  };

  bool IsForked() const { return num_forks.load(std::memory_order_relaxed) != forks_before_; }

  // Fewer threads than wanted are enough.
  void StartThreads(int count) {
    while (std::ssize(*workers_) < count) {
      auto made = std::make_unique<Worker>();
      const auto index = static_cast<int>(workers_->size()) + 1;
      workers_->reserve(workers_->size() + 1);
      try {
        made->thread = std::thread([this, index, own = &made->sleeper] { Work(index, *own); });
      } catch (const std::system_error&) {
        return;
      }
      workers_->push_back(std::move(made));
    }
  }

  void Work(int worker, Sleeper& sleeper) {
    bound_pool = pool_;
    for (;;) {
      sleeper.WaitUntil([&] {
        return HasItems(claims_.load(std::memory_order_seq_cst), worker) ||
               ends_.load(std::memory_order_seq_cst);
      });
      const int64_t count = RunItems(worker);
      if (count == 0) {
        if (ends_.load(std::memory_order_relaxed)) return;
        continue;
      }
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
    LentScope lent;
    int64_t count = 0;
    uint64_t claims = claims_.load(std::memory_order_relaxed);
    while (HasItems(claims, worker)) {
      if (!claims_.compare_exchange_weak(claims, claims - 1, std::memory_order_acq_rel,
                                         std::memory_order_relaxed)) {
        continue;
      }
      ++count;
      try {
        lent.Set(scope_);
        CancelPoint();
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

  ThreadPool* const pool_;
  // Written by every claim, and read by waiting workers all the time.
  alignas(kCacheLine) std::atomic<uint64_t> claims_{0};
  alignas(kCacheLine) std::atomic<int64_t> finished_{0};
  alignas(kCacheLine) std::atomic<bool> busy_{false};
  std::atomic<bool> ends_{false};
  std::atomic<bool> joined_{false};
  const uint32_t forks_before_ = num_forks.load(std::memory_order_relaxed);
  Sleeper caller_;
  std::unique_ptr<std::vector<std::unique_ptr<Worker>>> workers_ =  // Worker i + 1 at i.
      std::make_unique<std::vector<std::unique_ptr<Worker>>>();
  // The loop.
  ParallelBody body_ = nullptr;
  const void* context_ = nullptr;
  int64_t num_items_ = 0;
  const internal::CancelLink* scope_ = nullptr;  // The caller's.
  std::atomic<bool> failed_{false};
  std::exception_ptr error_;
};

ThreadPool::ThreadPool() {
  CountForks();
  impl_ = std::make_unique<Impl>(this);
}

ThreadPool::~ThreadPool() {
  PMKVQ_CHECK_MSG(impl_->Join(std::chrono::milliseconds(0)), "a loop runs on a pool that ends");
  impl_->AbandonForkedThreads();
}

bool ThreadPool::TryRun(int num_threads, int64_t num_items, ParallelBody body,
                        const void* context) {
  PMKVQ_CHECK(static_cast<uint64_t>(num_items) <= kItemMask);
  return impl_->TryRun(std::min(num_threads, kMaxThreads), num_items, body, context);
}

bool ThreadPool::Join(std::chrono::milliseconds patience) { return impl_->Join(patience); }

ThreadPool& ThreadPool::OfProcess() {
  // The pool itself is never destroyed: loops of other statics' destructors still ask it.
  static ThreadPool* const pool = new ThreadPool;
  // A loop of a thread that outlives main may never end; its workers then end with the process.
  static const struct AtExit {
    ~AtExit() { (void)pool->Join(std::chrono::seconds(1)); }
  } at_exit;
  return *pool;
}

ThreadPool& ThreadPool::OfThread() { return bound_pool != nullptr ? *bound_pool : OfProcess(); }

ThreadPoolScope::ThreadPoolScope(ThreadPool& pool) : outer_(std::exchange(bound_pool, &pool)) {}

ThreadPoolScope::~ThreadPoolScope() { bound_pool = outer_; }

namespace internal {
namespace {

void RunWhole(int num_threads, int64_t num_items, ParallelBody body, const void* context) {
  const auto threads = static_cast<int>(std::min<int64_t>(num_threads, num_items));
  if (ThreadPool::OfThread().TryRun(threads, num_items, body, context)) return;
  for (int64_t item = 0; item < num_items; ++item) {
    CancelPoint();
    body(context, item, 0);
  }
}

// Items from `first` on of a loop.
struct Piece {
  ParallelBody body;
  const void* context;
  int64_t first;
};

// As several loops, with a chance to pause between them. A loop of 1 ms loses little at its end,
// where threads wait for the last item, and is short against a turn.
void RunInPieces(PausableWork& work, int num_threads, int64_t num_items, ParallelBody body,
                 const void* context) {
  constexpr std::chrono::microseconds kShortPiece{1000};
  Piece piece{body, context, 0};
  int64_t size = num_threads;
  while (piece.first < num_items) {
    work.PauseIfOver();
    const int64_t count = std::min(size, num_items - piece.first);
    const auto begin = std::chrono::steady_clock::now();
    RunWhole(
        num_threads, count,
        [](const void* opaque, int64_t item, int worker) {
          const auto& part = *static_cast<const Piece*>(opaque);
          part.body(part.context, part.first + item, worker);
        },
        &piece);
    if (std::chrono::steady_clock::now() - begin < kShortPiece) size *= 2;
    piece.first += count;
  }
}

}  // namespace

void RunParallel(int num_threads, int64_t num_items, ParallelBody body, const void* context) {
  const UnpausedScope whole_item;
  if (whole_item.work() != nullptr) {
    RunInPieces(*whole_item.work(), num_threads, num_items, body, context);
  } else {
    RunWhole(num_threads, num_items, body, context);
  }
}

}  // namespace internal
}  // namespace pmkvq
