// Requests that wait for a sequence, in the order in which they came.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>

#include "pmkvq/engine/task.h"

namespace pmkvq {

// A request of a session waits until the session's request before it has ended; requests behind it
// may pass. A call costs O(log n) of n waiting requests, but for FreeSession.
class RequestQueue {
 public:
  bool empty() const { return size() == 0; }
  size_t size() const { return ready_.size() + session_of_.size(); }

  void Push(std::unique_ptr<Task> task);
  // The oldest request whose session is free; the session is busy from now on. Null where there is
  // no such request.
  std::unique_ptr<Task> Pop();
  // Puts a request of Pop back at its old place. Nothing of it may have been computed.
  void PutBack(std::unique_ptr<Task> task);
  // The busy request of this session has ended, or does not belong to the session any more.
  void FreeSession(int64_t session);

  // Takes this request, or the oldest one, out; null where there is none.
  std::unique_ptr<Task> Take(RequestId id);
  std::unique_ptr<Task> TakeAny();

 private:
  using Tasks = std::map<RequestId, std::unique_ptr<Task>>;  // Ids rise with time.

  Tasks ready_;
  std::map<int64_t, Tasks>
      behind_;  // By busy session: requests that Pop came across. None is empty.
  std::map<RequestId, int64_t> session_of_;  // Of the requests in behind_.
  std::set<int64_t> busy_;
};

}  // namespace pmkvq
