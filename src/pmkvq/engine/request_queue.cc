#include "pmkvq/engine/request_queue.h"

#include <utility>

namespace pmkvq {

void RequestQueue::Push(std::unique_ptr<Task> task) {
  const RequestId id = task->id;
  ready_.emplace(id, std::move(task));
}

std::unique_ptr<Task> RequestQueue::Pop() {
  while (!ready_.empty()) {
    auto node = ready_.extract(ready_.begin());
    const int64_t session = node.mapped()->request.session;
    if (session < 0 || busy_.insert(session).second) return std::move(node.mapped());
    session_of_.emplace(node.key(), session);
    behind_[session].insert(std::move(node));
  }
  return nullptr;
}

void RequestQueue::PutBack(std::unique_ptr<Task> task) {
  FreeSession(task->request.session);
  Push(std::move(task));
}

void RequestQueue::FreeSession(int64_t session) {
  busy_.erase(session);
  const auto behind = behind_.find(session);
  if (behind == behind_.end()) return;
  for (const auto& [id, task] : behind->second) session_of_.erase(id);
  ready_.merge(behind->second);
  behind_.erase(behind);
}

std::unique_ptr<Task> RequestQueue::Take(RequestId id) {
  if (auto node = ready_.extract(id)) return std::move(node.mapped());
  const auto found = session_of_.find(id);
  if (found == session_of_.end()) return nullptr;
  const auto behind = behind_.find(found->second);
  auto node = behind->second.extract(id);
  if (behind->second.empty()) behind_.erase(behind);
  session_of_.erase(found);
  return std::move(node.mapped());
}

std::unique_ptr<Task> RequestQueue::TakeAny() {
  if (!ready_.empty()) return Take(ready_.begin()->first);
  if (!session_of_.empty()) return Take(session_of_.begin()->first);
  return nullptr;
}

}  // namespace pmkvq
