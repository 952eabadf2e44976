// Rotary position embedding in the half-split form of llama-family checkpoints:
//   y[i]       = x[i] cos(p f_i) - x[i + D/2] sin(p f_i)
//   y[i + D/2] = x[i + D/2] cos(p f_i) + x[i] sin(p f_i),     i < D/2, position p,
// with frequencies f_i = theta^(-2i/D), changed by linear, llama3 or yarn scaling or divided by one
// factor each, and cos and sin multiplied by yarn's attention factor.
//
// Or in the form of pairs (DeepSeek): y[2i], y[2i + 1] of x[2i], x[2i + 1] in place of i, i + D/2.
//
// Key scales (PM-KVQ's reparameterisation, eq. 9) have one value per pair (i, i + D/2), commute
// with the rotation, and are applied in the same pass.
#pragma once

#include <cstdint>
#include <vector>

#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq {

// Plain numbers, so that this op does not know about config files.
struct RopeParams {
  enum class Scaling { kDefault, kLinear, kLlama3, kYarn, kFactors };
  int64_t head_dim = 0;
  double theta = 10000.0;
  Scaling scaling = Scaling::kDefault;
  double factor = 1.0;
  double low_freq_factor = 1.0;       // llama3
  double high_freq_factor = 4.0;      // llama3
  int64_t original_max_position = 0;  // llama3, yarn
  double beta_fast = 32.0;            // yarn
  double beta_slow = 1.0;             // yarn
  double attention_factor = 1.0;      // yarn
  bool truncate = true;               // yarn
  std::vector<float> factors;         // factors: [D/2], f_i is divided by factor i
};

// Frequencies of one model; immutable, may be shared between threads.
class RopeTable {
 public:
  explicit RopeTable(const RopeParams& params);

  int64_t head_dim() const { return 2 * static_cast<int64_t>(frequencies_.size()); }
  // f_i, i < D/2, rounded to float as the reference implementation keeps them.
  const std::vector<float>& frequencies() const { return frequencies_; }
  double attention_factor() const { return attention_factor_; }

 private:
  std::vector<float> frequencies_;
  double attention_factor_;
};

// Rotates x [num_rows, num_heads, D] in place; row t has position positions[t]. `scales`
// [num_heads, D/2] or null multiplies each rotated pair (pass scale for q, 1 / scale for k; for q
// expand to num_heads). Real is float or double. Angles are computed in float for Real = float
// exactly as PyTorch's float32 rotary embedding does (position * frequency in float).
template <class Real>
void ApplyRope(const RopeTable& table, const int64_t* positions, int64_t num_rows,
               int64_t num_heads, const float* scales, Real* x, const ExecContext& exec);

// The inverse rotation times the attention factor, i.e. the gradient: x becomes dL/d(input) given
// x = dL/d(output). No scales (sensitivity is taken on unscaled keys).
template <class Real>
void ApplyRopeGrad(const RopeTable& table, const int64_t* positions, int64_t num_rows,
                   int64_t num_heads, Real* x, const ExecContext& exec);

// Where the rotated values lie: head h of row t has D of them from x + t * row_stride + h *
// head_stride on.
struct RopeHeads {
  int64_t num_heads = 0;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  bool in_pairs = false;  // Channels 2i and 2i + 1 belong together, not i and i + D/2.
};

// ApplyRope and ApplyRopeGrad of such values, without scales. Others stay as they are.
template <class Real>
void RotateHeads(const RopeTable& table, const int64_t* positions, int64_t num_rows,
                 const RopeHeads& heads, Real* x, const ExecContext& exec);
template <class Real>
void RotateHeadsGrad(const RopeTable& table, const int64_t* positions, int64_t num_rows,
                     const RopeHeads& heads, Real* x, const ExecContext& exec);

}  // namespace pmkvq
