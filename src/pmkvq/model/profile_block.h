// One block's forward and backward pass over a whole sequence. Private to this module.
//
// Backward is for activations only. The MLP runs in slices of rows, forward and backward, so that
// no [N, F] array exists; it is recomputed from the block's middle on the way back.
#pragma once

#include <cstdint>
#include <span>

#include "pmkvq/base/aligned.h"
#include "pmkvq/model/model.h"
#include "pmkvq/model/profile.h"

namespace pmkvq {

template <class Real>
class ProfileBlock {
 public:
  ProfileBlock(const Model& model, int num_threads);

  // Sizes the buffers for sequences of N tokens; what they hold is lost.
  void Resize(int64_t num_tokens);

  // Queries, keys and values (post-RoPE) of the block from its input x [N, E].
  void ComputeStates(int64_t layer, std::span<const int64_t> positions, const Real* x);
  // As given. Used to perturb the states that ComputeStates left; either may be null. [N, Hkv, D]
  void AddToStates(const Real* delta_k, const Real* delta_v);
  // x += Attention(q, k, v) Wo + bo, with the states that ComputeStates left.
  void AddAttention(int64_t layer, Real* x);
  // x += SiluMul(h Wgate, h Wup) Wdown, h = RmsNorm(x).
  void AddMlp(int64_t layer, Real* x);

  // dx: dL/d(AddMlp's result) becomes dL/d(its argument), `x`.
  void MlpGrad(int64_t layer, const Real* x, Real* dx);
  // Gradients of q, k, v given dx = dL/d(AddAttention's result).
  void AttentionGrad(int64_t layer, const Real* dx);
  // Takes the gradients of q and k back through RoPE and the per-head norm, to the outputs of their
  // projections. (Those of v are there already.)
  void ProjectionOutputGrad(int64_t layer, std::span<const int64_t> positions);
  // After it: gradients of the weights of key and value projections; x is ComputeStates' argument.
  void ProjectionWeightGrad(int64_t layer, const Real* x);
  const Real* dk_weight() const { return dk_weight_.data(); }  // [Hkv * D, E]
  const Real* dv_weight() const { return dv_weight_.data(); }
  // After it: dx += the part of dL/dx that flows through the states; x is ComputeStates' argument.
  void InputGrad(int64_t layer, const Real* x, Real* dx);

  // Views of the buffers; dk and dv only after AttentionGrad.
  BlockStates<Real> States(int64_t layer, bool with_gradients) const;

 private:
  // Rows of the MLP computed at once.
  static constexpr int64_t kMlpRows = 256;

  void NormGradPerHead(const AlignedVector<Real>& raw, int64_t num_heads,
                       const std::vector<float>& weight, AlignedVector<Real>& gradient);

  const Model& model_;
  const ModelConfig& config_;
  const int num_threads_;
  int64_t num_tokens_ = 0;

  AlignedVector<Real> normed_;         // [N, E]; also the output of a projection to E
  AlignedVector<Real> q_, k_, v_;      // [N, H, D], [N, Hkv, D]
  AlignedVector<Real> q_raw_, k_raw_;  // Before the per-head norm; empty without it.
  AlignedVector<Real> attention_;      // [N, H, D]; in backward its gradient
  AlignedVector<Real> dq_, dk_, dv_;
  AlignedVector<Real> gate_, up_, inner_;  // [kMlpRows, F]
  AlignedVector<Real> raw_gradient_;       // Of the per-head norm's input.
  AlignedVector<Real> dk_weight_, dv_weight_;
};

extern template class ProfileBlock<float>;
extern template class ProfileBlock<double>;

}  // namespace pmkvq
