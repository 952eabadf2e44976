// A mixture of experts: x += sum over the experts e that a row has chosen, in order of e, of
// w_e (act(h Wgate_e) * (h Wup_e)) Wdown_e; h = RmsNorm(x). A router gives the experts and their
// weights from h (kernels/routing). Some models add a shared expert: another gated MLP of h, for
// all rows.
//
// Rows are sorted by expert, so that an expert's matrices are read once for all rows that chose it,
// and those of other experts are not read at all.
//
// Ranks (model/ranks/shard.h) choose alike and have whole experts each. What a slice of experts
// adds to a row, with its part of the shared one, is a leaf of the tree in which ranks add up.
#pragma once

#include <vector>

#include "pmkvq/kernels/routing/routing.h"
#include "pmkvq/model/blocks/block.h"

namespace pmkvq {

struct MlpMoeWeights {
  struct Expert {
    WeightView gate, up;  // [F, E], F that of experts
    WeightView down;      // [E, F]
  };
  std::vector<float> norm;         // [E]
  WeightView router;               // [n, E]
  std::vector<float> router_bias;  // [n], of the choice; empty where the config has none.
  std::vector<Expert> experts;     // n
  Expert shared;                   // Of another F; without data where the config has none.
  std::vector<WeightView> shared_down_slices;  // Of a shard, in place of shared.down.
};

class MlpMoe : public Mlp {
 public:
  // `config` has moe. Both must outlive it; `shard` may be null.
  explicit MlpMoe(const ModelConfig& config, const ModelShard* shard = nullptr);

  const MlpMoeWeights& weights() const { return weights_; }
  const RoutingRule& rule() const { return rule_; }

  void Declare(WeightList& list) override;
  void Forward(const ForwardRows& rows, float* x) const override;
  void CountScratch(const ForwardRows& rows) const override;
  void Forward(const SequenceRows<float>& rows, float* x) const override;
  void Forward(const SequenceRows<double>& rows, double* x) const override;
  // The choice of experts counts as fixed, their weights do not.
  void Grad(const SequenceRows<float>& rows, const float* x, float* dx) const override;
  void Grad(const SequenceRows<double>& rows, const double* x, double* dx) const override;

  // What the router makes of normed rows h [num_rows, E]: experts and weights [num_rows, k], by
  // falling score. scores [num_rows, n] stay for the gradient. A row's bits do not depend on the
  // others.
  template <class Real>
  void Route(const Real* h, int64_t num_rows, Real* scores, int32_t* experts, Real* weights,
             int num_threads) const;

 private:
  template <class Real>
  struct Buffers;
  template <class Real>
  struct GradBuffers;

  // h, the routing, and which places each expert has, of `rows` rows.
  template <class Real>
  void Prepare(const Real* x, int64_t rows, const Buffers<Real>& buffers, int num_threads) const;
  // Copies the rows of `source` [rows, E] that an expert computes; returns their number.
  template <class Real>
  int64_t Gather(int64_t expert, const Buffers<Real>& buffers, const Real* source,
                 Real* rows) const;
  // gate and up of `count` rows of h.
  template <class Real>
  void Project(const MlpMoeWeights::Expert& expert, const Real* h, int64_t count,
               const Buffers<Real>& buffers, int num_threads) const;
  // y = act(gate) * up, `count` values; may be one of them.
  template <class Real>
  void Gate(int64_t count, const Buffers<Real>& buffers, Real* y, int num_threads) const;
  // y [count, E] = the expert's result for `count` rows of h; y may be h.
  template <class Real>
  void Run(const MlpMoeWeights::Expert& expert, const Real* h, int64_t count,
           const Buffers<Real>& buffers, Real* y, int num_threads) const;
  template <class Real>
  void AddRows(int64_t rows, const Buffers<Real>& buffers, Real* x, int num_threads) const;
  // y [rows, E] += the weighted results of expert `e` for those of the buffers' rows that chose it.
  template <class Real>
  void AddExpert(int64_t e, const Buffers<Real>& buffers, Real* y, int num_threads) const;
  // The same of a rank's experts and its part of the shared one, and those of the other ranks.
  void AddRowsOfRanks(int64_t rows, const Buffers<float>& buffers, float* x, int num_threads) const;
  // values [rows, E] = what the `index`-th slice of this rank's adds to the rows.
  void SumOfSlice(size_t index, int64_t rows, const Buffers<float>& buffers, float* values,
                  int num_threads) const;
  template <class Real>
  void ForwardSequence(const SequenceRows<Real>& rows, Real* x) const;
  template <class Real>
  void GradSequence(const SequenceRows<Real>& rows, const Real* x, Real* dx) const;
  // gate and up become their gradients, given dinner, that of act(gate) * up.
  template <class Real>
  void GateGrad(int64_t count, const Buffers<Real>& buffers, const Real* dinner,
                int num_threads) const;
  // Adds the gradient of h that flows through the shared expert, `dx` [rows, E] being that of its
  // result.
  template <class Real>
  void GradShared(int64_t rows, const Buffers<Real>& buffers, const GradBuffers<Real>& gradients,
                  const Real* dx, int num_threads) const;
  // The same of an expert, for its rows; leaves the gradients of their weights.
  template <class Real>
  void GradExpert(int64_t expert, const Buffers<Real>& buffers, const GradBuffers<Real>& gradients,
                  const Real* dx, int num_threads) const;

  const float* RouterBias() const;

  const ModelConfig& config_;
  const MoeConfig& moe_;
  const ModelShard* shard_;
  RoutingRule rule_;
  MlpMoeWeights weights_;
};

}  // namespace pmkvq
