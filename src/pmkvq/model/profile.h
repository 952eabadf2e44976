// Teacher-forced passes over one whole sequence with dense float attention, for calibration:
// forward block by block, and a backward pass for gradients of activations only.
//
// Memory: the inputs of all blocks (L x N x E) and the activations of one block; a block is
// recomputed on the way back. Real is float (calibration) or double (finite-difference tests).
//
// Weights may be in any format: they are constants, whose values the format gives. x is never
// rounded before a product (unrounded_products.h), so that the loss has the gradient that is
// computed.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "pmkvq/model/blocks/block.h"
#include "pmkvq/model/model.h"

namespace pmkvq {

// Positions 0, s, 2s, ... with s = effective_len / num_tokens (a positive integer; callers
// validate): the paper's positional interpolation.
std::vector<int64_t> StretchedPositions(int64_t num_tokens, int64_t effective_len);

template <class Real>
class Profile {
 public:
  using Visitor = std::function<void(const BlockStates<Real>&)>;

  // Key scales of the model are not used here. `model` must outlive this object.
  Profile(const Model& model, int num_threads);
  ~Profile();
  Profile(const Profile&) = delete;
  Profile& operator=(const Profile&) = delete;

  // Runs the blocks in order and calls `visitor` (may be null) for each one. Returns the mean
  // next-token cross entropy of the sequence, N >= 2 tokens.
  // Throws InvalidInput naming the block at the first value that is not finite (NaN in weights).
  double Forward(std::span<const int32_t> tokens, std::span<const int64_t> positions,
                 const Visitor& visitor);

  // Forward without visitor, then backward; calls `visitor` for blocks L-1 .. 0 with dk and dv,
  // the gradients of that same mean cross entropy.
  double ForwardBackward(std::span<const int32_t> tokens, std::span<const int64_t> positions,
                         const Visitor& visitor);

  // Gradients of the same mean cross entropy with respect to the weights of key and value
  // projections (AttentionPass::WeightGradients); valid during the visitor's call, for blocks L-1
  // .. 0.
  struct ProjectionGradients {
    int64_t layer = 0;
    const Real* k = nullptr;
    const Real* v = nullptr;
  };
  using ProjectionVisitor = std::function<void(const ProjectionGradients&)>;
  double ProjectionBackward(std::span<const int32_t> tokens, std::span<const int64_t> positions,
                            const ProjectionVisitor& visitor);

  // Loss only, with `delta` added to the post-RoPE keys (or values) of one block, k and v of
  // BlockStates: for finite-difference tests.
  double PerturbedLoss(std::span<const int32_t> tokens, std::span<const int64_t> positions,
                       int64_t layer, const Real* delta_k, const Real* delta_v);

  // The parts of Forward, for callers that keep what lies between blocks, x [N, E]. Throw as
  // Forward.
  void Embed(std::span<const int32_t> tokens, Real* x);
  // x += Attention(x), then x += Mlp(x).
  void RunBlock(int64_t layer, std::span<const int64_t> positions, Real* x);

  // Inside a visitor of Forward: out [N, E] = the visited block's AttentionPass::AttentionOf.
  void AttentionOf(const Real* k, const Real* v, Real* out);

  // out [N, E] = attention Wo^T of a block, without bias; attention [N, H, D].
  void ProjectAttention(int64_t layer, int64_t num_tokens, const Real* attention, Real* out);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmkvq
