// Merging the partial results of decode attention: by the last block of a (sequence, KV head) that
// has written its own, or by a kernel, which may start while the attention kernel still runs.
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

// What one (sequence, KV head) has: the sink's rest, of which tokens first_of_rest .. rest - 1 are
// seen, and runs of pages.
struct Parts {
  int sequence;
  int kv_head;
  int first_of_rest;
  int rest;
  int num_runs;
  int first_item;  // Of run 0; that of the next one is a row of heads before it.
};

using RestScores = float[kMostHeads][fragment::kTokens];  // Of the sink's rest, of a block.

// T: of the sink's rest.
template <int kDim, class T>
__device__ __forceinline__ const T* RestOf(const DecodeArguments& a, const Parts& parts, int side) {
  const uint32_t* slots = a.sink_rests + 2 * TableRow(a, parts.sequence);
  return reinterpret_cast<const T*>(a.arena +
                                    static_cast<size_t>(slots[side]) * fragment::kArenaUnit) +
         static_cast<size_t>(parts.kv_head) * a.sink.rest_tokens * kDim;
}

// By a block, which has to wait for all of its warps behind it.
template <int kDim, class T>
__device__ __forceinline__ void ScoreRest(const DecodeArguments& a, const Parts& parts,
                                          RestScores& scores) {
  const int lane = threadIdx.x % 32;
  const int seen = parts.rest - parts.first_of_rest;
  const T* const keys = RestOf<kDim, T>(a, parts, 0);
  for (int pair = threadIdx.x / 32; pair < a.group * seen; pair += kWarps) {
    const int head = pair / seen;
    const int token = parts.first_of_rest + pair % seen;
    const __half* q =
        a.q +
        (static_cast<size_t>(parts.sequence) * a.num_heads + parts.kv_head * a.group + head) * kDim;
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
}

// The sink's rest, then the runs in their order; by a block.
template <int kDim, class T>
__device__ __forceinline__ void MergeParts(const DecodeArguments& a, const Parts& parts,
                                           const RestScores& scores) {
  const bool has_rest = parts.rest > parts.first_of_rest;
  const T* const values = has_rest ? RestOf<kDim, T>(a, parts, 1) : nullptr;
  for (int x = threadIdx.x; x < a.group * (kDim / 4); x += kThreads) {
    const int head = x / (kDim / 4);
    const int four = x % (kDim / 4);
    Merged merged;
    if (has_rest) {
      float largest = -INFINITY;
      for (int token = parts.first_of_rest; token < parts.rest; ++token) {
        largest = fmaxf(largest, scores[head][token]);
      }
      merged.Raise(largest);
      for (int token = parts.first_of_rest; token < parts.rest; ++token) {
        const auto* pairs =
            reinterpret_cast<const typename Pair<T>::Type*>(values + token * kDim) + 2 * four;
        const float2 v0 = ToFloats(pairs[0]);
        const float2 v1 = ToFloats(pairs[1]);
        merged.Add(Exp2(scores[head][token] - largest), 1.0f, {v0.x, v0.y, v1.x, v1.y});
      }
    }
    const size_t row = static_cast<size_t>(parts.first_item) * a.group + head;
    const float* outs = a.partial_out + row * kDim + 4 * four;
    const float* sums = a.partial_sums + row * 2;
    constexpr int kAtOnce = 8;  // Loads in flight.
    for (int first = 0; first < parts.num_runs; first += kAtOnce) {
      float2 sum[kAtOnce];
      float4 out[kAtOnce];
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r >= parts.num_runs) break;
        const ptrdiff_t at = -static_cast<ptrdiff_t>(first + r) * a.num_kv_heads * a.group;
        sum[r] = __ldcg(reinterpret_cast<const float2*>(sums + at * 2));
        out[r] = __ldcg(reinterpret_cast<const float4*>(outs + at * kDim));
      }
      float largest = merged.reference;
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r < parts.num_runs) largest = fmaxf(largest, sum[r].x);
      }
      merged.Raise(largest);
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r < parts.num_runs) {
          merged.Add(Exp2(sum[r].x - largest), sum[r].y, out[r]);
        }
      }
    }
    const float inverse = 1.0f / merged.weight;
    const float4 value = {merged.out.x * inverse, merged.out.y * inverse, merged.out.z * inverse,
                          merged.out.w * inverse};
    const int in_row = (parts.kv_head * a.group + head) * (kDim / 4) + four;
    const int width = a.num_heads * kDim;
    if (a.operand.data != nullptr) {
      StoreFour(a.operand, width, parts.sequence, in_row, value);
    } else {
      reinterpret_cast<float4*>(a.out + static_cast<size_t>(parts.sequence) * width)[in_row] =
          value;
    }
  }
}

template <DecodeKind kKind>
__device__ __forceinline__ Parts PartsOf(const DecodeArguments& a, int sequence, int kv_head,
                                         int num_tokens) {
  Parts parts;
  parts.sequence = sequence;
  parts.kv_head = kv_head;
  parts.first_of_rest = HiddenInRest<kKind>(a, num_tokens);
  parts.rest = a.sink.InRest(num_tokens);
  parts.num_runs = NumRuns(SeenPages<kKind>(a, num_tokens));
  parts.first_item = 0;
  return parts;
}

// Merges in a launch behind the attention kernel, where a.arrived is null: a block for each
// (sequence, KV head).
template <int kDim, DecodeKind kKind, class T = __half>
__global__ void __launch_bounds__(kThreads)
    CombineKernel(const __grid_constant__ DecodeArguments a) {
  __shared__ RestScores scores;
  // The product behind fetches its first weights while attention runs.
  LetNextKernelStart();
  const int lane = threadIdx.x % 32;
  const int sequence = blockIdx.x / a.num_kv_heads;
  // Up to the wait nothing is read that the attention kernel writes.
  const int num_tokens = NumTokens(a, sequence);
  Parts parts = PartsOf<kKind>(a, sequence, blockIdx.x % a.num_kv_heads, num_tokens);
  const bool has_rest = parts.rest > parts.first_of_rest;
  int before = 0;
#pragma unroll
  for (int first = 0; first < kMostSequences; first += 32) {
    if (first + lane < sequence) before += NumItems<kKind>(a, NumTokens(a, first + lane));
  }
  parts.first_item =
      __reduce_add_sync(~0u, before) + (parts.num_runs - 1) * a.num_kv_heads + parts.kv_head;
  if (has_rest) {
    ScoreRest<kDim, T>(a, parts, scores);
    __syncthreads();
  }
  WaitForEarlierKernel();
  if ((parts.num_runs == 0 && !has_rest) || IsWhole<kKind>(a, num_tokens, parts.num_runs)) return;
  MergeParts<kDim, T>(a, parts, scores);
}

}  // namespace pmkvq::cuda
