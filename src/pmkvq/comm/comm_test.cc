// Ranks as threads: every exchange against what it should give, sums against their order, failures.
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <map>
#include <numeric>
#include <thread>

#include "pmkvq/base/error.h"
#include "pmkvq/base/random.h"
#include "pmkvq/comm/communicator.h"
#include "pmkvq/comm/launch.h"
#include "pmkvq/comm/sum_tree.h"
#include "pmkvq/comm/thread_communicator.h"
#include "pmkvq/comm/watchdog.h"

namespace pmkvq {
namespace {

// A float that depends on both numbers, of many magnitudes, so that the order of additions shows.
float ValueOf(int64_t part, int64_t i) {
  uint64_t x = static_cast<uint64_t>(part) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(i) + 1;
  x ^= x >> 31;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  const auto unit = static_cast<float>(static_cast<int64_t>(x % 20001) - 10000) / 10000.0f;
  return unit * std::ldexp(1.0f, static_cast<int>(x >> 60));
}

// The tree over 8 slices, written out.
float TreeOfEight(int64_t i) {
  std::array<float, 8> v;
  for (int64_t s = 0; s < 8; ++s) v[static_cast<size_t>(s)] = ValueOf(s, i);
  const float a = (v[0] + v[1]) + (v[2] + v[3]);
  const float b = (v[4] + v[5]) + (v[6] + v[7]);
  return a + b;
}

void CheckSums(Communicator& comm) {
  for (const int64_t n : {1, 7, 1000, 16384, 16385, 40000}) {
    const int64_t slices = 8 / comm.size();
    std::vector<float> parts(static_cast<size_t>(slices * n));
    for (int64_t s = 0; s < slices; ++s) {
      for (int64_t i = 0; i < n; ++i) {
        parts[static_cast<size_t>(s * n + i)] = ValueOf(comm.rank() * slices + s, i);
      }
    }
    AddInTree(parts.data(), 0, slices, n, n);
    comm.SumInOrder(parts.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      ASSERT_EQ(parts[static_cast<size_t>(i)], TreeOfEight(i)) << "value " << i << " of " << n;
    }
  }
}

void CheckExchanges(Communicator& comm) {
  const int ranks = comm.size();
  for (int round = 0; round < 3; ++round) {
    std::vector<int> all(static_cast<size_t>(ranks), -1);
    const int mine = 10 * round + comm.rank();
    comm.AllGather(&mine, sizeof(mine), all.data());
    for (int r = 0; r < ranks; ++r) EXPECT_EQ(all[static_cast<size_t>(r)], 10 * round + r);
    all[static_cast<size_t>(comm.rank())] = mine + 1;  // In place.
    comm.AllGather(&all[static_cast<size_t>(comm.rank())], sizeof(int), all.data());
    for (int r = 0; r < ranks; ++r) EXPECT_EQ(all[static_cast<size_t>(r)], 10 * round + r + 1);
    const int root = round % ranks;
    std::vector<int> gathered(static_cast<size_t>(ranks), -1);
    comm.Gather(&mine, sizeof(mine), comm.rank() == root ? gathered.data() : nullptr, root);
    if (comm.rank() == root) {
      for (int r = 0; r < ranks; ++r) EXPECT_EQ(gathered[static_cast<size_t>(r)], 10 * round + r);
    }
    const std::string text(static_cast<size_t>(comm.rank()), static_cast<char>('a' + comm.rank()));
    const std::vector<std::string> texts = comm.GatherStrings(text, root);
    ASSERT_EQ(texts.size(), comm.rank() == root ? static_cast<size_t>(ranks) : 0u);
    for (size_t r = 0; r < texts.size(); ++r) {
      EXPECT_EQ(texts[r], std::string(r, static_cast<char>('a' + r)));
    }
    std::string told = comm.rank() == root ? "from the root" : "?";
    comm.BroadcastString(&told, root);
    EXPECT_EQ(told, "from the root");
    if (comm.rank() == root) {
      std::string record = "patient";
      comm.BroadcastString(&record, root);
    } else {
      std::string record;
      comm.WaitForString(&record, root);
      EXPECT_EQ(record, "patient");
    }
    double number = comm.rank() == root ? 2.5 : 0;
    comm.Broadcast(&number, sizeof(number), root);
    EXPECT_EQ(number, 2.5);
    EXPECT_TRUE(comm.AllTrue(true));
    EXPECT_EQ(comm.AllTrue(comm.rank() != root), false);
    comm.Barrier();
  }
}

void CheckSplit(Communicator& comm) {
  // Even and odd ranks, the latter in reverse order.
  const int color = comm.rank() % 2;
  const auto part = comm.Split(color, color == 0 ? comm.rank() : -comm.rank());
  const int expected = (comm.size() + 1 - color) / 2;
  ASSERT_EQ(part->size(), expected);
  const int place = comm.rank() / 2;
  EXPECT_EQ(part->rank(), color == 0 ? place : expected - 1 - place);
  float value = static_cast<float>(1 << comm.rank());
  part->SumInOrder(&value, 1);
  float sum = 0;
  for (int r = color; r < comm.size(); r += 2) sum += static_cast<float>(1 << r);
  EXPECT_EQ(value, sum);
}

void CheckTotals(Communicator& comm) {
  std::vector<float> values(1000, 1.0f);
  comm.SumInOrder(values.data(), 1000);
  const int64_t others = comm.size() - 1;
  EXPECT_EQ(comm.totals().bytes_sent, 4000 * others);
  EXPECT_EQ(comm.totals().bytes_received, 4000 * others);
  EXPECT_EQ(comm.totals().exchanges, others > 0 ? 1 : 0);
  EXPECT_EQ(values[999], static_cast<float>(comm.size()));
}

class RanksTest : public testing::TestWithParam<int> {};

TEST_P(RanksTest, SumsOfEightSlicesDoNotDependOnTheRanks) { RunRanks(GetParam(), CheckSums); }
TEST_P(RanksTest, EveryExchangeGivesEachRankItsParts) { RunRanks(GetParam(), CheckExchanges); }
TEST_P(RanksTest, PartsOfASplitAreIndependent) { RunRanks(GetParam(), CheckSplit); }
TEST_P(RanksTest, TotalsCountBytesOfTheOtherRanks) { RunRanks(GetParam(), CheckTotals); }

INSTANTIATE_TEST_SUITE_P(Ranks, RanksTest, testing::Values(1, 2, 4, 8));

TEST(OddRanksTest, NumbersThatAreNoPowersOfTwoExchange) {
  for (const int ranks : {3, 5, 7}) {
    RunRanks(ranks, CheckExchanges);
    RunRanks(ranks, CheckSplit);
    RunRanks(ranks, CheckTotals);
  }
}

TEST(CommTest, AnErrorOfOneRankEndsTheOthers) {
  std::atomic<int> ended{0};
  try {
    RunRanks(4, [&](Communicator& comm) {
      if (comm.rank() == 2) throw InvalidInput("here", "the reason");
      try {
        comm.Barrier();
      } catch (const IoError& error) {
        EXPECT_NE(std::string(error.what()).find("the reason"), std::string::npos);
        ++ended;
        throw;
      }
    });
    FAIL();
  } catch (const InvalidInput& error) {
    EXPECT_STREQ(error.what(), "[here] the reason");
  }
  EXPECT_EQ(ended, 3);
}

TEST(CommTest, TheWatchdogNamesTheExchangeThatHangs) {
  std::string line;
  RunRanks(2, [&](Communicator& comm) {
    if (comm.rank() == 1) {
      std::this_thread::sleep_for(std::chrono::milliseconds(400));
      comm.Barrier();
      return;
    }
    const CommWatchdog watchdog(comm, std::chrono::milliseconds(50),
                                [&](const std::string& message) { line = message; });
    comm.Barrier();
  });
  EXPECT_NE(line.find("rank 0 of 2"), std::string::npos) << line;
  EXPECT_NE(line.find("barrier"), std::string::npos) << line;
}

TEST(CommTest, TheWatchdogIsSilentWhileExchangesReturnOrWaitPatiently) {
  std::atomic<int> calls{0};
  RunRanks(2, [&](Communicator& comm) {
    const CommWatchdog watchdog(comm, std::chrono::milliseconds(100),
                                [&](const std::string&) { ++calls; });
    for (int i = 0; i < 20; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      comm.Barrier();
    }
    std::string record = "late";
    if (comm.rank() == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      comm.BroadcastString(&record);
    } else {
      comm.WaitForString(&record);
    }
  });
  EXPECT_EQ(calls, 0);
}

Launch LaunchOf(const std::map<std::string, std::string>& variables) {
  return FindLaunch([&](const char* name) -> const char* {
    const auto found = variables.find(name);
    return found == variables.end() ? nullptr : found->second.c_str();
  });
}

TEST(LaunchTest, VariablesOfLaunchersAreSeen) {
  EXPECT_FALSE(LaunchOf({}).launched);
  EXPECT_FALSE(LaunchOf({{"PMI_RANK", "0"}}).launched);
  EXPECT_EQ(LaunchOf({{"OMPI_COMM_WORLD_SIZE", "4"}}).size, 4);
  EXPECT_EQ(LaunchOf({{"PMI_RANK", "0"}, {"PMI_SIZE", "3"}}).size, 3);
  EXPECT_TRUE(LaunchOf({{"PMIX_RANK", "0"}}).launched);
  EXPECT_THROW(LaunchOf({{"OMPI_COMM_WORLD_SIZE", "many"}}), InvalidInput);
}

// mpirun -np P pmkvq_comm_test --gtest_filter=MpiTest.*
TEST(MpiTest, RanksOfALauncherExchangeAsThreadsDo) {
  if (!FindLaunch([](const char* name) { return std::getenv(name); }).launched) {
    GTEST_SKIP() << "not started by mpirun";
  }
  const std::unique_ptr<Communicator> comm = OpenCommunicator();
  CheckTotals(*comm);
  if (8 % comm->size() == 0) CheckSums(*comm);
  CheckExchanges(*comm);
  CheckSplit(*comm);
  const RankPlace place = PlaceOf(*comm);
  EXPECT_FALSE(place.host.empty());
  EXPECT_EQ(place.local_rank, comm->rank());  // All of them on this host.
  EXPECT_EQ(place.local_size, comm->size());
  EXPECT_STREQ(comm->transport(), comm->size() > 1 ? "mpi" : "one rank");
  EXPECT_TRUE(comm->AllTrue(!HasFailure()));
}

TEST(LaunchTest, ATrapOfBindingIsExplained) {
  EXPECT_EQ(BindingTrap(0, 1, 64, 2),
            "rank 0: 1 of 64 processors (mpirun --map-by socket:PE=n, or --bind-to none)");
  EXPECT_EQ(BindingTrap(1, 32, 64, 2), std::nullopt);
  EXPECT_EQ(BindingTrap(0, 1, 2, 4), std::nullopt);  // More ranks than processors.
}

}  // namespace
}  // namespace pmkvq
