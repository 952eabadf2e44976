#include "pmkvq/comm/all_or_none.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <string>
#include <thread>

#include "pmkvq/base/error.h"
#include "pmkvq/comm/thread_communicator.h"

namespace pmkvq {
namespace {

TEST(AllOrNone, AllGoOnWhereNoneFails) {
  RunRanks(3, [](Communicator& comm) {
    int calls = 0;
    AllOrNone(&comm, [&] { ++calls; });
    EXPECT_EQ(calls, 1);
    EXPECT_TRUE(comm.AllTrue(true));
  });
  EXPECT_THROW(AllOrNone(nullptr, [] { throw IoError("x", "full"); }), IoError);
}

TEST(AllOrNone, OneFailureReachesAllAndTheyStayInStep) {
  std::mutex mutex;
  std::multiset<std::string> messages;
  RunRanks(4, [&](Communicator& comm) {
    try {
      AllOrNone(&comm, [&] {
        if (comm.rank() == 2) throw IoError("disk", "full");
        if (comm.rank() == 3) throw IoError("disk", "broken");
      });
      ADD_FAILURE() << comm.rank();
    } catch (const Error& error) {
      EXPECT_EQ(dynamic_cast<const IoError*>(&error) != nullptr, comm.rank() == 2);
      EXPECT_EQ(dynamic_cast<const OtherRankFailed*>(&error) != nullptr, comm.rank() != 2);
      const std::lock_guard<std::mutex> lock(mutex);
      messages.insert(error.what());
    }
    EXPECT_THROW(AllOrNone(&comm,
                           [&] {
                             if (comm.rank() == 1) throw Cancelled("eval", "interrupted");
                           }),
                 Cancelled);
    comm.Barrier();
  });
  EXPECT_EQ(messages.count("[disk] full"), 1u);
  EXPECT_EQ(messages.count("[rank 2] [disk] full"), 3u);
}

TEST(AllOrNone, WaitingForWorkIsNoTimeOfExchanges) {
  std::atomic<int> arrived = 0;
  RunRanks(3, [&](Communicator& comm) {
    const bool is_slow = comm.rank() == 0;
    if (is_slow) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    ++arrived;
    WaitForAll(comm);
    EXPECT_EQ(arrived, 3);
    EXPECT_LT(comm.totals().seconds, 0.2);
  });
}

}  // namespace
}  // namespace pmkvq
