#include "pmkvq/base/turns.h"

#include <gtest/gtest.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/base/parallel.h"

namespace pmkvq {
namespace {

using std::chrono::hours;
using std::chrono::nanoseconds;

constexpr nanoseconds kShortest{0};  // Each PausePoint pauses.

TEST(TurnsTest, WorkPausesAtEachPointOfATurnThatIsOver) {
  std::string log;
  Turns turns;
  turns.Start([&] {
    for (const char letter : {'a', 'b', 'c'}) {
      PausePoint();
      log += letter;
    }
  });
  EXPECT_TRUE(turns.is_under_way());
  EXPECT_EQ(log, "");
  std::vector<std::string> logs;
  bool ended = false;
  while (!ended) {
    ended = turns.Resume(kShortest);
    logs.push_back(log);
    log += '.';
  }
  EXPECT_EQ(logs, (std::vector<std::string>{"", ".a", ".a.b", ".a.b.c"}));
  EXPECT_FALSE(turns.is_under_way());
}

TEST(TurnsTest, ALongTurnRunsToTheEndAndTheNextWorkFollows) {
  Turns turns;
  int sum = 0;
  for (int i = 1; i <= 3; ++i) {
    turns.Start([&sum, i] {
      PausePoint();
      sum += i;
    });
    EXPECT_TRUE(turns.Resume(hours(1)));
  }
  EXPECT_EQ(sum, 6);
}

TEST(TurnsTest, LoopsOfTheWorkRunOnTheOwnersPool) {
  ThreadPool pool;
  const ThreadPoolScope scope(pool);
  Turns turns;
  ThreadPool* found = nullptr;
  turns.Start([&] {
    PausePoint();
    found = &ThreadPool::OfThread();
  });
  EXPECT_FALSE(turns.Resume(kShortest));
  EXPECT_TRUE(turns.Resume(kShortest));
  EXPECT_EQ(found, &pool);
}

TEST(TurnsTest, WhatTheWorkThrowsReachesTheOwner) {
  Turns turns;
  turns.Start([] {
    PausePoint();
    throw std::runtime_error("broken");
  });
  EXPECT_FALSE(turns.Resume(kShortest));
  EXPECT_THROW(turns.Resume(kShortest), std::runtime_error);
  EXPECT_FALSE(turns.is_under_way());
  turns.Start([] {});
  EXPECT_TRUE(turns.Resume(kShortest));
}

TEST(TurnsTest, WorkThatIsGivenUpUnwinds) {
  bool unwound = false;
  bool went_on = false;
  const auto work = [&] {
    struct Unwinding {
      bool& flag;
      ~Unwinding() { flag = true; }
    } unwinding{unwound};
    PausePoint();
    PausePoint();
    went_on = true;
  };
  {
    Turns turns;
    turns.Start(work);
    EXPECT_FALSE(turns.Resume(kShortest));
    turns.GiveUp();
    EXPECT_FALSE(turns.is_under_way());
    EXPECT_TRUE(unwound);
    unwound = false;
    turns.Start(work);
    EXPECT_FALSE(turns.Resume(kShortest));
  }  // By the destructor, too.
  EXPECT_TRUE(unwound);
  EXPECT_FALSE(went_on);
}

TEST(TurnsTest, WorkThatNeverBeganIsDropped) {
  bool ran = false;
  Turns turns;
  turns.Start([&] { ran = true; });
  turns.GiveUp();
  EXPECT_FALSE(turns.is_under_way());
  EXPECT_FALSE(ran);
}

TEST(TurnsTest, TheWorkSeesTheScopesOfWhoeverResumesIt) {
  CancelFlag flag = false;
  Turns turns;
  turns.Start([] {
    for (;;) {
      CancelPoint();
      PausePoint();
    }
  });
  EXPECT_FALSE(turns.Resume(kShortest));  // No scope is open.
  const CancelScope scope(&flag, "test");
  EXPECT_FALSE(turns.Resume(kShortest));
  flag = true;
  {
    const UncancelledScope shield;
    EXPECT_FALSE(turns.Resume(kShortest));
  }
  EXPECT_THROW(turns.Resume(kShortest), Cancelled);
}

// However a loop is cut by pauses, each item runs once, and none runs while the owner has its turn.
TEST(TurnsTest, LoopsPauseBetweenItems) {
  for (const int num_threads : {1, 2, 4}) {
    constexpr int64_t kItems = 1000;
    std::vector<std::atomic<int>> counts(kItems);
    std::atomic<int> num_running = 0;
    Turns turns;
    turns.Start([&] {
      ParallelFor(num_threads, kItems, [&](int64_t item, int worker) {
        ++num_running;
        EXPECT_LT(worker, num_threads);
        // A loop inside an item does not pause.
        ParallelFor(1, 3, [&](int64_t, int) { std::this_thread::yield(); });
        ++counts[static_cast<size_t>(item)];
        --num_running;
      });
    });
    int num_turns = 0;
    bool ended = false;
    while (!ended) {
      ended = turns.Resume(kShortest);
      ++num_turns;
      EXPECT_EQ(num_running, 0);
      // The owner's loops have the pool for themselves.
      std::atomic<int64_t> sum = 0;
      ParallelFor(num_threads, 100, [&](int64_t item, int) { sum += item; });
      EXPECT_EQ(sum, 4950);
    }
    EXPECT_GT(num_turns, 2) << num_threads;
    for (const auto& count : counts) EXPECT_EQ(count, 1);
  }
}

TEST(TurnsTest, NothingPausesInsideAnUnpausedScope) {
  Turns turns;
  int count = 0;
  turns.Start([&] {
    const UnpausedScope whole;
    ParallelFor(2, 10, [&](int64_t, int) {});
    PausePoint();
    ++count;
  });
  EXPECT_TRUE(turns.Resume(kShortest));
  EXPECT_EQ(count, 1);
}

TEST(TurnsDeathTest, OneWorkAtATime) {
  Turns turns;
  EXPECT_DEATH((void)turns.Resume(kShortest), "");
  turns.Start([] {});
  EXPECT_DEATH(turns.Start([] {}), "");
}

}  // namespace
}  // namespace pmkvq
