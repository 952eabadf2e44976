// Requests that share a pool: who is let in, who gives up its place. The decisions are those of
// Admission; this class knows the requests and the store.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "pmkvq/engine/admission.h"
#include "pmkvq/engine/task.h"
#include "pmkvq/kv/kv_store.h"

namespace pmkvq {

class PoolScheduler {
 public:
  using Tasks = std::vector<std::unique_ptr<Task>>;

  // Throws as Admission.
  PoolScheduler(const CacheConfig& config, const PoolSchedule& schedule, int64_t max_len)
      : config_(config),
        admission_(config, schedule.admission, schedule.target_bits, max_len),
        priorities_(schedule.priorities) {}

  // What a request that shares a pool must keep to; see Engine::Submit.
  void Check(const Request& request) const;
  // Whether the waiting request may take a place beside those that run. Where a request has given
  // up its place, none is let in until another one has ended.
  bool Admits(const Task& candidate, const Tasks& running);
  // Of its sequence, which is empty.
  void SetTerms(const Task& task, KvStore& store) const;
  // The running request that gives up its place; null where at most one holds pages.
  Task* Victim(const Tasks& running, const KvStore& store) const;
  void OnPreempted() { is_full_ = true; }
  void OnEnded(const Task& task, FinishReason reason);
  double ExpectedBytes(const Tasks& running) const;

 private:
  static PoolLoad LoadOf(const Task& task);
  static std::vector<PoolLoad> LoadsOf(const Tasks& running);

  CacheConfig config_;
  Admission admission_;
  bool priorities_;
  bool is_full_ = false;
};

}  // namespace pmkvq
