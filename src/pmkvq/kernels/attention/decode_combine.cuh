// The kernel that merges the partial results of decode attention. It may start while the attention
// kernel still runs.
#pragma once

#include "pmkvq/kernels/attention/decode_arguments.cuh"
#include "pmkvq/kernels/attention/decode_unit.cuh"
#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/device_rows/product_rows.cuh"

namespace pmkvq::cuda {

// Takes one more partial result, or token, into a head's sums.
struct Merged {
  float reference = -INFINITY;
  float weight = 0.0f;
  float4 out = {0, 0, 0, 0};

  __device__ __forceinline__ void Raise(float to) {
    const float factor = Exp2(reference - to);
    reference = to;
    weight *= factor;
    out = {out.x * factor, out.y * factor, out.z * factor, out.w * factor};
  }
  __device__ __forceinline__ void Add(float factor, float more, const float4& v) {
    weight = fmaf(factor, more, weight);
    out.x = fmaf(factor, v.x, out.x);
    out.y = fmaf(factor, v.y, out.y);
    out.z = fmaf(factor, v.z, out.z);
    out.w = fmaf(factor, v.w, out.w);
  }
};

// A block merges what one sequence has of a part of its heads: the sink's rest, then its runs in
// their order. T: of the sink's rest.
template <int kDim, DecodeKind kKind, class T = __half>
__global__ void __launch_bounds__(kThreads)
    CombineKernel(const __grid_constant__ DecodeArguments a) {
  __shared__ float scores[kMostHeads][fragment::kTokens];
  // The product behind fetches its first weights while attention runs.
  LetNextKernelStart();
  const int sequence = static_cast<int>(blockIdx.x) / NumHeadParts(a);
  const int part = static_cast<int>(blockIdx.x) % NumHeadParts(a);
  const HeadPart heads = HeadPartOf(a, part);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  // Up to the wait nothing is read that the attention kernel writes.
  const int num_tokens = NumTokens(a, sequence);
  const int rest = a.sink.InRest(num_tokens);
  const int first_of_rest = HiddenInRest<kKind>(a, num_tokens);
  const int seen_rest = rest - first_of_rest;
  const int num_runs = NumRuns(SeenPages<kKind>(a, num_tokens));
  const bool has_nothing = num_runs == 0 && seen_rest == 0;
  int first_item = 0;
#pragma unroll
  for (int first = 0; first < kMostSequences; first += 32) {
    if (first + lane < sequence) first_item += NumItems<kKind>(a, NumTokens(a, first + lane));
  }
  // Of run 0; that of the next one is a row of heads before it.
  first_item = __reduce_add_sync(~0u, first_item) + (num_runs - 1) * NumHeadParts(a) + part;

  const T* keys = nullptr;
  const T* values = nullptr;
  if (seen_rest > 0) {
    const size_t skipped = static_cast<size_t>(heads.kv_head) * a.sink.rest_tokens * kDim;
    const uint32_t* slots = a.sink_rests + 2 * TableRow(a, sequence);
    keys =
        reinterpret_cast<const T*>(a.arena + static_cast<size_t>(slots[0]) * fragment::kArenaUnit) +
        skipped;
    values =
        reinterpret_cast<const T*>(a.arena + static_cast<size_t>(slots[1]) * fragment::kArenaUnit) +
        skipped;
    for (int pair = warp; pair < heads.count * seen_rest; pair += kWarps) {
      const int head = pair / seen_rest;
      const int token = first_of_rest + pair % seen_rest;
      const __half* q =
          a.q + (static_cast<size_t>(sequence) * a.num_heads + heads.first + head) * kDim;
      float dot = 0.0f;
#pragma unroll
      for (int d = 0; d < kDim; d += 32) {
        dot = fmaf(__half2float(q[d + lane]), ToFloat(keys[token * kDim + d + lane]), dot);
      }
#pragma unroll
      for (int distance = 16; distance > 0; distance /= 2) {
        dot += __shfl_xor_sync(~0u, dot, distance);
      }
      if (lane == 0) scores[head][token] = dot * a.scale;
    }
    __syncthreads();
  }
  WaitForEarlierKernel();
  if (has_nothing) return;
  for (int x = threadIdx.x; x < heads.count * (kDim / 4); x += kThreads) {
    const int head = x / (kDim / 4);
    const int four = x % (kDim / 4);
    Merged merged;
    if (seen_rest > 0) {
      float largest = -INFINITY;
      for (int token = first_of_rest; token < rest; ++token) {
        largest = fmaxf(largest, scores[head][token]);
      }
      merged.Raise(largest);
      for (int token = first_of_rest; token < rest; ++token) {
        const auto* pairs =
            reinterpret_cast<const typename Pair<T>::Type*>(values + token * kDim) + 2 * four;
        const float2 v0 = ToFloats(pairs[0]);
        const float2 v1 = ToFloats(pairs[1]);
        merged.Add(Exp2(scores[head][token] - largest), 1.0f, {v0.x, v0.y, v1.x, v1.y});
      }
    }
    const size_t row = static_cast<size_t>(first_item) * a.part_heads + head;
    const float* outs = a.partial_out + row * kDim + 4 * four;
    const float* sums = a.partial_sums + row * 2;
    constexpr int kAtOnce = 8;  // Loads in flight.
    for (int first = 0; first < num_runs; first += kAtOnce) {
      float2 sum[kAtOnce];
      float4 out[kAtOnce];
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r >= num_runs) break;
        const ptrdiff_t at = -static_cast<ptrdiff_t>(first + r) * NumHeadParts(a) * a.part_heads;
        sum[r] = __ldcg(reinterpret_cast<const float2*>(sums + at * 2));
        out[r] = __ldcg(reinterpret_cast<const float4*>(outs + at * kDim));
      }
      float largest = merged.reference;
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r < num_runs) largest = fmaxf(largest, sum[r].x);
      }
      merged.Raise(largest);
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r < num_runs) merged.Add(Exp2(sum[r].x - largest), sum[r].y, out[r]);
      }
    }
    const float inverse = 1.0f / merged.weight;
    const float4 value = {merged.out.x * inverse, merged.out.y * inverse, merged.out.z * inverse,
                          merged.out.w * inverse};
    const int in_row = (heads.first + head) * (kDim / 4) + four;
    const int width = a.num_heads * kDim;
    if (a.operand.data != nullptr) {
      StoreFour(a.operand, width, sequence, in_row, value);
    } else {
      reinterpret_cast<float4*>(a.out + static_cast<size_t>(sequence) * width)[in_row] = value;
    }
  }
}

}  // namespace pmkvq::cuda
