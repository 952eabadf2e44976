#include "pmkvq/base/parallel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "pmkvq/base/random.h"

namespace pmkvq {
namespace {

TEST(ParallelFor, RunsEveryItemOnceWithAWorkerOfItsOwn) {
  Random random(1);
  for (int round = 0; round < 2000; ++round) {
    const int threads = static_cast<int>(random.Next() % 9);
    const auto items = static_cast<int64_t>(random.Next() % 200);
    // Plain integers: two calls for one item, or two at once for one worker, are a data race too.
    std::vector<int> calls(static_cast<size_t>(items));
    std::vector<int64_t> calls_of_worker(static_cast<size_t>(std::max(threads, 1)));
    ParallelFor(threads, items, [&](int64_t item, int worker) {
      ++calls[static_cast<size_t>(item)];
      ++calls_of_worker.at(static_cast<size_t>(worker));
    });
    int64_t total = 0;
    for (const int64_t count : calls_of_worker) total += count;
    EXPECT_EQ(total, items);
    EXPECT_EQ(calls, std::vector<int>(static_cast<size_t>(items), 1));
  }
}

TEST(ParallelFor, WorkersTakePart) {
  // Item 0 ends when item 1 has begun, so two threads must be at work.
  std::atomic<bool> second_began{false};
  std::vector<int> worker_of(2);
  ParallelFor(2, 2, [&](int64_t item, int worker) {
    worker_of[static_cast<size_t>(item)] = worker;
    if (item == 1) second_began = true;
    while (!second_began) std::this_thread::yield();
  });
  EXPECT_NE(worker_of[0], worker_of[1]);
}

TEST(ParallelFor, SleepingWorkersWakeUp) {
  for (int round = 0; round < 10; ++round) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // Workers sleep well before.
    std::atomic<int> began{0};
    ParallelFor(3, 3, [&](int64_t, int) {
      ++began;
      while (began < 3) std::this_thread::yield();
    });
    EXPECT_EQ(began, 3);
  }
}

TEST(ParallelFor, ManyTinyLoopsInARow) {
  // Each loop has its own frame: a late worker that touched an ended loop would hit the next one.
  int64_t sum = 0;
  for (int64_t loop = 0; loop < 20000; ++loop) {
    int64_t values[4] = {};
    ParallelFor(3, 4, [&](int64_t item, int) { values[item] += loop + item; });
    for (const int64_t value : values) sum += value;
  }
  constexpr int64_t kLoops = 20000;
  EXPECT_EQ(sum, 4 * (kLoops * (kLoops - 1) / 2) + 6 * kLoops);
}

TEST(ParallelFor, RethrowsAndIsUsableAfterwards) {
  for (const int threads : {1, 2, 4}) {
    for (int64_t bad = 0; bad < 50; ++bad) {
      std::atomic<int64_t> running{0};
      std::string message;
      try {
        ParallelFor(threads, 50, [&](int64_t item, int) {
          ++running;
          if (item == bad) {
            --running;
            throw std::runtime_error("item " + std::to_string(item));
          }
          --running;
        });
      } catch (const std::runtime_error& error) {
        EXPECT_EQ(running, 0);
        message = error.what();
      }
      EXPECT_EQ(message, "item " + std::to_string(bad));
      std::atomic<int64_t> count{0};
      ParallelFor(threads, 10, [&](int64_t, int) { ++count; });
      EXPECT_EQ(count, 10);
    }
  }
}

TEST(ParallelFor, AnExceptionOfAWorkerReachesTheCaller) {
  // The caller and the worker hold one item each; the one that is not worker 0 throws.
  std::atomic<int> began{0};
  EXPECT_THROW(ParallelFor(2, 2,
                           [&](int64_t, int worker) {
                             ++began;
                             while (began < 2) std::this_thread::yield();
                             if (worker == 1) throw std::runtime_error("worker");
                           }),
               std::runtime_error);
}

TEST(ParallelFor, BeginsNoItemAfterAnException) {
  std::atomic<int64_t> begun{0};
  EXPECT_THROW(ParallelFor(4, 1'000'000,
                           [&](int64_t, int) {
                             ++begun;
                             throw std::runtime_error("stop");
                           }),
               std::runtime_error);
  EXPECT_LE(begun, 4);
}

TEST(ParallelFor, NestedLoopsRunInTheirCaller) {
  std::vector<int> calls(30 * 20);
  ParallelFor(4, 30, [&](int64_t outer, int) {
    const auto thread = std::this_thread::get_id();
    ParallelFor(4, 20, [&](int64_t inner, int worker) {
      EXPECT_EQ(worker, 0);
      EXPECT_EQ(std::this_thread::get_id(), thread);
      ++calls[static_cast<size_t>(outer * 20 + inner)];
    });
  });
  EXPECT_EQ(calls, std::vector<int>(calls.size(), 1));
}

TEST(ParallelFor, TwoCallersAtOnce) {
  const auto call = [](int64_t* sum) {
    for (int loop = 0; loop < 3000; ++loop) {
      int64_t values[16] = {};
      ParallelFor(3, 16, [&](int64_t item, int) { values[item] += item; });
      for (const int64_t value : values) *sum += value;
    }
  };
  int64_t sums[2] = {};
  std::thread other(call, &sums[1]);
  call(&sums[0]);
  other.join();
  EXPECT_EQ(sums[0], 3000 * 120);
  EXPECT_EQ(sums[1], 3000 * 120);
}

TEST(ParallelForRanges, CoversTheRangeInPiecesOfTheGrain) {
  for (const int64_t size : {0, 1, 9, 10, 11, 95}) {
    std::vector<int> calls(static_cast<size_t>(size));
    ParallelForRanges(2, size, 10, [&](int64_t begin, int64_t end) {
      EXPECT_EQ(begin % 10, 0);
      EXPECT_EQ(end, std::min<int64_t>(size, begin + 10));
      for (int64_t i = begin; i < end; ++i) ++calls[static_cast<size_t>(i)];
    });
    EXPECT_EQ(calls, std::vector<int>(calls.size(), 1));
  }
}

TEST(UsefulThreads, GrowsWithTheWork) {
  const auto of_16 = [](double work_us) { return UsefulThreads(16, work_us * 1e3); };
  EXPECT_EQ(of_16(0), 1);
  EXPECT_EQ(of_16(29), 1);
  EXPECT_EQ(of_16(30), 2);
  EXPECT_EQ(of_16(60), 4);
  EXPECT_EQ(of_16(200), 8);
  EXPECT_EQ(of_16(800), 16);
  EXPECT_EQ(of_16(1e9), 16);
  EXPECT_EQ(UsefulThreads(2, 1e6), 2);
  EXPECT_EQ(UsefulThreads(1, 1e6), 1);
  EXPECT_EQ(UsefulThreads(0, 1e6), 1);
}

}  // namespace
}  // namespace pmkvq
