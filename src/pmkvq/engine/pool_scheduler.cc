#include "pmkvq/engine/pool_scheduler.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "pmkvq/base/byte_size.h"
#include "pmkvq/base/error.h"

namespace pmkvq {

void PoolScheduler::Check(const Request& request) const {
  if (request.session >= 0) {
    throw InvalidInput("session",
                       "found one with a pool that all requests share, which keeps no "
                       "sequence for the next request; expected none");
  }
  const int bits = request.kv_min_bits;
  if (bits != 0 && (bits < config_.floor_bits || bits > config_.close_bits)) {
    throw InvalidInput("kv_min_bits", fmt::format("found {}, expected {} (--kv-floor) to {} bits",
                                                  bits, config_.floor_bits, config_.close_bits));
  }
  if (request.kv_history) {
    if (!request.replay_ids.empty()) {
      throw InvalidInput("kv_replay", "found it beside replay_ids, expected one of them");
    }
    for (const KvBlockGeometry& block : config_.geometry.blocks) {
      if (block.sliding_window == 0) continue;
      throw InvalidInput("kv_replay",
                         "found it with a model that has sliding windows, whose "
                         "histories cannot be followed; expected none");
    }
    CheckHistory(*request.kv_history, config_.geometry.num_layers(),
                 std::max(bits, config_.floor_bits));
  }
  if (request.priority != 0 && !priorities_) {
    throw InvalidInput(
        "priority", fmt::format("found {}, expected none without --priorities", request.priority));
  }
  // The prompt and the first token.
  const auto num_tokens = static_cast<int64_t>(request.prompt_ids.size()) + 1;
  const int64_t smallest = admission_.SmallestPool(num_tokens, bits);
  if (smallest <= config_.pool.bytes) return;
  throw InvalidInput(
      "prompt",
      fmt::format("{} tokens do not fit the KV pool of {} bytes ({}) even at {} "
                  "bits, expected --kv-pool of at least {} bytes ({})",
                  request.prompt_ids.size(), config_.pool.bytes, FormatByteSize(config_.pool.bytes),
                  std::max(bits, config_.floor_bits), smallest, FormatByteSize(smallest)));
}

PoolLoad PoolScheduler::LoadOf(const Task& task) {
  PoolLoad load;
  load.num_held = std::ssize(task.tokens);
  load.num_drawn = task.num_drawn();
  load.most_held = task.prompt_len() + task.max_drawn;
  load.min_bits = task.request.kv_min_bits;
  return load;
}

std::vector<PoolLoad> PoolScheduler::LoadsOf(const Tasks& running) {
  std::vector<PoolLoad> loads;
  for (const auto& task : running) loads.push_back(LoadOf(*task));
  return loads;
}

bool PoolScheduler::Admits(const Task& candidate, const Tasks& running) {
  if (running.empty()) is_full_ = false;
  if (is_full_) return false;
  return admission_.Admits(LoadsOf(running), LoadOf(candidate),
                           candidate.num_preemptions >= kMostPreemptions);
}

void PoolScheduler::SetTerms(const Task& task, KvStore& store) const {
  KvPoolTerms terms;
  if (task.request.kv_min_bits != 0) terms.min_bits = task.request.kv_min_bits;
  terms.weight = std::exp2(-static_cast<double>(task.request.priority) / 16);
  store.SetPoolTerms(*task.seq, terms);
}

Task* PoolScheduler::Victim(const Tasks& running, const KvStore& store) const {
  // Those that follow a history cannot come back: only where there are no others.
  std::vector<PoolHolder> holders;
  std::vector<PoolHolder> followers;
  Task* last = nullptr;
  for (const auto& task : running) {
    if (task->finish || store.SequenceStats(*task->seq).bytes == 0) continue;
    const PoolHolder holder = {task->id, task->request.priority, task->num_drawn(),
                               task->num_preemptions};
    (task->request.kv_history ? followers : holders).push_back(holder);
    if (!task->request.kv_history) last = task.get();
  }
  if (holders.size() == 1 && !followers.empty()) return last;
  const std::optional<int64_t> victim = ChooseVictim(holders.empty() ? followers : holders);
  if (!victim) return nullptr;
  return std::find_if(running.begin(), running.end(),
                      [&](const auto& task) { return task->id == *victim; })
      ->get();
}

void PoolScheduler::OnEnded(const Task& task, FinishReason reason) {
  is_full_ = false;
  if (reason == FinishReason::kError || task.num_drawn() == 0) return;
  admission_.AddLength(task.num_drawn(), reason != FinishReason::kStop);
}

double PoolScheduler::ExpectedBytes(const Tasks& running) const {
  return admission_.ExpectedBytes(LoadsOf(running));
}

}  // namespace pmkvq
