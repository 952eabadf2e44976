#include "pmkvq/server/fair_queue.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <vector>

namespace pmkvq::server {
namespace {

std::vector<FairQueue::Id> PopAll(FairQueue& queue) {
  std::vector<FairQueue::Id> order;
  while (const auto id = queue.Pop()) order.push_back(*id);
  return order;
}

TEST(FairQueue, OneClientIsInOrder) {
  FairQueue queue;
  EXPECT_EQ(queue.Pop(), std::nullopt);
  for (const FairQueue::Id id : {3, 1, 2}) queue.Push(id, "a", 0, 100 * static_cast<int64_t>(id));
  queue.Push(4, "a", -1, 1);
  queue.Push(5, "a", 7, 1);
  EXPECT_EQ(PopAll(queue), (std::vector<FairQueue::Id>{4, 1, 2, 3, 5}));
  EXPECT_TRUE(queue.empty());
}

// Those of the client with few are every second one, from its arrival on.
TEST(FairQueue, FewRequestsDoNotWaitForMany) {
  FairQueue queue;
  for (FairQueue::Id id = 0; id < 200; ++id) queue.Push(id, "many", 0, 300);
  for (int i = 0; i < 20; ++i) (void)queue.Pop();
  for (FairQueue::Id id = 1000; id < 1005; ++id) queue.Push(id, "few", 0, 300);
  const std::vector<FairQueue::Id> order = PopAll(queue);
  int served = 0;
  for (size_t i = 0; i < 11; ++i) served += order[i] >= 1000 ? 1 : 0;
  EXPECT_EQ(served, 5);
}

// Shares are of tokens, not of requests.
TEST(FairQueue, ClientsGetEqualTokens) {
  FairQueue queue;
  std::mt19937 random(1);
  std::map<FairQueue::Id, std::pair<int, int64_t>> all;  // Client and cost.
  constexpr int kClients = 4;
  for (FairQueue::Id id = 0; id < 4000; ++id) {
    const int client = static_cast<int>(id % kClients);
    const int64_t cost = 1 + static_cast<int64_t>(random() % (client == 0 ? 50 : 2000));
    all[id] = {client, cost};
    queue.Push(id, std::to_string(client), 0, cost);
  }
  int64_t taken[kClients] = {};
  int64_t of_first = 1000;
  while (of_first > 0) {  // While all clients have requests.
    const auto [client, cost] = all.at(queue.Pop().value());
    taken[client] += cost;
    if (client == 0) --of_first;
    for (const int64_t other : taken) {
      EXPECT_LE(std::abs(taken[client] - other), 2 * 2000 + 64) << client;
    }
  }
}

TEST(FairQueue, WhatIsRemovedIsNotServed) {
  FairQueue queue;
  for (FairQueue::Id id = 0; id < 6; ++id) queue.Push(id, id % 2 == 0 ? "a" : "b", 0, 10);
  EXPECT_TRUE(queue.Remove(2));
  EXPECT_FALSE(queue.Remove(2));
  EXPECT_FALSE(queue.Remove(7));
  for (const FairQueue::Id id : {1, 3, 5}) EXPECT_TRUE(queue.Remove(id));
  EXPECT_EQ(PopAll(queue), (std::vector<FairQueue::Id>{0, 4}));
  queue.Push(1, "b", 0, 10);
  EXPECT_EQ(PopAll(queue), (std::vector<FairQueue::Id>{1}));
}

// A request that takes much is served once the others have taken as much.
TEST(FairQueue, NobodyStarves) {
  FairQueue queue;
  queue.Push(0, "long", 0, 1'000'000);
  queue.Push(1, "short", 0, 100);
  int64_t before = 0;
  for (FairQueue::Id id = 2;; ++id) {
    queue.Push(id, "short", 0, 100);
    if (queue.Pop().value() == 0) break;
    before += 100;
    ASSERT_LE(before, 1'000'000 + 200);
  }
  EXPECT_GE(before, 999'000);
}

}  // namespace
}  // namespace pmkvq::server
