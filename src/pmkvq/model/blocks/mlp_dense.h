// The gated MLP: x += (act(h Wgate) * (h Wup)) Wdown, or RmsNorm of that (post_norms); h =
// RmsNorm(x), act is silu or gelu.
#pragma once

#include <vector>

#include "pmkvq/model/blocks/block.h"

namespace pmkvq {

struct MlpDenseWeights {
  std::vector<float> norm;              // [E]
  WeightView gate, up;                  // [F, E]
  WeightView down;                      // [E, F]
  std::vector<WeightView> down_slices;  // Of a shard, in place of down: slices of its columns.
  std::vector<float> post_norm;         // [E]; empty where the config has none.
};

class MlpDense : public Mlp {
 public:
  explicit MlpDense(const ModelConfig& config, const ModelShard* shard = nullptr)
      : config_(config), shard_(shard) {}

  const MlpDenseWeights& weights() const { return weights_; }

  void Declare(WeightList& list) override;
  void Forward(const ForwardRows& rows, float* x) const override;
  void CountScratch(const ForwardRows& rows) const override;
  void Forward(const SequenceRows<float>& rows, float* x) const override;
  void Forward(const SequenceRows<double>& rows, double* x) const override;
  void Grad(const SequenceRows<float>& rows, const float* x, float* dx) const override;
  void Grad(const SequenceRows<double>& rows, const double* x, double* dx) const override;

 private:
  template <class Real>
  struct Buffers;

  // gate = h Wgate and up = h Wup, on `rows` rows.
  template <class Real>
  void Project(const Real* x, int64_t rows, const Buffers<Real>& buffers, int num_threads) const;
  // y [rows, F] = act(gate) * up; may be one of them.
  template <class Real>
  void Gate(int64_t rows, const Buffers<Real>& buffers, Real* y, int num_threads) const;
  // h = gate Wdown.
  template <class Real>
  void Down(int64_t rows, const Buffers<Real>& buffers, int num_threads) const;
  // x += MLP of `rows` rows.
  template <class Real>
  void AddRows(int64_t rows, const Buffers<Real>& buffers, Real* x, int num_threads) const;
  template <class Real>
  void ForwardSequence(const SequenceRows<Real>& rows, Real* x) const;
  template <class Real>
  void GradSequence(const SequenceRows<Real>& rows, const Real* x, Real* dx) const;

  const ModelConfig& config_;
  const ModelShard* const shard_;  // May be null.
  MlpDenseWeights weights_;
};

}  // namespace pmkvq
