#include "pmkvq/kernels/attention/latent_decode.h"

#include <fmt/format.h>

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

constexpr int64_t kSliceColumns = kChunkSlicePages * fragment::kTokens;

int64_t NumParts(const LatentDecodeShape& shape) {
  return (shape.num_heads + internal::kLatentPartHeads - 1) / internal::kLatentPartHeads;
}

// Columns are whole eights: a leading dimension of 16 bytes.
int64_t Padded(int64_t columns) { return (columns + 7) / 8 * 8; }

// Arrays of a chunk's memory, or only their bytes where `data` is null.
internal::ChunkMemory CutMemory(const LatentDecodeShape& shape, int64_t num_rows, std::byte* data,
                                size_t& used) {
  const auto take = [&](int64_t count, size_t size) {
    constexpr size_t kAlign = 256;
    std::byte* const part = data == nullptr ? nullptr : data + used;
    used += (static_cast<size_t>(count) * size + kAlign - 1) / kAlign * kAlign;
    return part;
  };
  const int64_t rows = shape.num_heads * num_rows;
  const int64_t columns = std::max(kSliceColumns, Padded(shape.sink.rest_tokens + num_rows));
  internal::ChunkMemory memory;
  memory.q = take(rows * shape.key_values(), 2);
  memory.k = take(columns * shape.key_values(), 2);
  memory.scores = reinterpret_cast<float*>(take(rows * columns, sizeof(float)));
  memory.weights = take(rows * columns, 2);
  memory.sums = reinterpret_cast<float*>(take(rows * shape.latent, sizeof(float)));
  memory.references = reinterpret_cast<float*>(take(rows * 2, sizeof(float)));
  return memory;
}

// What the steps of chunk_attention.h know of it: one head of r values that all queries share.
DecodeShape AsOneHead(const LatentDecodeShape& shape) {
  DecodeShape one;
  one.num_heads = shape.num_heads;
  one.num_kv_heads = 1;
  one.head_dim = shape.latent;
  one.scale = 1.0f;
  one.float_type = shape.float_type;
  one.sink = shape.sink;
  return one;
}

}  // namespace

void CheckLatentDecodeShape(const LatentDecodeShape& shape, DeviceId device) {
  PMKVQ_CHECK(shape.num_heads > 0);
  PMKVQ_CHECK(shape.sink.piece_tokens % fragment::kTokens == 0);
  PMKVQ_CHECK(0 <= shape.sink.rest_tokens && shape.sink.rest_tokens < fragment::kTokens);
  const auto refuse = [&](const std::string& what) {
    throw Unsupported(NameOf(device), "attention: " + what + "; use --device cpu");
  };
  const int64_t groups = shape.groups();
  const bool has_latent =
      shape.latent % kLatentGroup == 0 && (groups == 1 || groups == 2 || groups == 4);
  const bool has_rope = shape.rope == 64 || (shape.rope == 32 && groups == 2);
  if (!has_latent || !has_rope) {
    refuse(
        fmt::format("found latents of {} + {} values, expected 128, 256 or 512 and 64, or 256 "
                    "and 32",
                    shape.latent, shape.rope));
  }
  if (shape.float_type != DType::kF16) {
    refuse(fmt::format("found latents in a cache of {}, expected F16 (--kv-dtype f16)",
                       NameOf(shape.float_type)));
  }
}

size_t LatentDecodeScratchBytes(const LatentDecodeShape& shape, int64_t num_sequences,
                                int64_t max_pages) {
  const int64_t items = std::min(num_sequences, internal::kMostDecodeSequences) * NumParts(shape) *
                        std::max(1, MostRuns(static_cast<int>(max_pages)));
  return static_cast<size_t>(items * internal::kLatentPartHeads * (shape.latent + 2)) *
         sizeof(float);
}

void RunLatentDecode(const LatentDecodeShape& shape, const DecodeOperands& operands,
                     const DeviceBytes& scratch, Stream& stream) {
  CheckLatentDecodeShape(shape, stream.device());
  PMKVQ_CHECK(scratch.num_bytes >=
              LatentDecodeScratchBytes(shape, operands.num_sequences, operands.max_pages));
  PMKVQ_CHECK(shape.sink.rest_tokens == 0 || operands.sink_rests != nullptr);
  internal::ForEachLaunch(operands, shape.num_heads * shape.key_values(),
                          shape.num_heads * shape.latent, [&](const DecodeOperands& part) {
                            internal::RunLatentDecodeCuda(shape, part, scratch, stream);
                          });
}

size_t LatentChunkScratchBytes(const LatentDecodeShape& shape, int64_t num_rows) {
  size_t used = 0;
  CutMemory(shape, num_rows, nullptr, used);
  return used;
}

void RunLatentChunk(const LatentDecodeShape& shape, const ChunkOperands& operands,
                    const DeviceBytes& scratch, DeviceGemm& gemm, Stream& stream) {
  CheckLatentDecodeShape(shape, stream.device());
  PMKVQ_CHECK(operands.num_rows > 0);
  PMKVQ_CHECK(scratch.num_bytes >= LatentChunkScratchBytes(shape, operands.num_rows));
  size_t used = 0;
  const internal::ChunkMemory memory = CutMemory(shape, operands.num_rows, scratch.data, used);
  const DecodeShape one = AsOneHead(shape);
  const int64_t width = shape.key_values();
  const auto attend = [&](const internal::ChunkSlice& slice) {
    DeviceGemm::Batched scores;
    scores.type = DType::kF16;
    scores.transpose_b = true;
    scores.batches = 1;
    scores.m = operands.num_rows * shape.num_heads;
    scores.n = slice.columns;
    scores.k = width;
    scores.a = memory.q;
    scores.b = memory.k;
    scores.c = reinterpret_cast<std::byte*>(memory.scores);
    scores.lda = scores.ldb = width;
    scores.ldc = slice.columns;
    gemm.MultiplyBatched(scores, stream);
    internal::WeighChunk(one, operands, slice, memory, stream);
    DeviceGemm::Batched sums = scores;
    sums.transpose_b = false;
    sums.n = shape.latent;
    sums.k = slice.columns;
    sums.a = memory.weights;
    sums.c = reinterpret_cast<std::byte*>(memory.sums);
    sums.lda = slice.columns;
    sums.ldc = shape.latent;
    sums.beta = slice.is_own ? 0.0f : 1.0f;
    gemm.MultiplyBatched(sums, stream);
  };
  const int64_t rest = shape.sink.InRest(operands.num_tokens);
  const int64_t in_pages = shape.sink.InPages(operands.num_tokens);
  const int64_t num_pages = (in_pages + fragment::kTokens - 1) / fragment::kTokens;
  const int64_t own_columns = Padded(rest + operands.num_rows);
  internal::PackLatentChunk(shape, operands, rest, own_columns, memory, stream);
  attend({own_columns, rest, 0, /*is_own=*/true});
  for (int64_t page = 0; page < num_pages; page += kChunkSlicePages) {
    const int64_t count = std::min(kChunkSlicePages, num_pages - page);
    const int64_t tokens = std::min(in_pages - page * fragment::kTokens, count * fragment::kTokens);
    internal::GatherLatentPages(
        shape,
        {operands.arena, operands.entries + page, operands.bits + page, count, tokens, memory.k},
        stream);
    attend({count * fragment::kTokens, tokens, page * fragment::kTokens, false});
  }
  internal::FinishChunk(one, operands, memory, stream);
}

}  // namespace pmkvq
