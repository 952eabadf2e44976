// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads are
// made of one latent c a token; one key with RoPE is shared by all heads. The cache keeps these
// two.
//   h = RmsNorm(x); q = h Wq, or RmsNorm(h Wqa) Wqb; per head dn values q_nope, then dr values
//   q_rope (u, k_r) = h Wa; c = RmsNorm(u); q_rope, k_r = Rope(q_rope), Rope(k_r) per head: k = (c
//   Wuk, k_r), v = c Wuv; x += softmax(q k^T scale) v Wo scale = (dn + dr)^-1/2, times YaRN's
//   factor
//
// That is the plain form, which calibration computes over whole sequences. Serving has the absorbed
// one, which is the same function and needs no key or value of a stored token:
//   score = (q_nope Wuk^T) . c + q_rope . k_r; head's output = (sum of weight * c) Wuv
#pragma once

#include <vector>

#include "pmkvq/kernels/gemm/head_products.h"
#include "pmkvq/model/blocks/block.h"

namespace pmkvq {

// H heads; views without data where the config has no such matrix.
struct AttentionMlaWeights {
  std::vector<float> norm;       // [E]
  WeightView q;                  // [H*(dn+dr), E], without a rank of queries
  WeightView q_a;                // [rank, E], with one
  std::vector<float> q_a_norm;   // [rank]
  WeightView q_b;                // [H*(dn+dr), rank]
  WeightView kv_a;               // [r+dr, E]
  std::vector<float> kv_a_norm;  // [r]
  WeightView kv_b;               // [H*(dn+dv), r]: per head Wuk^T, then Wuv^T
  WeightView k_b;                // [H*r, dn]: per head Wuk, in place of kv_b (MlaConfig::split_up)
  WeightView v_b;                // [H*dv, r]: per head Wuv^T
  WeightView o;                  // [E, H*dv]
};

class AttentionMla : public Attention {
 public:
  AttentionMla(const ModelConfig& config, const RopeTable& rope, int64_t layer);  // With mla.

  const AttentionMlaWeights& weights() const { return weights_; }

  void Declare(WeightList& list) override;
  double scale() const override;
  void Forward(const ForwardRows& rows, KvStore& store, float* x) const override;
  void CountScratch(const ForwardRows& rows) const override;
  // States are latents and rope keys; queries are not given.
  std::unique_ptr<AttentionPass<float>> Start(const SequenceRows<float>& rows) const override;
  std::unique_ptr<AttentionPass<double>> Start(const SequenceRows<double>& rows) const override;
  // attention [num_rows, H, dv].
  void ProjectOutput(const float* attention, int64_t num_rows, float* out,
                     int num_threads) const override;
  void ProjectOutput(const double* attention, int64_t num_rows, double* out,
                     int num_threads) const override;

 private:
  template <class Real>
  class Pass;
  template <class Real>
  struct Projected;
  struct ForwardBuffers;

  int64_t heads() const { return config_.num_heads; }
  int64_t query_dim() const { return config_.head_dim; }              // dn + dr
  int64_t stored_dim() const { return mla_.latent + mla_.rope_dim; }  // r + dr

  // Steps that both forward passes share; all on `rows` rows.

  // Queries, latents and rope keys of x, rotated.
  template <class Real>
  void Project(const Real* x, const int64_t* positions, int64_t rows, const Projected<Real>& out,
               int num_threads) const;
  // out [rows, E] = attention Wo.
  template <class Real>
  void ProjectRows(const Real* attention, int64_t rows, Real* out, int num_threads) const;

  HeadMatrices KeyMatrices() const;
  HeadMatrices ValueMatrices() const;
  // From latents to a head's keys without RoPE, and with the transposed matrix.
  template <class Real>
  void KeysOfLatents(const HeadRows<const Real>& x, int64_t rows, const HeadRows<Real>& y,
                     int num_threads) const;
  template <class Real>
  void LatentsOfKeys(const HeadRows<const Real>& x, int64_t rows, const HeadRows<Real>& y,
                     int num_threads) const;

  const ModelConfig& config_;
  const MlaConfig& mla_;
  const RopeTable& rope_;
  const int64_t layer_;
  AttentionMlaWeights weights_;
};

}  // namespace pmkvq
