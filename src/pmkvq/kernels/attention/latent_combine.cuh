// The kernel that merges the partial results of attention over latents.
#pragma once

#include <cuda_fp16.h>

#include "pmkvq/kernels/attention/decode_arguments.cuh"
#include "pmkvq/kernels/attention/latent_kernel.cuh"
#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/device_rows/product_rows.cuh"

namespace pmkvq::cuda {

// A block merges what one sequence has of 16 heads and one group of channels: the sink's rest, then
// its runs in their order. It may start while the attention kernel still runs.
constexpr int kLatentCombineThreads = 128;
template <int kGroups, int kRopeDims>
__global__ void __launch_bounds__(kLatentCombineThreads)
    LatentCombineKernel(const __grid_constant__ DecodeArguments a) {
  constexpr int kLatent = kGroups * kGroupDims;
  constexpr int kQuery = kLatent + kRopeDims;
  constexpr int kFours = kGroupDims / 4;
  __shared__ float scores[kLatentHeads][fragment::kTokens];
  LetNextKernelStart();
  const int sequence = static_cast<int>(blockIdx.x) / a.parts;
  const HeadPart heads = HeadPartOf(a, static_cast<int>(blockIdx.x) % a.parts);
  const int group = blockIdx.y;
  const int lane = threadIdx.x % 32;
  const int num_tokens = NumTokens(a, sequence);
  const int rest = a.sink.InRest(num_tokens);
  const int num_runs = NumRuns(SeenPages<DecodeKind::kPlain>(a, num_tokens));
  const bool has_nothing = num_runs == 0 && rest == 0;
  int first_item = 0;
#pragma unroll
  for (int first = 0; first < kMostSequences; first += 32) {
    if (first + lane < sequence) {
      first_item += NumItems<DecodeKind::kPlain>(a, NumTokens(a, first + lane));
    }
  }
  // Of run 0; that of the next one is a row of parts before it.
  first_item = __reduce_add_sync(~0u, first_item) + (num_runs - 1) * a.parts +
               static_cast<int>(blockIdx.x) % a.parts;

  const __half* latents = nullptr;
  if (rest > 0) {
    const uint32_t* const slots = a.sink_rests + 2 * TableRow(a, sequence);
    const auto at = [&](uint32_t units) {
      return reinterpret_cast<const __half*>(a.arena +
                                             static_cast<size_t>(units) * fragment::kArenaUnit);
    };
    latents = at(slots[0]);
    const __half* const ropes = at(slots[1]);
    const int warps = kLatentCombineThreads / 32;
    for (int pair = threadIdx.x / 32; pair < heads.count * rest; pair += warps) {
      const int head = pair / rest;
      const int token = pair % rest;
      const __half* const q =
          a.q + (static_cast<size_t>(sequence) * a.num_heads + heads.first + head) * kQuery;
      float dot = 0.0f;
#pragma unroll
      for (int d = 0; d < kLatent; d += 32) {
        const int line = d / kGroupDims * a.sink.rest_tokens + token;
        dot = fmaf(__half2float(q[d + lane]),
                   __half2float(latents[line * kGroupDims + d % kGroupDims + lane]), dot);
      }
#pragma unroll
      for (int d = 0; d < kRopeDims; d += 32) {
        dot = fmaf(__half2float(q[kLatent + d + lane]),
                   __half2float(ropes[token * kRopeDims + d + lane]), dot);
      }
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) {
        dot += __shfl_xor_sync(~0u, dot, distance);
      }
      if (lane == 0) scores[head][token] = dot * 1.44269504f;
    }
    latents += static_cast<size_t>(group) * a.sink.rest_tokens * kGroupDims;
    __syncthreads();
  }
  WaitForEarlierKernel();
  if (has_nothing) return;
  for (int x = threadIdx.x; x < heads.count * kFours; x += kLatentCombineThreads) {
    const int head = x / kFours;
    const int four = x % kFours;
    float reference = kNoReference;
    float weight = 0.0f;
    float4 sum = {0, 0, 0, 0};
    const auto raise = [&](float to) {
      const float factor = Exp2(reference - to);
      reference = to;
      weight *= factor;
      sum = {sum.x * factor, sum.y * factor, sum.z * factor, sum.w * factor};
    };
    const auto add = [&](float factor, float more, const float4& v) {
      weight = fmaf(factor, more, weight);
      sum = {fmaf(factor, v.x, sum.x), fmaf(factor, v.y, sum.y), fmaf(factor, v.z, sum.z),
             fmaf(factor, v.w, sum.w)};
    };
    if (rest > 0) {
      float largest = kNoReference;
      for (int token = 0; token < rest; ++token) largest = fmaxf(largest, scores[head][token]);
      raise(largest);
      for (int token = 0; token < rest; ++token) {
        const auto* const pairs =
            reinterpret_cast<const __half2*>(latents + token * kGroupDims) + 2 * four;
        const float2 v0 = __half22float2(pairs[0]);
        const float2 v1 = __half22float2(pairs[1]);
        add(Exp2(scores[head][token] - largest), 1.0f, {v0.x, v0.y, v1.x, v1.y});
      }
    }
    const ptrdiff_t row = static_cast<ptrdiff_t>(first_item) * a.part_heads + head;
    const float* const outs = a.partial_out + row * kLatent + group * kGroupDims + 4 * four;
    const float* const totals = a.partial_sums + row * 2;
    constexpr int kAtOnce = 8;  // Loads in flight.
    for (int first = 0; first < num_runs; first += kAtOnce) {
      float2 total[kAtOnce];
      float4 out[kAtOnce];
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r >= num_runs) break;
        const ptrdiff_t at = -static_cast<ptrdiff_t>(first + r) * a.parts * a.part_heads;
        total[r] = __ldcg(reinterpret_cast<const float2*>(totals + at * 2));
        out[r] = __ldcg(reinterpret_cast<const float4*>(outs + at * kLatent));
      }
      float largest = reference;
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r < num_runs) largest = fmaxf(largest, total[r].x);
      }
      raise(largest);
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r < num_runs) add(Exp2(total[r].x - largest), total[r].y, out[r]);
      }
    }
    const float inverse = 1.0f / weight;
    const float4 value = {sum.x * inverse, sum.y * inverse, sum.z * inverse, sum.w * inverse};
    const int in_row = ((heads.first + head) * kLatent + group * kGroupDims) / 4 + four;
    const int width = a.num_heads * kLatent;
    if (a.operand.data != nullptr) {
      StoreFour(a.operand, width, sequence, in_row, value);
    } else {
      reinterpret_cast<float4*>(a.out + static_cast<size_t>(sequence) * width)[in_row] = value;
    }
  }
}

}  // namespace pmkvq::cuda
