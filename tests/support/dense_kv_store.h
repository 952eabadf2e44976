// A KvStore that keeps every key and value, or latent and rope key, as floats and attends one row
// at a time in double. An oracle for the model's forward pass; it also remembers the calls it got.
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
      : blocks_(geometry), key_scales_(std::move(key_scales)) {
    if (!blocks_.block(0).is_latent()) UniformOf(geometry);
  }

  const KeyScales* key_scales() const override { return key_scales_.get(); }

  std::optional<SequenceId> Open() override {
    const auto id = static_cast<SequenceId>(sequences_.size());
    sequences_[id].resize(static_cast<size_t>(blocks_.num_layers()));
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
    const KvBlockGeometry& block = blocks_.block(layer);
    const int64_t q_width = block.q_values() / block.num_heads;
    const int64_t out_width = block.out_values() / block.num_heads;
    for (const BatchChunk& chunk : batch_) {
      Layer& stored = sequences_.at(chunk.seq).at(static_cast<size_t>(layer));
      for (int64_t t = 0; t < chunk.num_tokens; ++t) {
        stored.k.insert(stored.k.end(), k, k + block.k().values());
        stored.v.insert(stored.v.end(), v, v + block.v().values());
        for (int64_t head = 0; head < block.num_heads; ++head, q += q_width, out += out_width) {
          if (block.is_latent()) {
            AttendLatents(block, stored, q, out);
          } else {
            AttendHead(block, stored, head, q, out);
          }
        }
        AfterToken(block, stored.k.data() + (std::ssize(stored.k) - block.k().values()),
                   stored.v.data() + (std::ssize(stored.v) - block.v().values()));
        k += block.k().values();
        v += block.v().values();
      }
    }
  }

  void Truncate(SequenceId seq, int64_t num_tokens) override {
    const KvBlockGeometry& block = blocks_.block(0);
    for (Layer& layer : sequences_.at(seq)) {
      layer.k.resize(static_cast<size_t>(num_tokens * block.k().values()));
      layer.v.resize(static_cast<size_t>(num_tokens * block.v().values()));
    }
  }
  int64_t NumTokens(SequenceId seq) const override {
    return static_cast<int64_t>(sequences_.at(seq)[0].k.size()) / blocks_.block(0).k().values();
  }
  KvSequenceStats SequenceStats(SequenceId) const override { return {}; }
  KvLayerStats LayerStats(SequenceId, int64_t) const override { return {}; }
  KvStoreStats StoreStats() const override { return {}; }
  std::vector<HalvingEvent> TakeHalvingEvents() override { return {}; }

  // Keys, or latents, as they were stored, [T, Hkv, D] or [T, r].
  const std::vector<float>& Keys(SequenceId seq, int64_t layer) const {
    return sequences_.at(seq).at(static_cast<size_t>(layer)).k;
  }
  const Batch& last_batch() const { return batch_; }
  int num_open_forwards() const { return num_open_forwards_; }

 protected:
  // May change what was stored of a token, which has attended to itself as given.
  virtual void AfterToken(const KvBlockGeometry& /*block*/, float* /*k*/, float* /*v*/) {}

 private:
  struct Layer {
    std::vector<float> k, v;
  };

  void AttendHead(const KvBlockGeometry& block, const Layer& stored, int64_t head, const float* q,
                  float* out) const {
    const int64_t dim = block.k().width;
    const int64_t kv_dim = block.k().values();
    const int64_t offset = head / (block.num_heads / block.k().heads) * dim;
    const int64_t num_tokens = static_cast<int64_t>(stored.k.size()) / kv_dim;
    WeightedSum sum(dim);
    const int64_t window = block.sliding_window;
    for (int64_t m = 0; m < num_tokens; ++m) {
      if (window > 0 && m < num_tokens - window) continue;
      const double score = Dot(q, stored.k.data() + m * kv_dim + offset, dim);
      sum.Add(std::exp(score / std::sqrt(static_cast<double>(dim))),
              stored.v.data() + m * kv_dim + offset);
    }
    sum.WriteTo(out);
  }

  // Queries are scaled, and a latent is its value.
  void AttendLatents(const KvBlockGeometry& block, const Layer& stored, const float* q,
                     float* out) const {
    const int64_t r = block.latent_width();
    const int64_t dr = block.rope_width();
    const int64_t num_tokens = static_cast<int64_t>(stored.k.size()) / r;
    WeightedSum sum(r);
    for (int64_t m = 0; m < num_tokens; ++m) {
      const float* latent = stored.k.data() + m * r;
      const double score = Dot(q, latent, r) + Dot(q + r, stored.v.data() + m * dr, dr);
      sum.Add(std::exp(score), latent);
    }
    sum.WriteTo(out);
  }

  static double Dot(const float* a, const float* b, int64_t count) {
    double sum = 0.0;
    for (int64_t i = 0; i < count; ++i) sum += double{a[i]} * double{b[i]};
    return sum;
  }

  class WeightedSum {
   public:
    explicit WeightedSum(int64_t dim) : sum_(static_cast<size_t>(dim)) {}
    void Add(double weight, const float* value) {
      total_ += weight;
      for (size_t i = 0; i < sum_.size(); ++i) sum_[i] += weight * double{value[i]};
    }
    void WriteTo(float* out) const {
      for (size_t i = 0; i < sum_.size(); ++i) out[i] = static_cast<float>(sum_[i] / total_);
    }

   private:
    std::vector<double> sum_;
    double total_ = 0.0;
  };

  KvGeometry blocks_;
  std::shared_ptr<const KeyScales> key_scales_;
  std::map<SequenceId, std::vector<Layer>> sequences_;
  Batch batch_;
  Batch set_aside_;
  int num_open_forwards_ = 0;
};

}  // namespace pmkvq::testing_support
