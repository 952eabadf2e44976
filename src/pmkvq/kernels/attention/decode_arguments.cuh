// What both launches of decode attention on CUDA are given, and what they count alike.
#pragma once

#include <cuda_fp16.h>

#include "pmkvq/kernels/attention/decode_runs.h"

namespace pmkvq::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kMostHeads = 8;  // Query heads that attend at a time: the columns of a product.
constexpr int kMostSequences = static_cast<int>(pmkvq::internal::kMostDecodeSequences);

// Caches with what most have not (sliding windows, keys per channel) are attended by kernels apart,
// so that the others' loops stay without it.
enum class DecodeKind {
  kPlain,
  kGeneral,
  kFloat,  // decode_float.cuh
};

struct DecodeArguments {
  const __half* q;
  float* out;
  ProductRows operand;  // Or here.
  const uint8_t* arena;
  const PageEntry* entries;
  const PageBits* bits;
  const int32_t* table_rows;
  const int32_t* num_tokens;
  const uint32_t* sink_rests;
  float* partial_out;   // [items, part_heads, D]
  float* partial_sums;  // [items, part_heads, 2]: reference, sum of weights.
  int num_sequences;
  int num_heads;
  int num_kv_heads;
  int group;
  int parts;       // The query heads of a KV head are cut into so many parts,
  int part_heads;  // of so many heads; the last one may have fewer.
  int max_pages;
  SinkLayout sink;
  float scale;       // With log2(e).
  bool deals_pages;  // Of sequences with fewer than internal::kDealtPages.
  // How it is launched; changes no bit. Blocks a multiprocessor, at most; whether a block merges
  // the runs of one query head, and not those of all that share pages.
  int most_blocks;
  bool merges_heads;
  // Not of kPlain:
  int window;  // Tokens that the newest one sees, itself included.
  bool keys_by_channel;
};

// What both kernels read of the operands; the rest is 0.
inline DecodeArguments ArgumentsOf(const DecodeOperands& operands, const SinkLayout& sink) {
  DecodeArguments arguments{};
  arguments.q = reinterpret_cast<const __half*>(operands.q);
  arguments.out = operands.out;
  arguments.operand = operands.operand;
  arguments.arena = reinterpret_cast<const uint8_t*>(operands.arena);
  arguments.entries = operands.entries;
  arguments.bits = operands.bits;
  arguments.table_rows = operands.table_rows;
  arguments.num_tokens = operands.num_tokens;
  arguments.sink_rests = operands.sink_rests;
  arguments.num_sequences = static_cast<int>(operands.num_sequences);
  arguments.max_pages = static_cast<int>(operands.max_pages);
  arguments.sink = sink;
  return arguments;
}

__device__ __forceinline__ int NumPages(int tokens_in_pages) {
  return (tokens_in_pages + fragment::kTokens - 1) / fragment::kTokens;
}
// Tokens of a sequence; none behind the last one.
__device__ __forceinline__ int NumTokens(const DecodeArguments& a, int sequence) {
  return sequence < a.num_sequences ? __ldg(a.num_tokens + sequence) : 0;
}
// The row of a sequence in the page tables.
__device__ __forceinline__ int TableRow(const DecodeArguments& a, int sequence) {
  return a.table_rows == nullptr ? sequence : __ldg(a.table_rows + sequence);
}
// Query heads that share pages and attend at a time.
struct HeadPart {
  int kv_head;
  int first;  // Query head.
  int count;
};
__device__ __forceinline__ int NumHeadParts(const DecodeArguments& a) {
  return a.num_kv_heads * a.parts;
}
__device__ __forceinline__ HeadPart HeadPartOf(const DecodeArguments& a, int index) {
  HeadPart part;
  part.kv_head = index / a.parts;
  part.first = part.kv_head * a.group + index % a.parts * a.part_heads;
  part.count = min(a.part_heads, (part.kv_head + 1) * a.group - part.first);
  return part;
}
// The oldest tokens, which the newest one does not see.
template <DecodeKind kKind>
__device__ __forceinline__ int HiddenTokens(const DecodeArguments& a, int num_tokens) {
  return kKind == DecodeKind::kPlain ? 0 : max(0, num_tokens - a.window);
}
// Pages of the table that it does not see, and those that it sees behind them.
template <DecodeKind kKind>
__device__ __forceinline__ int HiddenPages(const DecodeArguments& a, int num_tokens) {
  if constexpr (kKind == DecodeKind::kPlain) return 0;
  return a.sink.InPages(HiddenTokens<kKind>(a, num_tokens)) / fragment::kTokens;
}
template <DecodeKind kKind>
__device__ __forceinline__ int SeenPages(const DecodeArguments& a, int num_tokens) {
  return NumPages(a.sink.InPages(num_tokens)) - HiddenPages<kKind>(a, num_tokens);
}
__device__ __forceinline__ bool AreDealt(const DecodeArguments& a, int num_pages) {
  return a.deals_pages && num_pages < pmkvq::internal::kDealtPages;
}
// Runs of a sequence that sees so many pages.
__device__ __forceinline__ int RunsOf(const DecodeArguments& a, int num_pages) {
  return AreDealt(a, num_pages) ? num_pages : NumRuns(num_pages);
}
template <DecodeKind kKind>
__device__ __forceinline__ int NumItems(const DecodeArguments& a, int num_tokens) {
  return RunsOf(a, SeenPages<kKind>(a, num_tokens)) * NumHeadParts(a);
}
// Tokens of the sink's rest that it does not see.
template <DecodeKind kKind>
__device__ __forceinline__ int HiddenInRest(const DecodeArguments& a, int num_tokens) {
  if constexpr (kKind == DecodeKind::kPlain) return 0;
  return a.sink.InRest(HiddenTokens<kKind>(a, num_tokens));
}
// What a block knows of the batch.
struct BatchTable {
  int item_ends[kMostSequences];  // Items of sequences 0 to s.
  int num_tokens[kMostSequences];
};
// Fills the table; by one warp.
template <DecodeKind kKind>
__device__ __forceinline__ void MakeTable(const DecodeArguments& a, BatchTable& batch) {
  const int lane = threadIdx.x % 32;
  const int tokens[2] = {NumTokens(a, lane), NumTokens(a, lane + 32)};
  int carried = 0;
#pragma unroll
  for (int part = 0; part < kMostSequences / 32; ++part) {
    int sum = NumItems<kKind>(a, tokens[part]);
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
      const int before = __shfl_up_sync(~0u, sum, distance);
      if (lane >= distance) sum += before;
    }
    batch.num_tokens[32 * part + lane] = tokens[part];
    batch.item_ends[32 * part + lane] = sum += carried;
    carried = __shfl_sync(~0u, sum, 31);
  }
}

