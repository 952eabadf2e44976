// A cache that measures how long the model spends in it.
#pragma once

#include <utility>
#include <vector>

#include "pmkvq/kv/kv_store.h"
#include "pmkvq/research/bench/measurements.h"

namespace pmkvq {

// Passes everything on to `store`, which must outlive it, and adds up the time of AppendAndAttend.
class TimedStore final : public KvStore {
 public:
  explicit TimedStore(KvStore& store) : store_(store) {}

  // Seconds since the last call.
  double TakeAttentionSeconds() { return std::exchange(attention_seconds_, 0.0); }

  const KeyScales* key_scales() const override { return store_.key_scales(); }
  std::optional<SequenceId> Open() override { return store_.Open(); }
  void Close(SequenceId seq) override { store_.Close(seq); }
  [[nodiscard]] ReserveResult Reserve(SequenceId seq, int64_t num_tokens) override {
    return store_.Reserve(seq, num_tokens);
  }
  const KvFailure* FailureOf(SequenceId seq) const override { return store_.FailureOf(seq); }
  void BeginForward(const Batch& batch) override { store_.BeginForward(batch); }
  KvExtraNeeds ExtraNeeds() const override { return store_.ExtraNeeds(); }
  void OfferExtras(int64_t layer, const KvExtras& extras) override {
    store_.OfferExtras(layer, extras);
  }
  void OfferLogits(SequenceId seq, std::span<const float> logits) override {
    store_.OfferLogits(seq, logits);
  }
  void AppendAndAttend(int64_t layer, const float* q, const float* k, const float* v,
                       float* out) override {
    attention_seconds_ += TimeSeconds([&] { store_.AppendAndAttend(layer, q, k, v, out); });
  }
  void EndForward() override { store_.EndForward(); }
  void AbandonForward() override { store_.AbandonForward(); }
  void SwapForwards() override { store_.SwapForwards(); }
  int64_t LongestTruncation(SequenceId seq, int64_t num_tokens) const override {
    return store_.LongestTruncation(seq, num_tokens);
  }
  void Truncate(SequenceId seq, int64_t num_tokens) override { store_.Truncate(seq, num_tokens); }
  int64_t NumTokens(SequenceId seq) const override { return store_.NumTokens(seq); }
  KvSequenceStats SequenceStats(SequenceId seq) const override { return store_.SequenceStats(seq); }
  KvLayerStats LayerStats(SequenceId seq, int64_t layer) const override {
    return store_.LayerStats(seq, layer);
  }
  KvStoreStats StoreStats() const override { return store_.StoreStats(); }
  std::vector<HalvingEvent> TakeHalvingEvents() override { return store_.TakeHalvingEvents(); }

 private:
  KvStore& store_;
  double attention_seconds_ = 0;
};

}  // namespace pmkvq
