// Grouped-query attention of llama-family models: H query heads share Hkv heads of keys and values.
//   h = RmsNorm(x); q, k, v = h Wq + bq, h Wk + bk, h Wv + bv     (biases, q/k norm by config)
//   q, k = Rope(q), Rope(k); with key scales s: q *= s, k /= s
//   x += softmax(q k^T / sqrt(D)) v Wo + bo, or RmsNorm of that   (post_norms)
// A block with a sliding window has each token attend to the newest tokens only.
#pragma once

#include <vector>

#include "pmkvq/model/blocks/block.h"

namespace pmkvq {

// Norms and biases are empty where the config has none.
struct AttentionGqaWeights {
  std::vector<float> norm;  // [E]
  WeightView q, k, v;       // [H*D, E], [Hkv*D, E], [Hkv*D, E]
  std::vector<float> q_bias, k_bias, v_bias;
  std::vector<float> q_norm, k_norm;  // [D]
  std::vector<float> post_norm;       // [E]
  WeightView o;                       // [E, H*D]
  std::vector<WeightView> o_slices;   // Of a shard, in place of o: slices of its columns.
  std::vector<float> o_bias;
};

class AttentionGqa : public Attention {
 public:
  AttentionGqa(const ModelConfig& config, const RopeTable& rope, int64_t layer,
               const ModelShard* shard = nullptr)
      : config_(config), rope_(rope), layer_(layer), shard_(shard) {}

  const AttentionGqaWeights& weights() const { return weights_; }

  void Declare(WeightList& list) override;
  double scale() const override;
  void Forward(const ForwardRows& rows, KvStore& store, float* x) const override;
  void CountScratch(const ForwardRows& rows) const override;
  std::unique_ptr<AttentionPass<float>> Start(const SequenceRows<float>& rows) const override;
  std::unique_ptr<AttentionPass<double>> Start(const SequenceRows<double>& rows) const override;
  void ProjectOutput(const float* attention, int64_t num_rows, float* out,
                     int num_threads) const override;
  void ProjectOutput(const double* attention, int64_t num_rows, double* out,
                     int num_threads) const override;

 private:
  template <class Real>
  class Pass;
  template <class Real>
  struct Heads;
  struct ForwardBuffers;

  // Steps that both forward passes share; all on `rows` rows.

  // out = the outputs of the three projections, q and k behind their per-head norm; `raw` takes q
  // and k before that norm and may equal `out`. h [rows, E] is scratch.
  template <class Real>
  void Project(const Real* x, int64_t rows, Real* h, const Heads<Real>& raw, const Heads<Real>& out,
               int num_threads) const;
  // The factors may be null.
  template <class Real>
  void Rotate(const int64_t* positions, int64_t rows, const float* query_factors,
              const float* key_factors, const Heads<Real>& heads, int num_threads) const;
  // h [rows, E] = attention Wo + bo.
  template <class Real>
  void ProjectRows(const Real* attention, int64_t rows, Real* h, int num_threads) const;
  // x += that, behind its norm where there is one. h [rows, E] is scratch.
  template <class Real>
  void AddOutput(const Real* attention, int64_t rows, Real* h, Real* x, int num_threads) const;

  const ModelConfig& config_;
  const RopeTable& rope_;
  const int64_t layer_;
  const ModelShard* const shard_;  // May be null.
  AttentionGqaWeights weights_;
};

}  // namespace pmkvq
