#include "pmkvq/engine/prefill_turns.h"

#include "pmkvq/base/check.h"

namespace pmkvq {

void PrefillTurns::Start(Task& task, const ForwardChunk& chunk) {
  PMKVQ_CHECK(task_ == nullptr);
  task_ = &task;
  chunk_ = chunk;
  turns_.Start([this] {
    failures_ = model_->Forward({&chunk_, 1}, *store_, workspace_, num_threads_);
  });
}

bool PrefillTurns::Resume(std::chrono::nanoseconds turn) {
  if (is_set_aside_) store_->SwapForwards();
  is_set_aside_ = false;
  try {
    is_set_aside_ = !turns_.Resume(turn);
  } catch (...) {
    task_ = nullptr;
    throw;
  }
  if (is_set_aside_) {
    store_->SwapForwards();
  } else {
    task_ = nullptr;
  }
  return !is_set_aside_;
}

void PrefillTurns::GiveUp() {
  if (task_ == nullptr) return;
  if (is_set_aside_) store_->SwapForwards();
  is_set_aside_ = false;
  turns_.GiveUp();
  task_ = nullptr;
}

}  // namespace pmkvq
