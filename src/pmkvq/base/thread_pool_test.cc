#include "pmkvq/base/thread_pool.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <thread>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/parallel.h"

namespace pmkvq {
namespace {

using std::chrono::milliseconds;

int64_t NumThreadsOfProcess() {
  int64_t count = 0;
  for ([[maybe_unused]] const auto& entry :
       std::filesystem::directory_iterator("/proc/self/task")) {
    ++count;
  }
  return count;
}

// Whether it has `count` threads within a minute: a thread that was joined can be listed for a
// moment longer, until the system has taken it down.
bool ComesToThreads(int64_t count) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
  while (NumThreadsOfProcess() != count) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return true;
}

// Both threads of a loop of two items take part: each item waits for the other one.
void Meet(const void* context, int64_t /*item*/, int /*worker*/) {
  auto& began = *static_cast<std::atomic<int>*>(const_cast<void*>(context));
  ++began;
  while (began < 2) std::this_thread::yield();
}

bool MeetOn(ThreadPool& pool) {
  std::atomic<int> began{0};
  return pool.TryRun(2, 2, Meet, &began) && began == 2;
}

void AddOne(const void* context, int64_t /*item*/, int /*worker*/) {
  ++*static_cast<std::atomic<int>*>(const_cast<void*>(context));
}

TEST(ThreadPool, ItsThreadsEndWithIt) {
  const int64_t before = NumThreadsOfProcess();
  for (int round = 0; round < 20; ++round) {
    ThreadPool pool;
    EXPECT_TRUE(MeetOn(pool));
    EXPECT_TRUE(ComesToThreads(before + 1)) << NumThreadsOfProcess() - before;
  }
  EXPECT_TRUE(ComesToThreads(before)) << NumThreadsOfProcess() - before;
}

// Two callers, each with its pool, have their loops run at the same time: items of both wait for
// each other.
TEST(ThreadPool, BoundPoolsRunLoopsAtTheSameTime) {
  std::atomic<int> began{0};
  const auto meet = [&] {
    ThreadPool pool;
    const ThreadPoolScope scope(pool);
    ParallelFor(2, 2, [&](int64_t, int) {
      ++began;
      while (began < 4) std::this_thread::yield();
    });
  };
  std::thread other(meet);
  meet();
  other.join();
  EXPECT_EQ(began, 4);
}

TEST(ThreadPool, ALoopInsideABoundLoopStaysOnItsThread) {
  ThreadPool pool;
  const ThreadPoolScope scope(pool);
  std::atomic<int> elsewhere{0};
  for (int round = 0; round < 50; ++round) {
    ParallelFor(2, 2, [&](int64_t, int) {
      const auto thread = std::this_thread::get_id();
      ParallelFor(2, 8, [&](int64_t, int worker) {
        elsewhere += thread != std::this_thread::get_id() || worker != 0;
      });
    });
  }
  EXPECT_EQ(elsewhere, 0);
}

// The worker that takes part in a loop of this thread.
std::thread::id WorkerOfLoops() {
  std::atomic<int> began{0};
  std::thread::id worker_id;
  ParallelFor(2, 2, [&](int64_t, int worker) {
    if (worker == 1) worker_id = std::this_thread::get_id();
    ++began;
    while (began < 2) std::this_thread::yield();
  });
  return worker_id;
}

TEST(ThreadPool, TheInnermostScopeCounts) {
  ThreadPool outer;
  ThreadPool inner;
  const ThreadPoolScope scope(outer);
  const std::thread::id before = WorkerOfLoops();
  {
    const ThreadPoolScope nested(inner);
    EXPECT_NE(WorkerOfLoops(), before);
  }
  EXPECT_EQ(WorkerOfLoops(), before);
}

TEST(ThreadPool, SleepingThreadsEndWithIt) {
  ThreadPool pool;
  EXPECT_TRUE(MeetOn(pool));
  std::this_thread::sleep_for(milliseconds(20));  // Far longer than they spin.
}

TEST(ThreadPool, RunsNothingAfterJoin) {
  ThreadPool pool;
  EXPECT_TRUE(MeetOn(pool));
  EXPECT_TRUE(pool.Join(milliseconds(0)));
  EXPECT_TRUE(pool.Join(milliseconds(0)));
  std::atomic<int> calls{0};
  EXPECT_FALSE(pool.TryRun(2, 2, AddOne, &calls));
  EXPECT_EQ(calls, 0);
}

TEST(ThreadPool, JoinWaitsForALoopOfAnotherThread) {
  struct Context {
    std::atomic<bool> began{false};
    std::atomic<bool> may_end{false};
  };
  ThreadPool pool;
  Context context;
  std::thread caller([&] {
    const ParallelBody body = [](const void* c, int64_t, int) {
      auto& state = *static_cast<Context*>(const_cast<void*>(c));
      state.began = true;
      while (!state.may_end) std::this_thread::yield();
    };
    EXPECT_TRUE(pool.TryRun(2, 2, body, &context));
  });
  while (!context.began) std::this_thread::yield();
  EXPECT_FALSE(pool.Join(milliseconds(5)));
  context.may_end = true;
  EXPECT_TRUE(pool.Join(std::chrono::seconds(60)));
  caller.join();
}

TEST(ThreadPool, TwoPoolsRunAtOnce) {
  ThreadPool pools[2];
  std::atomic<int> began{0};
  // Four threads of two loops wait for each other.
  const ParallelBody body = [](const void* context, int64_t, int) {
    auto& count = *static_cast<std::atomic<int>*>(const_cast<void*>(context));
    ++count;
    while (count < 4) std::this_thread::yield();
  };
  std::thread other([&] { EXPECT_TRUE(pools[1].TryRun(2, 2, body, &began)); });
  EXPECT_TRUE(pools[0].TryRun(2, 2, body, &began));
  other.join();
  EXPECT_EQ(began, 4);
}

// The thread sanitizer runs one more thread, and ends a child of fork that starts one.
#ifdef __SANITIZE_THREAD__
constexpr bool kThreadSanitizer = true;
#else
constexpr bool kThreadSanitizer = false;
#endif

// Exit code of a child that runs `body`.
template <class Body>
int InChild(const Body& body) {
  const pid_t child = fork();
  if (child == 0) _exit(body());
  int status = 0;
  if (waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

TEST(ThreadPool, AChildOfForkRunsLoopsAloneAndEnds) {
  if (kThreadSanitizer) GTEST_SKIP() << "no threads after fork";
  auto pool = std::make_unique<ThreadPool>();
  EXPECT_TRUE(MeetOn(*pool));
  ParallelFor(3, 3, [](int64_t, int) {});  // The pool of the process has threads, too.
  const int code = InChild([&] {
    std::atomic<int> calls{0};
    if (pool->TryRun(2, 2, AddOne, &calls)) return 1;
    ParallelFor(3, 100, [&](int64_t, int worker) { calls += worker == 0 ? 1 : 1000; });
    if (calls != 100) return 2;
    pool.reset();  // Joins nothing.
    ThreadPool made_here;
    return MeetOn(made_here) ? 0 : 3;
  });
  EXPECT_EQ(code, 0);
  EXPECT_TRUE(MeetOn(*pool));  // Nothing happened to the parent's.
}

TEST(ThreadPoolDeathTest, ExitJoinsThePoolOfTheProcess) {
  if (kThreadSanitizer) GTEST_SKIP() << "the sanitizer's thread counts";
  // A thread that outlived static destructors could meet freed memory; here it must be gone when
  // the last handler runs.
  EXPECT_EXIT(
      {
        std::atexit([] { _exit(ComesToThreads(1) ? 7 : 8); });
        ParallelFor(3, 3, [](int64_t, int) {});
        std::exit(0);
      },
      testing::ExitedWithCode(7), "");
}

TEST(Cancel, PointsThrowInsideScopesOnly) {
  CancelFlag flag = false;
  CancelPoint();
  {
    const CancelScope scope(&flag, "work");
    CancelPoint();
    flag = true;
    try {
      CancelPoint();
      ADD_FAILURE() << "did not throw";
    } catch (const Cancelled& error) {
      EXPECT_STREQ(error.what(), "[work] interrupted");
    }
    const CancelScope without(nullptr, "inner");
    EXPECT_THROW(CancelPoint(), Cancelled);  // The outer flag counts.
    {
      const UncancelledScope whole;
      CancelPoint();
      const CancelScope inside(&flag, "inside");
      EXPECT_THROW(CancelPoint(), Cancelled);
    }
    {
      const UncancelledScope whole;
      {
        const CancellableAgainScope part(whole);
        EXPECT_THROW(CancelPoint(), Cancelled);
        const UncancelledScope inside;
        CancelPoint();
      }
      CancelPoint();
    }
    EXPECT_THROW(CancelPoint(), Cancelled);
    std::thread([] { CancelPoint(); }).join();  // Scopes belong to their thread.
  }
  CancelPoint();
}

TEST(Cancel, ALoopEndsSoonForAnyNumberOfThreads) {
  for (const int threads : {1, 2, 4}) {
    CancelFlag flag = false;
    const CancelScope scope(&flag, "work");
    std::atomic<int64_t> begun{0};
    const auto loop = [&] {
      ParallelFor(threads, 1'000'000, [&](int64_t, int) {
        if (++begun >= 100) flag = true;  // Not the 100th alone, which may be slow to set it.
      });
    };
    EXPECT_THROW(loop(), Cancelled) << threads;
    EXPECT_LE(begun, 100 + threads);
  }
}

TEST(Cancel, WorkersReadTheScopesOfTheirCaller) {
  CancelFlag flag = false;
  std::atomic<int> met{0};
  std::atomic<int> cancelled{0};
  {
    const CancelScope scope(&flag, "work");
    EXPECT_THROW(ParallelFor(2, 2,
                             [&](int64_t, int) {
                               ++met;
                               while (met < 2) std::this_thread::yield();
                               flag = true;
                               try {
                                 CancelPoint();
                               } catch (const Cancelled&) {
                                 ++cancelled;
                                 throw;
                               }
                             }),
                 Cancelled);
  }
  EXPECT_EQ(cancelled, 2);
  // The next loop's caller has no scope, whatever its workers did before.
  std::atomic<int> calls{0};
  ParallelFor(2, 100, [&](int64_t, int) {
    CancelPoint();
    ++calls;
  });
  EXPECT_EQ(calls, 100);
}

TEST(Cancel, AnUncancelledLoopIsRunWhole) {
  const CancelFlag flag = true;
  const CancelScope scope(&flag, "work");
  const UncancelledScope whole;
  std::atomic<int> calls{0};
  ParallelFor(3, 100, [&](int64_t, int) { ++calls; });
  EXPECT_EQ(calls, 100);
}

}  // namespace
}  // namespace pmkvq
