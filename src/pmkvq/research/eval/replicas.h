// Engines side by side over one set of weights: what many cores need for a small model, whose steps
// are too short to be shared out to many threads.
//
// Each engine has a store, a thread pool, and a share of the places of the batch and of the
// threads. A free place takes the next request. An engine's text for a request depends on the
// request and its seed alone (engine.h), so the number of engines changes no text.
//
// Memory: the stores together take what one of the whole batch takes; each engine has a workspace
// besides (Engine::workspace_bytes), which grows with the chunk of a prompt.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "pmkvq/base/interrupt.h"
#include "pmkvq/engine/engine.h"

namespace pmkvq {

// How many engines are fastest, 1 <= replicas <= batch: one per thread, but with four sequences
// each, where a cache holds the weights; else one, since each engine would read all weights from
// memory at each of its steps.
int64_t ChooseReplicas(const ModelConfig& model, int num_threads, int64_t batch);
// The same with the cache's size.
int64_t ChooseReplicas(int64_t weight_bytes, int64_t cache_bytes, int num_threads, int64_t batch);

struct EngineShare {
  int num_threads = 1;
  int64_t max_sequences = 1;
};
// Equal shares, up to one; at least one thread each. Throws InvalidInput (--replicas) where there
// are more engines than sequences.
std::vector<EngineShare> ShareOut(int64_t replicas, int num_threads, int64_t batch);

// One engine and what it may use. The engine is made with these options.
struct Replica {
  Engine engine;
  EngineShare share;
};

// Requests that differ in their seeds only.
struct PromptSamples {
  Request request;
  std::vector<uint64_t> seeds;  // One, where the request has replay_ids.
};

// Runs all samples to their ends, or until `cancel` (may be null) is set; those that have begun
// then end with kCancelled, the others are dropped.
//
// A free place takes the next sample, and further free places of the engine take others of the same
// prompt: samples that begin together compute their prompt once (Engine::SubmitSamples).
//
// Each engine runs on a thread; the first one on the calling thread. `observer` is called with
// `mutex` held, ids being indices of samples, counted through all prompts. `between_steps` is
// called on the calling thread after each step of the first engine, and 20 times a second while it
// waits for the others. Throws what engines, observer and between_steps throw, the first of them,
// when all have stopped.
void RunReplicas(std::vector<Replica>& replicas, std::vector<PromptSamples> prompts,
                 EngineObserver& observer, std::mutex& mutex,
                 const std::function<void()>& between_steps, const CancelFlag* cancel);

}  // namespace pmkvq
