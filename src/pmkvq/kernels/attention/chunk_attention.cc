#include "pmkvq/kernels/attention/chunk_attention.h"

#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/kv_quant/page_rows.h"

namespace pmkvq {
namespace {

constexpr int64_t kSliceColumns = kChunkSlicePages * fragment::kTokens;

// Columns are whole eights: a leading dimension of 16 bytes.
int64_t Padded(int64_t columns) { return (columns + 7) / 8 * 8; }

int64_t MostColumns(const DecodeShape& shape, int64_t num_rows) {
  return std::max(kSliceColumns, Padded(shape.sink.rest_tokens + num_rows));
}

// Cuts memory into arrays, or only counts.
class Cutter {
 public:
  explicit Cutter(std::byte* data) : data_(data) {}
  std::byte* Take(int64_t count, size_t size) {
    constexpr size_t kAlign = 256;
    std::byte* const part = data_ == nullptr ? nullptr : data_ + used_;
    used_ += (static_cast<size_t>(count) * size + kAlign - 1) / kAlign * kAlign;
    return part;
  }
  size_t used() const { return used_; }

 private:
  std::byte* data_;
  size_t used_ = 0;
};

internal::ChunkMemory CutMemory(const DecodeShape& shape, int64_t num_rows, Cutter& cutter) {
  const int64_t rows = shape.num_heads * num_rows;  // Hkv * T * G
  const int64_t columns = MostColumns(shape, num_rows);
  const size_t size = SizeOf(internal::ChunkType(shape));
  internal::ChunkMemory memory;
  memory.q = cutter.Take(rows * shape.head_dim, size);
  memory.k = cutter.Take(shape.num_kv_heads * columns * shape.head_dim, size);
  memory.v = cutter.Take(shape.num_kv_heads * columns * shape.head_dim, size);
  memory.scores = reinterpret_cast<float*>(cutter.Take(rows * columns, sizeof(float)));
  memory.weights = cutter.Take(rows * columns, size);
  memory.sums = reinterpret_cast<float*>(cutter.Take(rows * shape.head_dim, sizeof(float)));
  memory.references = reinterpret_cast<float*>(cutter.Take(rows * 2, sizeof(float)));
  return memory;
}

}  // namespace

namespace internal {
DType ChunkType(const DecodeShape& shape) {
  return shape.float_type == DType::kF16 ? DType::kF16 : DType::kF32;
}
}  // namespace internal

size_t ChunkScratchBytes(const DecodeShape& shape, int64_t num_rows) {
  Cutter cutter(nullptr);
  CutMemory(shape, num_rows, cutter);
  return cutter.used();
}

void RunChunkAttention(const DecodeShape& shape, const ChunkOperands& operands,
                       const DeviceBytes& scratch, DeviceGemm& gemm, Stream& stream) {
  internal::CheckDecodeShape(shape, stream.device());
  PMKVQ_CHECK(operands.num_rows > 0);
  PMKVQ_CHECK(scratch.num_bytes >= ChunkScratchBytes(shape, operands.num_rows));
  Cutter cutter(scratch.data);
  const internal::ChunkMemory memory = CutMemory(shape, operands.num_rows, cutter);
  const int64_t heads = shape.num_kv_heads;
  const int64_t dim = shape.head_dim;
  const int64_t rows = operands.num_rows * (shape.num_heads / heads);  // Of a KV head.

  // Of k and v as they lie in memory now.
  const auto attend = [&](const internal::ChunkSlice& slice) {
    const int64_t columns = slice.columns;
    DeviceGemm::Batched scores;
    scores.type = internal::ChunkType(shape);
    scores.out_type = DType::kF32;
    scores.transpose_b = true;
    scores.batches = heads;
    scores.m = rows;
    scores.n = columns;
    scores.k = dim;
    scores.a = memory.q;
    scores.b = memory.k;
    scores.c = reinterpret_cast<std::byte*>(memory.scores);
    scores.lda = scores.ldb = dim;
    scores.ldc = columns;
    scores.stride_a = rows * dim;
    scores.stride_b = columns * dim;
    scores.stride_c = rows * columns;
    scores.alpha = 1.0f;
    scores.beta = 0.0f;
    gemm.MultiplyBatched(scores, stream);
    internal::WeighChunk(shape, operands, slice, memory, stream);
    DeviceGemm::Batched sums = scores;
    sums.transpose_b = false;
    sums.n = dim;
    sums.k = columns;
    sums.a = memory.weights;
    sums.b = memory.v;
    sums.c = reinterpret_cast<std::byte*>(memory.sums);
    sums.lda = columns;
    sums.ldb = sums.ldc = dim;
    sums.stride_a = rows * columns;
    sums.stride_b = columns * dim;
    sums.stride_c = rows * dim;
    sums.beta = slice.is_own ? 0.0f : 1.0f;
    gemm.MultiplyBatched(sums, stream);
  };

  const int64_t rest = shape.sink.InRest(operands.num_tokens);
  const int64_t in_pages = shape.sink.InPages(operands.num_tokens);
  const int64_t num_pages = (in_pages + fragment::kTokens - 1) / fragment::kTokens;
  const int64_t own_columns = Padded(rest + operands.num_rows);
  internal::PackChunk(shape, operands, rest, own_columns, memory, stream);
  attend({own_columns, rest, 0, /*is_own=*/true});
  // The first row sees the most of them.
  const int64_t first_page =
      shape.sink.InPages(shape.Hidden(operands.num_tokens + 1)) / fragment::kTokens;
  for (int64_t page = first_page; page < num_pages; page += kChunkSlicePages) {
    const int64_t count = std::min(kChunkSlicePages, num_pages - page);
    const int64_t tokens = std::min(in_pages - page * fragment::kTokens, count * fragment::kTokens);
    GatherPagesOperands pages;
    pages.arena = operands.arena;
    pages.entries = operands.entries + page;
    pages.bits = operands.bits + page;
    pages.num_pages = count;
    pages.num_tokens = tokens;
    pages.k = memory.k;
    pages.v = memory.v;
    pages.keys_by_channel = shape.keys_by_channel;
    GatherPages(heads, dim, shape.float_type, pages, stream);
    attend({count * fragment::kTokens, tokens, page * fragment::kTokens, false});
  }
  internal::FinishChunk(shape, operands, memory, stream);
}

}  // namespace pmkvq
