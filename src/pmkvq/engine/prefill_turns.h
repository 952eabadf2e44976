// The Forward of one prompt's chunk, computed in turns between the tokens of other requests.
#pragma once

#include <chrono>
#include <memory>
#include <vector>

#include "pmkvq/base/turns.h"
#include "pmkvq/engine/task.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/model/model.h"

namespace pmkvq {

// Between turns the chunk's Forward is set aside (KvStore::SwapForwards), so that other sequences
// may decode. Its bits are those of one uninterrupted Forward.
class PrefillTurns {
 public:
  // Both must outlive this object.
  PrefillTurns(const Model* model, KvStore* store, int num_threads)
      : model_(model), store_(store), num_threads_(num_threads) {}
  ~PrefillTurns() { GiveUp(); }
  PrefillTurns(const PrefillTurns&) = delete;
  PrefillTurns& operator=(const PrefillTurns&) = delete;

  // The request whose chunk is under way; null: none.
  Task* task() const { return task_; }

  // Room for the chunk is reserved. Its tokens stay valid until it ends. Nothing is computed yet.
  void Start(Task& task, const ForwardChunk& chunk);
  // Computes for about `turn`. Returns whether the chunk has ended; failures() and workspace()
  // then have its results. Throws as Forward: the chunk has then ended, and its sequence has
  // failed.
  bool Resume(std::chrono::nanoseconds turn);
  // Ends the chunk early: its sequence has failed.
  void GiveUp();

  const ForwardChunk& chunk() const { return chunk_; }
  const std::vector<ForwardFailure>& failures() const { return failures_; }
  ForwardWorkspace& workspace() { return workspace_; }

 private:
  const Model* model_;
  KvStore* store_;
  int num_threads_;
  Task* task_ = nullptr;
  bool is_set_aside_ = false;
  ForwardChunk chunk_;
  ForwardWorkspace workspace_;
  std::vector<ForwardFailure> failures_;
  Turns turns_;
};

}  // namespace pmkvq
