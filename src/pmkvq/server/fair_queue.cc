#include "pmkvq/server/fair_queue.h"

#include <algorithm>
#include <iterator>
#include <limits>

#include "pmkvq/base/check.h"

namespace pmkvq::server {
namespace {

// Tokens that each client may take in a round. Less than a request takes, so that clients take
// turns request by request; rounds in which nobody has saved enough cost nothing.
constexpr int64_t kQuantum = 64;

int64_t RoundsUntil(int64_t cost, int64_t deficit) {
  return cost <= deficit ? 0 : (cost - deficit + kQuantum - 1) / kQuantum;
}

}  // namespace

void FairQueue::Push(Id id, const std::string& client, int64_t rank, int64_t cost) {
  PMKVQ_CHECK(cost >= 1 && !places_.contains(id));
  auto found = by_name_.find(client);
  if (found == by_name_.end()) {
    clients_.push_back({client, 0, {}});
    found = by_name_.emplace(client, std::prev(clients_.end())).first;
  }
  found->second->costs[{rank, id}] = cost;
  places_[id] = {found->second, rank};
}

std::optional<FairQueue::Id> FairQueue::Pop() {
  if (clients_.empty()) return std::nullopt;
  int64_t rounds = std::numeric_limits<int64_t>::max();
  Place next = clients_.end();
  for (auto client = clients_.begin(); client != clients_.end(); ++client) {
    const int64_t its_rounds = RoundsUntil(client->costs.begin()->second, client->deficit);
    if (its_rounds >= rounds) continue;
    rounds = its_rounds;
    next = client;
  }
  for (Client& client : clients_) client.deficit += rounds * kQuantum;
  const auto [key, cost] = *next->costs.begin();
  next->deficit -= cost;
  clients_.splice(clients_.end(), clients_, next);
  Erase(next, key);
  return key.second;
}

bool FairQueue::Remove(Id id) {
  const auto found = places_.find(id);
  if (found == places_.end()) return false;
  Erase(found->second.first, {found->second.second, id});
  return true;
}

// A client that nothing waits of keeps no deficit: it saves nothing up while it is away.
void FairQueue::Erase(Place client, const Key& key) {
  client->costs.erase(key);
  places_.erase(key.second);
  if (!client->costs.empty()) return;
  by_name_.erase(client->name);
  clients_.erase(client);
}

}  // namespace pmkvq::server
