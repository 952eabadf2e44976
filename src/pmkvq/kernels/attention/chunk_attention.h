// Attention of a prompt's chunk on a CUDA device: T new tokens of one sequence attend to what its
// cache holds, and to the chunk's own tokens up to themselves.
//
//   out[t, h] = sum_m softmax_m(scale * q[t, h] . K[m, g]) V[m, g],   g = h / (H / Hkv),
//   m: all stored tokens, then the chunk's rows 0 .. t; with a sliding window the newest W of
//   these.
//
// Stored pages are expanded to 16 bits in slices of kChunkSlicePages pages, so scratch does not
// grow with the cache; slices are multiplied by cuBLASLt and merged in their order by the largest
// score, as flash attention does. The chunk's own rows are read as 16-bit floats, however they will
// be stored. Numerics: queries, keys, values and weights are F16; scores and sums are float. Of a
// cache of BF16 keys and values are BF16, and everything is computed in float.
//
// Bits: depend on the sequence alone.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/attention/decode_attention.h"
#include "pmkvq/kernels/gemm/device_gemm.h"
#include "pmkvq/kernels/kv_quant/page_moves.h"

namespace pmkvq {

inline constexpr int64_t kChunkSlicePages = 8;

// All pointers are of the device.
struct ChunkOperands {
  const float* q = nullptr;  // [T, H, D]
  const float* k = nullptr;  // [T, Hkv, D]
  const float* v = nullptr;  // [T, Hkv, D]
  float* out = nullptr;      // [T, H, D]
  int64_t num_rows = 0;      // T
  const std::byte* arena = nullptr;
  const PageEntry* entries = nullptr;  // Of the sequence.
  const PageBits* bits = nullptr;
  int32_t num_tokens = 0;  // Stored before, the sink's included.
  uint32_t rest_k = 0;     // The sink's rest, as decode_attention.h has it.
  uint32_t rest_v = 0;
  // Becomes the least of itself and kUnfitKinds * block + UnfitRow, as with AppendTokens.
  uint32_t* unfit = nullptr;
  uint32_t block = 0;
};

// Device memory that a call needs; contents do not matter.
size_t ChunkScratchBytes(const DecodeShape& shape, int64_t num_rows);

// Launches on the stream and returns. `scratch` has ChunkScratchBytes. Throws Unsupported for a
// float type or a head size without code, and in a program without CUDA.
void RunChunkAttention(const DecodeShape& shape, const ChunkOperands& operands,
                       const DeviceBytes& scratch, DeviceGemm& gemm, Stream& stream);

namespace internal {
// What products are of: F16, or float where the cache is BF16.
DType ChunkType(const DecodeShape& shape);
// The steps between products; each backend has them. Rows of queries: [Hkv, T * G], token by token.
struct ChunkMemory {
  std::byte* q = nullptr;  // ChunkType [Hkv, T * G, D]
  std::byte* k = nullptr;  // [Hkv, columns, D], likewise.
  std::byte* v = nullptr;
  float* scores = nullptr;       // [Hkv, T * G, columns]
  std::byte* weights = nullptr;  // ChunkType [Hkv, T * G, columns]
  float* sums = nullptr;         // [Hkv, T * G, D]
  float* references = nullptr;   // [Hkv, T * G, 2]: largest score in base 2, sum of weights.
};
// Rounds q, and the chunk's own rows behind the sink's rest, to k and v [Hkv, columns, D].
void PackChunk(const DecodeShape& shape, const ChunkOperands& operands, int64_t rest,
               int64_t columns, const ChunkMemory& memory, Stream& stream);
// Scores to weights, rescaling sums and references. Row t sees the first `visible` columns, and of
// the chunk's own slice t + 1 more; without those that its window hides.
struct ChunkSlice {
  int64_t columns = 0;  // Of memory.
  int64_t visible = 0;
  int64_t first_in_pages = 0;  // Column 0 is so manyth of the tokens in pages.
  bool is_own = false;         // The sink's rest and the chunk's rows; comes first.
};
void WeighChunk(const DecodeShape& shape, const ChunkOperands& operands, const ChunkSlice& slice,
                const ChunkMemory& memory, Stream& stream);
// out = sums over the sum of weights, back in the order [T, H, D].
void FinishChunk(const DecodeShape& shape, const ChunkOperands& operands, const ChunkMemory& memory,
                 Stream& stream);
}  // namespace internal

}  // namespace pmkvq
