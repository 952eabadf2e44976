// What latent blocks do to rows besides storing them: key scales and rotation.
//
// c' = R (c / s), q' = R (s q) over the same channels, and out = s R^T out', where out' is a sum of
// c'. R is symmetric and its own inverse. k_r and its part of q are scaled only. Scales come after
// RoPE, so each channel may have one.
#include <algorithm>

#include "pmkvq/kernels/linalg/hadamard.h"
#include "pmkvq/kv/packed/packed_cache.h"

namespace pmkvq {
namespace {

// x [rows, width] times factors [width], to `out`.
void ScaledRows(const float* x, int64_t num_rows, int64_t width, const float* factors, float* out) {
  for (int64_t row = 0; row < num_rows; ++row, x += width, out += width) {
    for (int64_t i = 0; i < width; ++i) out[i] = x[i] * factors[i];
  }
}

}  // namespace

PackedKvCache::Rows PackedKvCache::PreparedLatents(size_t layer, int64_t num_rows,
                                                   const Rows& rows) {
  const KeyScales* const scales = config_.key_scales.get();
  if (scales == nullptr && !config_.rotate_keys) return rows;
  const KvBlockGeometry& block = config_.geometry.blocks[layer];
  const int64_t latent = block.latent_width();
  const int64_t rope = block.rope_width();
  Rows prepared = rows;
  const auto copy = [&](const float* from, int64_t count, int64_t width, const float* factors,
                        AlignedVector<float>& memory) {
    memory.resize(static_cast<size_t>(count * width));
    if (factors == nullptr) {
      std::copy_n(from, count * width, memory.data());
    } else {
      ScaledRows(from, count, width, factors, memory.data());
    }
    return memory.data();
  };
  const auto index = static_cast<int64_t>(layer);
  const float* const by = scales == nullptr ? nullptr : scales->query_factors(index);
  const float* const divided_by = scales == nullptr ? nullptr : scales->key_factors(index);
  float* const c = copy(rows.k, num_rows, latent, divided_by, rotated_k_);
  if (config_.rotate_keys) HadamardHeads(c, num_rows * latent, latent);
  prepared.k = c;
  if (scales != nullptr) prepared.v = copy(rows.v, num_rows, rope, divided_by + latent, rotated_v_);
  if (rows.q == nullptr) return prepared;
  const int64_t num_queries = num_rows * block.num_heads;
  float* const q = copy(rows.q, num_queries, latent + rope, by, rotated_q_);
  for (int64_t i = 0; config_.rotate_keys && i < num_queries; ++i) {
    Hadamard(q + i * (latent + rope), latent);
  }
  prepared.q = q;
  return prepared;
}

void PackedKvCache::RestoreLatents(size_t layer, int64_t num_rows, float* out) const {
  const BlockShape& shape = shapes_[layer];
  if (config_.rotate_keys) HadamardHeads(out, num_rows * shape.out_dim, shape.head_dim);
  if (config_.key_scales == nullptr) return;
  ScaledRows(out, num_rows * shape.out_dim / shape.head_dim, shape.head_dim,
             config_.key_scales->query_factors(static_cast<int64_t>(layer)), out);
}

}  // namespace pmkvq
