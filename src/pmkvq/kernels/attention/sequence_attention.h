// Dense causal attention of one whole sequence and its gradient on a CUDA device, for calibration:
// CausalAttention (causal_attention.h) by products of cuBLASLt over tiles of query rows, with
// softmax between them.
//
//   P = softmax(scale * Q K^T + causal mask),  O = P V
//
// Queries, outputs and their gradients are [Hkv, rows, G, D]; keys, values and theirs
// [rows, Hkv, D]. All of the device. Rows see those before them only, so rows behind a sequence's
// end may hold anything finite.
//
// Sums have a fixed order. Threads: one caller per stream. Errors: as DeviceGemm.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/gemm/device_gemm.h"
#include "pmkvq/tensor/device/buffer.h"
#include "pmkvq/tensor/device/stream.h"

namespace pmkvq {

struct SequenceAttentionShape {
  int64_t rows = 0;          // A multiple of 64.
  int64_t num_heads = 0;     // H
  int64_t num_kv_heads = 0;  // Hkv
  int64_t head_dim = 0;      // D, a multiple of 8.
  float scale = 1.0f;

  int64_t group() const { return num_heads / num_kv_heads; }
};

namespace internal {

// Rows of scores of one tile: scores * scale * log2(e), [heads, tokens * group, columns], to
// weights.
struct SequenceWeights {
  float* scores = nullptr;
  std::byte* f16 = nullptr;   // Weights times 2^10 over the largest one's; null: float, in place.
  float* inverses = nullptr;  // Of the tile's first row, [Hkv, rows, G]; with f16.
  int64_t heads = 0;
  int64_t rows = 0;  // Of the sequence.
  int64_t first_token = 0;
  int64_t tokens = 0;
  int64_t group = 0;
  int64_t columns = 0;  // A multiple of 4.
};
void WeighSequence(const SequenceWeights& op, Stream& stream);
// products [heads, tokens * group, columns] = weights * (products - sum(weights * products)), 0
// where a row does not see the column.
void SequenceScoresGrad(const SequenceWeights& op, const float* weights, float* products,
                        Stream& stream);

}  // namespace internal

// Owns the memory of a tile's scores and weights: 8 bytes for each query head, row of a tile (512)
// and row of the sequence.
class SequenceAttention {
 public:
  SequenceAttention(DeviceId device, const SequenceAttentionShape& shape);

  const SequenceAttentionShape& shape() const { return shape_; }
  size_t num_bytes() const { return scores_.num_bytes() + weights_.num_bytes(); }

  // All float.
  void Forward(const float* q, const float* k, const float* v, float* out, DeviceGemm& gemm,
               Stream& stream);
  // Operands of F16. `out` is float and lacks the division by the sums of weights, which is left to
  // the reader: inverses [Hkv, rows, G].
  void ForwardF16(const std::byte* q, const std::byte* k, const std::byte* v, float* out,
                  float* inverses, DeviceGemm& gemm, Stream& stream);
  // Gradients given dout; weights are computed again. `allow_tf32`: products may round operands to
  // 11 significant bits.
  struct Gradient {
    const float* q = nullptr;
    const float* k = nullptr;
    const float* v = nullptr;
    const float* dout = nullptr;
    float* dq = nullptr;
    float* dk = nullptr;
    float* dv = nullptr;
    bool allow_tf32 = false;
  };
  void Backward(const Gradient& op, DeviceGemm& gemm, Stream& stream);

 private:
  struct Tile;
  DeviceBatchedProduct ScoresOf(const Tile& tile, DType type, const std::byte* q,
                                const std::byte* k) const;
  internal::SequenceWeights WeightsOf(const Tile& tile) const;
  DeviceBatchedProduct OutputOf(const Tile& tile, const DeviceBatchedProduct& scores,
                                const std::byte* weights, const std::byte* v, float* out) const;

  SequenceAttentionShape shape_;
  int64_t tile_rows_;
  Buffer scores_;   // float [Hkv, tile rows * G, columns]
  Buffer weights_;  // The same in F16, or in float.
};

}  // namespace pmkvq
