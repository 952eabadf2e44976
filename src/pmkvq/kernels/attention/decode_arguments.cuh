// What both launches of decode attention on CUDA are given, and what they count alike.
#pragma once

#include <cuda_fp16.h>

#include "pmkvq/kernels/attention/decode_attention.h"

namespace pmkvq::cuda {

constexpr int kWarps = 4;
constexpr int kThreads = 32 * kWarps;
constexpr int kMostHeads = 8;  // Query heads of a KV head: the columns of a product.
constexpr int kMostSequences = static_cast<int>(pmkvq::internal::kMostDecodeSequences);

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
  float* partial_out;   // [items, group, D]
  float* partial_sums;  // [items, group, 2]: reference, sum of weights.
  int num_sequences;
  int num_heads;
  int num_kv_heads;
  int group;
  int max_pages;
  SinkLayout sink;
  float scale;  // With log2(e).
};

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
__device__ __forceinline__ int NumItems(const DecodeArguments& a, int num_tokens) {
  return NumRuns(NumPages(a.sink.InPages(num_tokens))) * a.num_kv_heads;
}
// No partial result is written where one run is everything. Operands are the merging kernel's.
__device__ __forceinline__ bool IsWhole(const DecodeArguments& a, int num_tokens, int num_runs) {
  return num_runs == 1 && a.sink.InRest(num_tokens) == 0 && a.operand.data == nullptr;
}

// Both launches.
template <int kDim>
void LaunchDecode(const DecodeArguments& arguments, int most_items, Stream& stream);
extern template void LaunchDecode<64>(const DecodeArguments&, int, Stream&);
extern template void LaunchDecode<128>(const DecodeArguments&, int, Stream&);

}  // namespace pmkvq::cuda
