// Requests that share a pool: room for a whole step at once, and requests that give up their
// places.
#include <algorithm>
#include <utility>

#include "pmkvq/base/check.h"
#include "pmkvq/engine/engine_impl.h"

namespace pmkvq {

bool Engine::Impl::DrawsNext(const Task& task) const {
  return !task.finish && task.seq && task.num_waiting(store->NumTokens(*task.seq)) <= 0 &&
         !task.finish_after_replay;
}

void Engine::Impl::ReserveDecoding(const UncancelledScope& step) {
  const AddTime timing(&stats.reserve_seconds);
  const Clock::time_point start = Clock::now();
  ReserveResult result = ReserveResult::kBudgetExhausted;
  while (result == ReserveResult::kBudgetExhausted) {
    pool_chunks.clear();
    Task* last = nullptr;
    for (Task* const task : decoding) {
      if (!DrawsNext(*task)) continue;
      pool_chunks.push_back({*task->seq, 1});
      last = task;
    }
    if (last == nullptr) return;
    result = store->ReserveAll(pool_chunks);
    if (result != ReserveResult::kBudgetExhausted) break;
    if (prefill_turns.task() != nullptr) {
      // Pages of the prompt under way cannot be halved before its chunk has ended.
      TakePrefillTurn(std::chrono::hours(24 * 365), step);
    } else if (!MakeRoomFor(*last) && pool_chunks.size() == 1) {
      return;
    }
  }
  const bool has_halved = result == ReserveResult::kReservedAfterHalving;
  const double pause_us = has_halved ? SecondsSince(start) * 1e6 : 0;
  for (Task* const task : decoding) {
    if (!DrawsNext(*task)) continue;
    task->reserve_us = pause_us;
    if (const KvFailure* const failure = store->FailureOf(*task->seq)) Fail(*task, *failure);
  }
}

bool Engine::Impl::MakeRoomFor(Task& task) {
  Task* const victim = pool == nullptr ? nullptr : pool->Victim(running, *store);
  if (victim == nullptr) {
    task.finish = FinishReason::kKvBudget;
    return false;
  }
  Preempt(*victim);
  return victim != &task;
}

void Engine::Impl::TakePrefix(Task& task) {
  // Log-probabilities of a prompt are read while it is computed.
  if (task.prompt_logprobs != nullptr && !task.prompt_is_told) return;
  const std::span<const int32_t> tokens(task.tokens);
  const int64_t taken =
      store->TakePrefix(*task.seq, task.request.prefix_salt,
                        tokens.first(static_cast<size_t>(task.num_prefilled - 1)));
  if (task.num_drawn() == 0) task.num_cached = taken;
}

void Engine::Impl::KeepPrefix(const Task& task) {
  const std::span<const int32_t> tokens(task.tokens);
  store->KeepPrefix(*task.seq, task.request.prefix_salt,
                    tokens.first(static_cast<size_t>(task.num_prefilled)));
}

void Engine::Impl::Preempt(Task& task) {
  TakeHalvings();  // While it is known whose they are.
  const int64_t num_tokens = store->NumTokens(*task.seq);
  if (prefill_turns.task() == &task) prefill_turns.GiveUp();
  if (task.group != nullptr && task.group->leader == &task) task.group->leader = nullptr;
  if (task.num_drawn() > 0) task.group = nullptr;
  by_seq[static_cast<size_t>(*task.seq)] = nullptr;
  store->Close(*task.seq);
  task.seq.reset();
  task.clock = nullptr;
  task.num_prefilled = std::ssize(task.tokens);
  ++task.num_preemptions;
  ++stats.num_preemptions;
  stats.recomputed_tokens += num_tokens;
  pool->OnPreempted();
  events.Push(PreemptionEvent{task.id, num_tokens});
  const auto place = std::find_if(running.begin(), running.end(),
                                  [&](const auto& other) { return other.get() == &task; });
  PMKVQ_CHECK(place != running.end());
  std::unique_ptr<Task> owner = std::move(*place);
  running.erase(place);
  waiting.PutBack(std::move(owner));
}

}  // namespace pmkvq
