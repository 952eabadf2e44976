// Attention distributions of a cache, computed from its stored keys.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "pmkvq/kernels/rope/rope.h"
#include "pmkvq/kv/kv_store.h"

namespace pmkvq {

class SimulatedKvCache;

// Shapes of q and of the keys that scores are made of; of latent blocks one KV head of r + dr
// values, (c, k_r). Throws Unsupported where blocks differ.
UniformKvGeometry AttendedKeysOf(const KvGeometry& geometry);

// Reads the stored keys of one block as attention sees them: at their present widths, after RoPE.
// Of a simulated method these are the method's floats, before a rounding to the cache's float type.
// keys [tokens, Hkv, D]; of latents [tokens, r + dr], without key scales, as queries are before
// the store multiplies them. `rope` is the model's, for methods that keep keys before RoPE.
// Call between Forwards, with nothing reserved. Throws Unsupported for a store of another kind.
void ReadStoredKeys(const KvStore& store, const KvGeometry& geometry, const RopeTable& rope,
                    SequenceId seq, int64_t layer, std::vector<float>& keys);

// A KvStore that forwards all calls to another one. On request it also computes the attention
// weights of one new token. The results of the other store do not change.
class AttentionRecorder final : public KvStore {
 public:
  // `rope` must outlive the recorder.
  AttentionRecorder(std::unique_ptr<KvStore> store, const KvGeometry& geometry,
                    const RopeTable& rope);

  // Records the next Forward, which must be of one token of `seq` alone. Keys are read now, before
  // Reserve: where that Reserve halves pages, the weights are those of the wider ones.
  // Cost: the sequence's keys, decoded once (and its values, which packed caches decode along).
  void RecordNext(SequenceId seq);
  // Logarithms of the attention weights of the recorded token, per block [H, tokens + 1]: over
  // the stored tokens and itself. Of a token that a method evicted: that of the smallest normal
  // float, so that a KL stays finite (87 nats times the weight that went).
  const std::vector<std::vector<float>>& log_weights() const { return log_weights_; }

  const KeyScales* key_scales() const override { return store_->key_scales(); }
  std::optional<SequenceId> Open() override { return store_->Open(); }
  void Close(SequenceId seq) override { store_->Close(seq); }
  [[nodiscard]] ReserveResult Reserve(SequenceId seq, int64_t num_tokens) override {
    return store_->Reserve(seq, num_tokens);
  }
  const KvFailure* FailureOf(SequenceId seq) const override { return store_->FailureOf(seq); }
  void BeginForward(const Batch& batch) override { store_->BeginForward(batch); }
  KvExtraNeeds ExtraNeeds() const override { return store_->ExtraNeeds(); }
  void OfferExtras(int64_t layer, const KvExtras& extras) override {
    store_->OfferExtras(layer, extras);
  }
  void OfferLogits(SequenceId seq, std::span<const float> logits) override {
    store_->OfferLogits(seq, logits);
  }
  void AppendAndAttend(int64_t layer, const float* q, const float* k, const float* v,
                       float* out) override;
  void EndForward() override;
  void AbandonForward() override { store_->AbandonForward(); }
  void SwapForwards() override { store_->SwapForwards(); }
  int64_t LongestTruncation(SequenceId seq, int64_t num_tokens) const override {
    return store_->LongestTruncation(seq, num_tokens);
  }
  void Truncate(SequenceId seq, int64_t num_tokens) override { store_->Truncate(seq, num_tokens); }
  int64_t NumTokens(SequenceId seq) const override { return store_->NumTokens(seq); }
  KvSequenceStats SequenceStats(SequenceId seq) const override {
    return store_->SequenceStats(seq);
  }
  KvLayerStats LayerStats(SequenceId seq, int64_t layer) const override {
    return store_->LayerStats(seq, layer);
  }
  KvStoreStats StoreStats() const override { return store_->StoreStats(); }
  std::vector<HalvingEvent> TakeHalvingEvents() override { return store_->TakeHalvingEvents(); }

 private:
  std::unique_ptr<KvStore> store_;
  const KvGeometry blocks_;
  const UniformKvGeometry geometry_;  // AttendedKeysOf(blocks_)
  const RopeTable& rope_;
  bool recording_ = false;
  std::vector<std::vector<float>> keys_;        // Per block, as read by RecordNext.
  const SimulatedKvCache* evicting_ = nullptr;  // The store, where its methods may evict.
  SequenceId seq_ = 0;
  std::vector<std::vector<float>> log_weights_;  // Per block.
  std::vector<float> own_key_;                   // (c, k_r) of a recorded token.
};

}  // namespace pmkvq
