// Whole sequences in the panels of causal_tiles.h: packing, and attention over them with threads.
// Private to this folder.
#pragma once

#include <cstdint>

#include "pmkvq/base/aligned.h"
#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/attention/causal_attention.h"
#include "pmkvq/kernels/attention/causal_tiles.h"
#include "pmkvq/tensor/device/exec_context.h"

namespace pmkvq::internal {

inline int64_t NumKeyPanels(const CausalAttentionShape& shape) {
  return RoundUpTo(shape.num_tokens, PanelWidth()) / PanelWidth();
}

// packed becomes [Hkv] times the panels of a head.
void PackKeys(const CausalAttentionShape& shape, const float* k, AlignedVector<float>& packed,
              const ExecContext& exec);
void PackValues(const CausalAttentionShape& shape, const float* v, AlignedVector<float>& packed,
                const ExecContext& exec);

struct PackedAttention {
  const CausalAttentionShape& shape;
  const float* q = nullptr;          // [N, H, D]
  const float* q_factors = nullptr;  // [Hkv, D/2], or null
  const float* keys = nullptr;
  const float* values = nullptr;
  const float* subtract = nullptr;  // [N, H, D], or null
  float* out = nullptr;             // [N, H, D]
};

// Grows `scratch` as needed.
void AttendPacked(const PackedAttention& args, AlignedVector<float>& scratch,
                  const ExecContext& exec);

}  // namespace pmkvq::internal
