// Absorbed attention over latents (latent_attention.h) on a CUDA device, whose pages are in
// fragment order: of one new token of each sequence, and of a prompt's chunk.
//
//   out[b, h] = sum_m softmax_m(q[b, h] . (c[m], k_r[m])) c[m]
//
// over the sequence's tokens m as they are stored. c lies in place of keys and k_r in place of
// values (kv_geometry.h), both with tokens as rows (fragment_layout.h): c as r / 128 heads of 128
// channels. Scores are taken as they are: queries have been multiplied with their scale.
//
// Tables, sinks and captured launches: as decode_attention.h. Bits: a sequence's output depends on
// its own pages alone.
//
// Numerics: queries, floats of pages and weights times steps are F16, sums are float. Codes are
// multiplied as floats 1024 + code, exactly. References of the softmax are whole numbers in base 2,
// so a new one rounds nothing again.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/attention/chunk_attention.h"
#include "pmkvq/kernels/attention/decode_attention.h"

namespace pmkvq {

inline constexpr int64_t kLatentGroup = 128;  // Channels of c that share a (min, range).

struct LatentDecodeShape {
  int64_t num_heads = 0;           // H
  int64_t latent = 0;              // r: 128, 256 or 512.
  int64_t rope = 0;                // dr: 64; of 256 channels 32, too.
  DType float_type = DType::kF16;  // Of 16-bit pages, sinks and metadata: kF16.
  SinkLayout sink;

  int64_t key_values() const { return latent + rope; }
  int64_t groups() const { return latent / kLatentGroup; }
};

// Throws Unsupported for a shape that there is no code for on `device`, naming it.
void CheckLatentDecodeShape(const LatentDecodeShape& shape, DeviceId device);

// Device memory that a call needs for partial results; contents do not matter.
size_t LatentDecodeScratchBytes(const LatentDecodeShape& shape, int64_t num_sequences,
                                int64_t max_pages);

// DecodeOperands with q F16 [B, H, r + dr] and out, or operand, [B, H, r]; entries have c as k and
// k_r as v, the sink's rests are [r / 128, rest_tokens, 128] and [rest_tokens, dr]. Launches on the
// stream and returns. Throws as CheckLatentDecodeShape, and Unsupported in a program without CUDA.
void RunLatentDecode(const LatentDecodeShape& shape, const DecodeOperands& operands,
                     const DeviceBytes& scratch, Stream& stream);

// Of a prompt's chunk: as RunChunkAttention, with q [T, H, r + dr], c as k [T, r], k_r as v [T,
// dr], out [T, H, r]. Expanded pages are rows of r + dr values, multiplied by cuBLASLt with the
// queries of all heads at once.
size_t LatentChunkScratchBytes(const LatentDecodeShape& shape, int64_t num_rows);
void RunLatentChunk(const LatentDecodeShape& shape, const ChunkOperands& operands,
                    const DeviceBytes& scratch, DeviceGemm& gemm, Stream& stream);

namespace ref {
// Oracle in double precision, on the host: all pointers are of the host.
void LatentDecode(const LatentDecodeShape& shape, const DecodeOperands& operands, double* out);
}  // namespace ref

namespace internal {
inline constexpr int64_t kLatentPartHeads = 16;  // Query heads that attend at a time.
// Each backend has them; arguments are checked. One launch takes kMostDecodeSequences.
void RunLatentDecodeCuda(const LatentDecodeShape& shape, const DecodeOperands& operands,
                         const DeviceBytes& scratch, Stream& stream);
// q [T, H, r + dr] rounded to F16, and the sink's rest and the chunk's own rows to keys [columns, r
// + dr], zeros behind them.
void PackLatentChunk(const LatentDecodeShape& shape, const ChunkOperands& operands, int64_t rest,
                     int64_t columns, const ChunkMemory& memory, Stream& stream);
// Pages as rows of keys [128 num_pages, r + dr], F16; rows from num_tokens on are 0.
struct GatherLatents {
  const std::byte* arena = nullptr;
  const PageEntry* entries = nullptr;  // [num_pages]
  const PageBits* bits = nullptr;
  int64_t num_pages = 0;
  int64_t num_tokens = 0;
  std::byte* keys = nullptr;
};
void GatherLatentPages(const LatentDecodeShape& shape, const GatherLatents& pages, Stream& stream);
}  // namespace internal

}  // namespace pmkvq
