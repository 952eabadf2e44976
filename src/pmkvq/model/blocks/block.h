// The two parts of a transformer block, attention and MLP. Each adds its result to the residual
// stream x: x += Attention(x), then x += Mlp(x).
//
// A part owns its weights and everything computed with them: the batched forward pass of serving,
// the forward pass over a whole sequence of calibration, and that one's gradient. What the two
// forward passes have in common is one template. Parts are immutable once their weights are bound;
// any number of threads may use one.
//
// A new kind is a class in two files of this folder, and the line in block.cc that chooses it by
// the config (docs/adding.md).
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "pmkvq/io/model_config.h"
#include "pmkvq/kernels/rope/rope.h"
#include "pmkvq/kv/kv_store.h"
#include "pmkvq/model/forward_workspace.h"
#include "pmkvq/model/weight_list.h"

namespace pmkvq {

// The rows of one batched Forward. A slice's rows go through linear layers together.
struct ForwardRows {
  int64_t num_rows = 0;
  const int64_t* positions = nullptr;     // Per row.
  std::span<const RowSlice> slices;       // All rows.
  std::span<const RowSlice> read_slices;  // Rows whose x is read behind the block.
  int64_t max_slice_rows = 0;             // Of `slices`.
  KvExtraNeeds extra_needs;               // What the store wants besides q, k and v.
  Scratch<float>* scratch = nullptr;
  int num_threads = 1;
};

// A whole sequence of N tokens, teacher-forced.
template <class Real>
struct SequenceRows {
  std::span<const int64_t> positions;  // N
  Scratch<Real>* scratch = nullptr;
  int num_threads = 1;

  int64_t num_tokens() const { return std::ssize(positions); }
};

// One block's attention inputs, valid during the visitor's call. Post-RoPE, unscaled. With latent
// attention k is latents [N, r], v rope keys [N, dr], dk and dv likewise, and q is null.
template <class Real>
struct BlockStates {
  int64_t layer = 0;
  int64_t num_tokens = 0;   // N
  const Real* q = nullptr;  // [N, H, D]
  const Real* k = nullptr;  // [N, Hkv, D]
  const Real* v = nullptr;  // [N, Hkv, D]
  // Filled by ForwardBackward only:
  const Real* dk = nullptr;  // dL/dk [N, Hkv, D]
  const Real* dv = nullptr;  // dL/dv [N, Hkv, D]
};

// Attention of one block over one sequence, forward and backward; gradients are of activations, and
// of the key and value projections. Takes its buffers from the scratch of the SequenceRows that it
// was started with, so it must end before their frame does.
template <class Real>
class AttentionPass {
 public:
  virtual ~AttentionPass() = default;

  // Queries, keys and values (post-RoPE) of the block from its input x [N, E].
  virtual void ComputeStates(const Real* x) = 0;
  // Perturbs k and v of the states that ComputeStates left; either may be null.
  virtual void AddToStates(const Real* delta_k, const Real* delta_v) = 0;
  // x += Attention(q, k, v) Wo + bo, with the states that ComputeStates left.
  virtual void AddAttention(Real* x) = 0;
  // out [N, E] = Attention(q, k, v) Wo + bo, without a norm behind it, with other k and v than
  // those that ComputeStates left. Those stay, and so does what AddAttention computes of them.
  virtual void AttentionOf(const Real* k, const Real* v, Real* out) = 0;

  // Gradients of q, k, v given dx = dL/d(AddAttention's result).
  virtual void AttentionGrad(const Real* dx) = 0;
  // After AttentionGrad: takes the gradients of q and k back to the outputs of their projections.
  // (Those of v are there already.)
  virtual void ProjectionOutputGrad() = 0;
  // After it: gradients of the weights of key and value projections, [Hkv * D, E] each, or of the
  // rows that make latents [r, E] and rope keys [dr, E]; x is ComputeStates' argument.
  struct WeightGradients {
    const Real* k = nullptr;
    const Real* v = nullptr;
  };
  virtual WeightGradients ProjectionWeightGrad(const Real* x) = 0;
  // After ProjectionOutputGrad: dx += the part of dL/dx that flows through the states; x is
  // ComputeStates' argument.
  virtual void InputGrad(const Real* x, Real* dx) = 0;

  // Views of the buffers; dk and dv after AttentionGrad, else null.
  virtual BlockStates<Real> States() const = 0;
};

struct ModelShard;  // model/ranks/shard.h

class Attention {
 public:
  virtual ~Attention() = default;

  // Called once, before anything else; the list's user fills the places.
  virtual void Declare(WeightList& list) = 0;
  // What scores q . k are multiplied with.
  virtual double scale() const = 0;

  // x [rows, E] += attention over what `store` holds of each row's sequence, and over the rows
  // themselves, which are stored. Key scales are the store's. Only rows of rows.read_slices change.
  virtual void Forward(const ForwardRows& rows, KvStore& store, float* x) const = 0;

  // Takes from rows.scratch what Forward takes, and gives it back. For counting its memory: of
  // `rows` only the numbers of rows and the needs of the store are read. Needs no weights.
  virtual void CountScratch(const ForwardRows& rows) const = 0;

  // Over a whole sequence with dense float attention. Key scales are not used.
  virtual std::unique_ptr<AttentionPass<float>> Start(const SequenceRows<float>& rows) const = 0;
  virtual std::unique_ptr<AttentionPass<double>> Start(const SequenceRows<double>& rows) const = 0;
  // out [num_rows, E] = attention Wo, without bias; attention [num_rows, H, D], D that of values.
  virtual void ProjectOutput(const float* attention, int64_t num_rows, float* out,
                             int num_threads) const = 0;
  virtual void ProjectOutput(const double* attention, int64_t num_rows, double* out,
                             int num_threads) const = 0;
};

class Mlp {
 public:
  virtual ~Mlp() = default;

  // As Attention::Declare.
  virtual void Declare(WeightList& list) = 0;

  // x [rows, E] += MLP of the rows of rows.read_slices.
  virtual void Forward(const ForwardRows& rows, float* x) const = 0;
  // As Attention::CountScratch.
  virtual void CountScratch(const ForwardRows& rows) const = 0;

  // The same for all rows of a sequence, x [N, E].
  virtual void Forward(const SequenceRows<float>& rows, float* x) const = 0;
  virtual void Forward(const SequenceRows<double>& rows, double* x) const = 0;
  // dx: dL/d(Forward's result) becomes dL/d(its argument), `x`.
  virtual void Grad(const SequenceRows<float>& rows, const float* x, float* dx) const = 0;
  virtual void Grad(const SequenceRows<double>& rows, const double* x, double* dx) const = 0;
};

// The parts of block `layer`. `config`, `rope` and `shard` must outlive them. With a shard (may be
// null) `config` is its local one, Forward is what its rank computes, and all ranks run it
// together; the passes over whole sequences are not to be called then.
std::unique_ptr<Attention> MakeAttention(const ModelConfig& config, const RopeTable& rope,
                                         int64_t layer, const ModelShard* shard = nullptr);
std::unique_ptr<Mlp> MakeMlp(const ModelConfig& config, int64_t layer,
                             const ModelShard* shard = nullptr);

}  // namespace pmkvq
