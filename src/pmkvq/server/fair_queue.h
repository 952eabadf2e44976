// Who is next where many clients wait: deficit round robin over clients, in tokens. A client with
// two hundred requests does not make one with five wait for them all.
//
// Threads: of one thread.
#pragma once

#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <string>
#include <utility>

namespace pmkvq::server {

class FairQueue {
 public:
  using Id = uint64_t;

  // `cost`: the tokens that it is expected to take, at least 1. Of one client the lowest `rank`
  // goes first, then the lowest id. An id that waits already is a caller bug (check).
  void Push(Id id, const std::string& client, int64_t rank, int64_t cost);
  // The next one, which leaves the queue; nothing where none waits. O(clients).
  std::optional<Id> Pop();
  // Takes it out. False: it does not wait.
  bool Remove(Id id);
  bool empty() const { return places_.empty(); }

 private:
  using Key = std::pair<int64_t, Id>;  // Rank and id.
  struct Client {
    std::string name;
    int64_t deficit = 0;           // Tokens that it may still take in its turn.
    std::map<Key, int64_t> costs;  // Not empty.
  };
  using Place = std::list<Client>::iterator;

  void Erase(Place client, const Key& key);

  std::list<Client> clients_;  // In the order of their turns.
  std::map<std::string, Place> by_name_;
  std::map<Id, std::pair<Place, int64_t>> places_;  // Client and rank of those that wait.
};

}  // namespace pmkvq::server