// The pages of a work item, of a sequence's table. By a whole warp.
struct ItemPages {
  int sequence;
  HeadPart heads;
  int begin;
  int end;
  int first_seen;  // Of the sequence's pages, num_seen of which are seen.
  int num_seen;
  int in_pages;  // Tokens of the sequence in pages, the first `hidden` of which are not seen.
  int hidden;
  bool are_dealt;  // One page, whose parts go to the warps.
};
template <DecodeKind kKind>
__device__ __forceinline__ ItemPages PagesOf(const DecodeArguments& a, const BatchTable& batch,
                                             int item) {
  const int lane = threadIdx.x % 32;
  const int ended = __popc(__ballot_sync(~0u, batch.item_ends[lane] <= item)) +
                    __popc(__ballot_sync(~0u, batch.item_ends[lane + 32] <= item));
  const int first_item = ended == 0 ? 0 : batch.item_ends[ended - 1];
  ItemPages pages;
  pages.sequence = ended;
  pages.heads = HeadPartOf(a, (item - first_item) % NumHeadParts(a));
  pages.in_pages = a.sink.InPages(batch.num_tokens[ended]);
  pages.hidden = 0;
  if constexpr (kKind != DecodeKind::kPlain) {
    pages.hidden = a.sink.InPages(HiddenTokens<kKind>(a, batch.num_tokens[ended]));
  }
  const int hidden_pages = pages.hidden / fragment::kTokens;
  const int num_pages = NumPages(pages.in_pages) - hidden_pages;  // That are seen.
  pages.first_seen = hidden_pages;
  pages.num_seen = num_pages;
  pages.are_dealt = AreDealt(a, num_pages);
  const int run_log2 = pages.are_dealt ? 0 : RunPagesLog2(num_pages);
  const int run = RunsOf(a, num_pages) - 1 - (item - first_item) / NumHeadParts(a);
  const int begin = run << run_log2;
  pages.begin = hidden_pages + begin;
  pages.end = hidden_pages + min(begin + (1 << run_log2), num_pages);
  return pages;
}

// Of sums without a token. A warp may meet tokens that do not count first, hidden ones or those
// behind the last one, whose score -inf must lie below it.
constexpr float kFirstReference = -1e30f;

// Both launches.
template <int kDim, DecodeKind kKind>
void LaunchDecode(const DecodeArguments& arguments, int most_items, Stream& stream);
template <class T, int kDim>
void LaunchFloatDecode(const DecodeArguments& arguments, int most_items, Stream& stream);
extern template void LaunchDecode<64, DecodeKind::kPlain>(const DecodeArguments&, int, Stream&);
extern template void LaunchDecode<64, DecodeKind::kGeneral>(const DecodeArguments&, int, Stream&);
extern template void LaunchDecode<128, DecodeKind::kPlain>(const DecodeArguments&, int, Stream&);
extern template void LaunchDecode<128, DecodeKind::kGeneral>(const DecodeArguments&, int, Stream&);

}  // namespace pmkvq::cuda
