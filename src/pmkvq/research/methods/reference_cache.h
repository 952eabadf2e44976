// PM-KVQ as the Python reference counts it (research/calib/reference_accounting.h), for comparison
// with its numbers: the store behind --reference-accounting.
//
// Differences to the packed cache: budgets are for payload and are checked after every append, one
// halving of all closed pages of a block per Forward; pages are stored at 16 bits and quantised
// when they are full. A long chunk may so pass the budget for a while. A sequence ends where not
// even the floor would hold its tokens. Bytes in the statistics are real ones.
#pragma once

#include <array>
#include <optional>
#include <vector>

#include "pmkvq/kernels/attention/attention.h"
#include "pmkvq/kv/forward_pass.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/kv/packed/page_store.h"

namespace pmkvq {

// Throws InvalidInput: what ValidateCacheConfig refuses, with budgets of payload, and another
// policy than layer-budget or another window than 128 tokens, which the reference does not have.
void ValidateReferenceConfig(const CacheConfig& config);

class ReferenceKvCache final : public KvStore {
 public:
  // Throws as ValidateReferenceConfig, and IoError (arena memory refused). The arena is sized for
  // the tokens that fit at the floor, stored at 16 bits.
  explicit ReferenceKvCache(const CacheConfig& config);

  const KeyScales* key_scales() const override { return config_.key_scales.get(); }
  std::optional<SequenceId> Open() override;
  void Close(SequenceId seq) override;
  [[nodiscard]] ReserveResult Reserve(SequenceId seq, int64_t num_tokens) override;
  void BeginForward(const Batch& batch) override;
  const KvFailure* FailureOf(SequenceId seq) const override;
  void AppendAndAttend(int64_t layer, const float* q, const float* k, const float* v,
                       float* out) override;
  void EndForward() override;
  void AbandonForward() override { forward_.Abandon(); }
  void SwapForwards() override { std::swap(forward_, set_aside_); }
  void Truncate(SequenceId seq, int64_t num_tokens) override;

  int64_t NumTokens(SequenceId seq) const override { return At(seq).num_tokens; }
  KvSequenceStats SequenceStats(SequenceId seq) const override;
  KvLayerStats LayerStats(SequenceId seq, int64_t layer) const override;
  KvStoreStats StoreStats() const override;
  std::vector<HalvingEvent> TakeHalvingEvents() override;

  // The stored values of one block as they read now, k_out and v_out [NumTokens, Hkv, D].
  // For tests and inspection: slow, allocates.
  void ReadTokens(SequenceId seq, int64_t layer, float* k_out, float* v_out) const;

 private:
  struct Sequence : SequencePages {
    bool is_open = false;
    int64_t num_tokens = 0;
    int64_t reserved_tokens = 0;
    // Of the last AppendAndAttend.
    std::vector<KvPageView> views;
    std::vector<PageTokens> page_tokens;
  };
  struct Chunk {
    Sequence* seq = nullptr;
    int64_t num_tokens = 0;
    int64_t first_row = 0;
  };

  Sequence& At(SequenceId id);
  const Sequence& At(SequenceId id) const;
  bool IsInForward(const Sequence& seq) const {
    return forward_.Holds(seq) || set_aside_.Holds(seq);
  }
  void StoreRows(const Chunk& chunk, size_t layer, Side side, const float* rows);
  void Halve(Sequence& seq, size_t layer);
  void SetPresentWidths(Sequence& seq, size_t layer) const;

  CacheConfig config_;
  PageStore store_;
  std::vector<Sequence> sequences_;
  ForwardPass<Chunk> forward_;
  ForwardPass<Chunk> set_aside_;
  std::vector<AttentionSequence> attention_sequences_;
  std::vector<const KvPageView*> first_views_;  // Of each attention sequence.
  AttentionPlan attention_plan_;
  AttentionScratch attention_scratch_;
  std::array<AlignedVector<float>, 3> rotated_;  // q, k, v of a Forward's rows.
  std::vector<HalvingEvent> halving_events_;
};

}  // namespace pmkvq
