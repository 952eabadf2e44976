// The attention kernel for pages of all widths.
//
// Work is items: a run of pages of one KV head of one sequence, newest runs first, since new pages
// are wide and what ends last should be short. A grid of as many blocks as the device holds takes
// them with a fixed stride. A block is four warps (decode_warp.cuh); the pages of a run go to them
// in turn, or the units of a run's only page. No barrier of the whole block is in the loop over
// pages.
#pragma once

#include "pmkvq/kernels/attention/decode_warp.cuh"

namespace pmkvq::cuda {

// Merges the warps' results of an item, a thread four dims of a head, and stores them.
template <int kDim, DecodeKind kKind>
__device__ __forceinline__ void MergeWarps(const DecodeArguments& a, int item, int num_heads,
                                           uint8_t* memory,
                                           const float (&references)[kWarps][kMostHeads][2]) {
  using Memory = WarpMemory<kDim>;
  for (int x = threadIdx.x; x < num_heads * (kDim / 4); x += kThreads) {
    const int head = x / (kDim / 4);
    const int four = x % (kDim / 4);
    float reference = -INFINITY;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) reference = fmaxf(reference, references[w][head][0]);
    float weight = 0.0f;
    float4 out = {0, 0, 0, 0};
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      const float factor = Exp2(references[w][head][0] - reference);
      uint8_t* const values = memory + w * Memory::kBytes + Memory::kCodes + Memory::kMetadata;
      const float4 v =
          *reinterpret_cast<const float4*>(DecodeWarp<kDim, kKind>::Deposited(values, head, four));
      weight = fmaf(factor, references[w][head][1], weight);
      out.x = fmaf(factor, v.x, out.x);
      out.y = fmaf(factor, v.y, out.y);
      out.z = fmaf(factor, v.z, out.z);
      out.w = fmaf(factor, v.w, out.w);
    }
    const size_t row = static_cast<size_t>(item) * a.part_heads + head;
    __stcg(reinterpret_cast<float4*>(a.partial_out + row * kDim) + four, out);
    if (four == 0) {
      __stcg(reinterpret_cast<float2*>(a.partial_sums + row * 2), make_float2(reference, weight));
    }
  }
}

// Blocks that a multiprocessor is to hold: what its shared memory has room for. Registers follow.
template <DecodeKind kKind>
constexpr int kResidentBlocks = kHasBulkCopies&& kKind == DecodeKind::kPlain ? 3 : 2;

template <int kDim, DecodeKind kKind>
__global__ void __launch_bounds__(kThreads, kResidentBlocks<kKind>)
    DecodeKernel(const __grid_constant__ DecodeArguments a) {
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ __align__(8) uint64_t barriers[kWarps][2];
  __shared__ float references[kWarps][kMostHeads][2];
  __shared__ BatchTable batch;
  const int warp = threadIdx.x / 32;
  if (warp == 0) MakeTable<kKind>(a, batch);
  using Warp = DecodeWarp<kDim, kKind>;
  const UnitMetadata* ones = nullptr;
  if constexpr (kKind == DecodeKind::kGeneral) {
    __shared__ __align__(16) UnitMetadata unit;
    unit.words[threadIdx.x] = kOnes;
    ones = &unit;
  }
  Warp self(a, memory + warp * WarpMemory<kDim>::kBytes, barriers[warp], batch, ones);
  __syncthreads();
  const int num_items = batch.item_ends[kMostSequences - 1];
  int item = blockIdx.x;
  WarpPages pages{};
  if (item < num_items) pages = self.Fetch(item, num_items);
  WaitForEarlierKernel();  // Tables are the host's; queries and pages are not.
  // Behind the wait, and by all blocks: the kernel that merges reads queries and the sink before it
  // waits.
  LetNextKernelStart();
  if (item >= num_items) return;
  self.CopyFirstKeys(pages);
  uint4 rows[kDim / 32];
  self.LoadQueries(pages.first_query, pages.num_heads(), rows);
  for (; item < num_items; item += gridDim.x) {
    const int next_item = item + gridDim.x;
    const WarpPages next = self.Fetch(next_item, num_items);
    self.CopyFirstValues(pages);
    Queries<kDim> queries;
    self.MakeQueries(rows, queries);
    WarpSums<kDim> sums{};
    sums.reference[0] = sums.reference[1] = kFirstReference;
    self.Attend(pages, next, queries, sums);
    self.Deposit(sums, pages.num_heads(), references[warp]);
    self.LoadQueries(next.first_query, next.num_heads(), rows);  // None behind the last item.
    __syncthreads();
    MergeWarps<kDim, kKind>(a, item, pages.num_heads(), memory, references);
    FenceForCopies();
    __syncthreads();
    pages = next;
  }
}

}  // namespace pmkvq::cuda
