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

void Engine::Impl::StartSequence(Task& task) {
  pool->SetTerms(task, *store);
  if (!task.request.kv_history) return;
  store->FollowHistory(*task.seq, HalvingsFrom(*task.request.kv_history, task.replay_at));
}

void Engine::Impl::ResumeAsInHistory(Task& task) {
  if (!task.request.kv_history || task.finish || IsPrefilling(task)) return;
  const KvHistory& history = *task.request.kv_history;
  const auto resume =
      std::find_if(history.begin() + static_cast<std::ptrdiff_t>(task.replay_at), history.end(),
                   [](const KvHistoryEvent& event) { return event.is_resume(); });
  const int64_t num_tokens = store->NumTokens(*task.seq);
  if (resume == history.end() || resume->num_tokens != num_tokens) return;
  TakeHalvings();
  by_seq[static_cast<size_t>(*task.seq)] = nullptr;
  store->Close(*task.seq);
  task.seq = store->Open();
  by_seq[static_cast<size_t>(*task.seq)] = &task;
  task.num_prefilled = std::ssize(task.tokens);
  AddPreemption(num_tokens, false, task.history);
  task.replay_at = static_cast<size_t>(resume - history.begin()) + 1;
  StartSequence(task);
}

void Engine::Impl::TakePrefix(Task& task) {
  if (task.request.kv_history) return;  // Its pages may have to be halved while it is computed.
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
  AddPreemption(num_tokens, IsPrefilling(task), task.history);
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
  if (owner->request.kv_history) {
    owner->error = InvalidInput("kv_replay",
                                "the pool has no room for the widths of this history; expected "
                                "fewer requests beside it")
                       .what();
    owner->finish = FinishReason::kError;
    over.push_back(std::move(owner));
    return;
  }
  waiting.PutBack(std::move(owner));
}

}  // namespace pmkvq
