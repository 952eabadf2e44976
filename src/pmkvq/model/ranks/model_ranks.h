// A model that P ranks compute together.
//
// Rank 0 runs the program as it would alone: it schedules, samples, prints. Under Model and KvStore
// it tells the other ranks what to do by records: load a shard, make a part of a cache, and for
// each Forward the tokens, together with what happened to the cache before. The other ranks run
// Serve. All ranks compute the Forward of their shard; rank 0 gets the logits.
//
//   Communicator& comm = ...;                                  // comm/launch.h
//   ModelRanks ranks(comm);
//   if (comm.rank() > 0) return ranks.Serve();
//   auto model = Model::Load(folder, {.ranks = &ranks});       // and so on, as with one rank
//   ranks.End(0);
//
// Threads: all functions are called by one thread at a time (MPI_THREAD_SERIALIZED).
// Errors: what the user got wrong is found by rank 0 before it tells the others. A rank that cannot
// load its part says so and all go on; an error in a Forward ends all ranks (Communicator::Abort).
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "pmkvq/comm/communicator.h"
#include "pmkvq/comm/watchdog.h"
#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/model/model.h"
#include "pmkvq/model/ranks/record.h"
#include "pmkvq/model/ranks/sharded_store.h"

namespace pmkvq {

class ModelRanks {
 public:
  // `comm` has two ranks or more and must outlive this object. Models and stores must not.
  explicit ModelRanks(Communicator& comm);
  ~ModelRanks();
  ModelRanks(const ModelRanks&) = delete;
  ModelRanks& operator=(const ModelRanks&) = delete;

  Communicator& comm() { return comm_; }
  int size() const { return comm_.size(); }
  bool is_leader() const { return comm_.rank() == 0; }

  // The others' side: does what rank 0 says until End. Returns its exit code.
  int Serve();

  // The functions below are rank 0's.

  // Model::Load on every rank. Throws as that, CheckRanks, and IoError with the rank for what
  // failed on another one.
  std::shared_ptr<const Model> Load(const std::string& folder, const ModelOptions& options);
  // A packed cache for `model`, whose parts lie on the ranks. Throws as MakePackedKvCache, and
  // Unsupported for prompts that are kept, whose age the ranks would have to agree on.
  std::unique_ptr<KvStore> MakeStore(const Model& model, const CacheConfig& config);
  // Model::Forward; `store` is one of MakeStore's (check). Cannot be cancelled.
  std::vector<ForwardFailure> Forward(const Model& model, std::span<const ForwardChunk> chunks,
                                      KvStore& store, ForwardWorkspace& workspace, int num_threads);
  // Of a model that is destroyed.
  void Forget(const Model* model) noexcept;
  // Calls comm_bench(comm, arguments) on all ranks at once; set by SetTask before Serve.
  using Task = void (*)(Communicator& comm, const std::string& arguments);
  void SetTask(Task task) { task_ = task; }
  void RunTask(const std::string& arguments);
  // Ends the ranks that others wait for longer (comm/watchdog.h), from now on; 0: none.
  void WatchFor(std::chrono::milliseconds timeout);
  // Ends Serve on the other ranks. Called again, it does nothing.
  void End(int exit_code);

 private:
  struct Served;  // What Serve has loaded and made.

  RecordWriter& Begin(uint8_t op);
  void Send();
  // Throws on rank 0 when a rank has an error. Collective.
  void Agree(const std::exception_ptr& own);
  std::vector<ForwardFailure> RunStep(const Model& model, std::span<const ForwardChunk> chunks,
                                      KvStore& local, std::map<SequenceId, KvFailure>& failed,
                                      ForwardWorkspace& workspace, int num_threads);
  bool DoRecord(RecordReader& record, int* exit_code);
  void DoLoad(RecordReader& record);
  void DoMakeStore(RecordReader& record);
  void DoForward(RecordReader& record);

  Communicator& comm_;
  std::unique_ptr<CommWatchdog> watchdog_;
  Task task_ = nullptr;
  RecordWriter record_;  // Of rank 0: what it has not sent yet.
  bool has_ended_ = false;
  std::map<const Model*, int64_t> model_ids_;
  std::map<const KvStore*, int64_t> store_ids_;
  int64_t next_id_ = 0;
  int64_t tokens_since_check_ = 0;
  std::unique_ptr<Served> served_;
};

// A packed cache for `model`: on its ranks where it has several, for slices where it has them.
// Throws as MakePackedKvCache and ModelRanks::MakeStore.
std::unique_ptr<KvStore> MakePackedStore(const Model& model, const CacheConfig& config);

// MakePackedStore for what makes caches without knowing models (KvRequirements::make_packed): null
// for a whole model. `model` must outlive the function.
std::function<std::unique_ptr<KvStore>(const CacheConfig&)> PackedStoresOf(const Model& model);

// For code that reads whole weights: throws Unsupported naming `where` for a model in shards or
// slices.
void RefuseShards(const Model& model, const std::string& where);

}  // namespace pmkvq
