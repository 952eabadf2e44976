// A KvStore that keeps every key and value as floats and attends one row at a time in double.
// An oracle for the model's forward pass; it also remembers the calls it got.
#pragma once

#include <cmath>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "pmkvq/kv/kv_store.h"

namespace pmkvq::testing_support {

class DenseKvStore : public KvStore {
 public:
  // Blocks of one shape; their sliding windows may differ.
  explicit DenseKvStore(const KvGeometry& geometry,
                        std::shared_ptr<const KeyScales> key_scales = nullptr)
      : blocks_(geometry), geometry_(UniformOf(geometry)), key_scales_(std::move(key_scales)) {}

  const KeyScales* key_scales() const override { return key_scales_.get(); }

  std::optional<SequenceId> Open() override {
    const auto id = static_cast<SequenceId>(sequences_.size());
    sequences_[id].resize(static_cast<size_t>(geometry_.num_layers));
    return id;
  }
  void Close(SequenceId seq) override { sequences_.erase(seq); }
  ReserveResult Reserve(SequenceId, int64_t) override { return ReserveResult::kReserved; }
  void BeginForward(const Batch& batch) override {
    batch_ = batch;
    ++num_open_forwards_;
  }
  const KvFailure* FailureOf(SequenceId) const override { return nullptr; }
  void EndForward() override { --num_open_forwards_; }
  void AbandonForward() override { num_open_forwards_ = 0; }
  void SwapForwards() override { std::swap(batch_, set_aside_); }

  void AppendAndAttend(int64_t layer, const float* q, const float* k, const float* v,
                       float* out) override {
    const int64_t q_dim = geometry_.num_heads * geometry_.head_dim;
    for (const BatchChunk& chunk : batch_) {
      Layer& stored = sequences_.at(chunk.seq).at(static_cast<size_t>(layer));
      for (int64_t t = 0; t < chunk.num_tokens; ++t) {
        stored.k.insert(stored.k.end(), k, k + geometry_.kv_dim());
        stored.v.insert(stored.v.end(), v, v + geometry_.kv_dim());
        for (int64_t head = 0; head < geometry_.num_heads; ++head) {
          AttendHead(layer, stored, head, q + head * geometry_.head_dim,
                     out + head * geometry_.head_dim);
        }
        q += q_dim;
        out += q_dim;
        k += geometry_.kv_dim();
        v += geometry_.kv_dim();
      }
    }
  }

  void Truncate(SequenceId seq, int64_t num_tokens) override {
    for (Layer& layer : sequences_.at(seq)) {
      layer.k.resize(static_cast<size_t>(num_tokens * geometry_.kv_dim()));
      layer.v.resize(static_cast<size_t>(num_tokens * geometry_.kv_dim()));
    }
  }
  int64_t NumTokens(SequenceId seq) const override {
    return static_cast<int64_t>(sequences_.at(seq)[0].k.size()) / geometry_.kv_dim();
  }
  KvSequenceStats SequenceStats(SequenceId) const override { return {}; }
  KvLayerStats LayerStats(SequenceId, int64_t) const override { return {}; }
  KvStoreStats StoreStats() const override { return {}; }
  std::vector<HalvingEvent> TakeHalvingEvents() override { return {}; }

  // Keys as they were stored, [T, Hkv, D].
  const std::vector<float>& Keys(SequenceId seq, int64_t layer) const {
    return sequences_.at(seq).at(static_cast<size_t>(layer)).k;
  }
  const Batch& last_batch() const { return batch_; }
  int num_open_forwards() const { return num_open_forwards_; }

 private:
  struct Layer {
    std::vector<float> k, v;
  };

  void AttendHead(int64_t layer, const Layer& stored, int64_t head, const float* q,
                  float* out) const {
    const int64_t dim = geometry_.head_dim;
    const int64_t offset = head / (geometry_.num_heads / geometry_.num_kv_heads) * dim;
    const int64_t num_tokens = static_cast<int64_t>(stored.k.size()) / geometry_.kv_dim();
    std::vector<double> sum(static_cast<size_t>(dim));
    double total = 0.0;
    const int64_t window = blocks_.block(layer).sliding_window;
    for (int64_t m = 0; m < num_tokens; ++m) {
      if (window > 0 && m < num_tokens - window) continue;
      const float* key = stored.k.data() + m * geometry_.kv_dim() + offset;
      const float* value = stored.v.data() + m * geometry_.kv_dim() + offset;
      double score = 0.0;
      for (int64_t i = 0; i < dim; ++i) score += double{q[i]} * double{key[i]};
      const double weight = std::exp(score / std::sqrt(static_cast<double>(dim)));
      total += weight;
      for (int64_t i = 0; i < dim; ++i) sum[static_cast<size_t>(i)] += weight * double{value[i]};
    }
    for (int64_t i = 0; i < dim; ++i) {
      out[i] = static_cast<float>(sum[static_cast<size_t>(i)] / total);
    }
  }

  KvGeometry blocks_;
  UniformKvGeometry geometry_;
  std::shared_ptr<const KeyScales> key_scales_;
  std::map<SequenceId, std::vector<Layer>> sequences_;
  Batch batch_;
  Batch set_aside_;
  int num_open_forwards_ = 0;
};

}  // namespace pmkvq::testing_support
