// Rank 0's view of a cache that lies in parts on P ranks.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "pmkvq/kv/cache_config.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/model/ranks/record.h"
#include "pmkvq/model/ranks/shard.h"

namespace pmkvq {

// What a store is told besides Forward, as ops in a record. Their arguments and results follow in
// the order of KvStore's functions.
enum class StoreOp : uint8_t {
  kOpen,
  kClose,
  kFork,
  kReserve,
  kReserveOneByOne,
  kReserveAll,
  kSetPoolTerms,
  kFollowHistory,
  kTruncate,
};

// Does what it is asked with the part of rank 0, writes that down for the other ranks, whose parts
// do the same before their next Forward, and speaks of the whole model: bytes are those of all
// parts, without the copies of KV heads that lie on several ranks.
//
// Every decision is a pure function of lengths and budgets, so all parts take the same. A sequence
// may fail on one rank only, where a value of its heads is too large: NoteFailure then makes it a
// failed one here.
// Sequences are not taken out as images, prompts are not kept, and Forwards are not set aside.
class ShardedKvStore final : public KvStore {
 public:
  // `local` is the part of rank 0 of a cache with the configuration `whole`. `begin_op` starts an
  // op of this store in the record for the other ranks. `end` is called by the destructor.
  ShardedKvStore(const CacheConfig& whole, const ModelShard& shard, std::unique_ptr<KvStore> local,
                 std::function<RecordWriter&(StoreOp)> begin_op, std::function<void()> end);
  ~ShardedKvStore() override;

  // The part of this rank, for the Forward of its shard.
  KvStore& local() { return *local_; }
  // A sequence that another rank could not go on with.
  void NoteFailure(SequenceId seq, const KvFailure& failure) { failures_[seq] = failure; }

  const KeyScales* key_scales() const override { return local_->key_scales(); }
  std::optional<SequenceId> Open() override;
  void Close(SequenceId seq) override;
  std::optional<SequenceId> Fork(SequenceId seq) override;
  [[nodiscard]] ReserveResult Reserve(SequenceId seq, int64_t num_tokens) override;
  [[nodiscard]] int64_t ReserveOneByOne(SequenceId seq, int64_t num_tokens) override;
  [[nodiscard]] ReserveResult ReserveAll(std::span<const BatchChunk> chunks) override;
  void SetPoolTerms(SequenceId seq, const KvPoolTerms& terms) override;
  void FollowHistory(SequenceId seq, std::vector<HalvingEvent> events) override;
  const KvFailure* FailureOf(SequenceId seq) const override;
  int64_t LongestTruncation(SequenceId seq, int64_t num_tokens) const override {
    return local_->LongestTruncation(seq, num_tokens);
  }
  void Truncate(SequenceId seq, int64_t num_tokens) override;

  // Forward is ModelRanks::Forward's: these are caller bugs (check).
  void BeginForward(const Batch& batch) override;
  void AppendAndAttend(int64_t layer, const float* q, const float* k, const float* v,
                       float* out) override;
  void EndForward() override;
  void SwapForwards() override;
  void AbandonForward() override { local_->AbandonForward(); }

  int64_t NumTokens(SequenceId seq) const override { return local_->NumTokens(seq); }
  KvSequenceStats SequenceStats(SequenceId seq) const override;
  KvLayerStats LayerStats(SequenceId seq, int64_t layer) const override;
  KvStoreStats StoreStats() const override;
  std::vector<HalvingEvent> TakeHalvingEvents() override { return local_->TakeHalvingEvents(); }

 private:
  CacheConfig whole_;
  int64_t parts_;
  int64_t num_layers_;
  std::unique_ptr<KvStore> local_;
  std::function<RecordWriter&(StoreOp)> begin_op_;
  std::function<void()> end_;
  std::map<SequenceId, KvFailure> failures_;
};

// A cache's part on another rank than 0.
class StorePart {
 public:
  explicit StorePart(std::unique_ptr<KvStore> store) : store_(std::move(store)) {}

  KvStore& store() { return *store_; }
  // Does one op of a ShardedKvStore. Returns how its result differs from rank 0's, in a line;
  // empty: it does not, or the sequence has failed here (failures).
  std::string Do(RecordReader& record);
  // Sequences that have failed here since they were opened.
  const std::map<SequenceId, KvFailure>& failures() const { return failures_; }

 private:
  void TakeFailure(SequenceId seq);

  std::unique_ptr<KvStore> store_;
  std::map<SequenceId, KvFailure> failures_;
};

// Over the sequences of `batch`, their lengths and the widths of their pages in every block: equal
// on all ranks, or their parts have diverged.
uint64_t HashOfState(const KvStore& store, std::span<const SequenceId> sequences,
                     int64_t num_layers);
// The same as text, for the message about a difference.
std::string DescribeState(const KvStore& store, std::span<const SequenceId> sequences,
                          int64_t num_layers);

// A configuration in a record. Key scales go as the plan's tensors.
void PutCacheConfig(const CacheConfig& config, RecordWriter& record);
CacheConfig GetCacheConfig(const KvGeometry& geometry, RecordReader& record);

}  // namespace pmkvq
