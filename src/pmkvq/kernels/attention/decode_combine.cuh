// The kernel that merges the partial results of decode attention. It may start while the attention
// kernel still runs.
#pragma once

#include "pmkvq/kernels/attention/decode_arguments.cuh"
#include "pmkvq/kernels/attention/decode_unit.cuh"
#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/kernels/device_rows/product_rows.cuh"

namespace pmkvq::cuda {

// Takes one more partial result, or token, into a head's sums.
struct Merged {
  float reference = kFirstReference;
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
  __device__ __forceinline__ void Merge(float its_reference, float its_weight,
                                        const float4& its_out) {
    Raise(fmaxf(reference, its_reference));
    Add(Exp2(its_reference - reference), its_weight, its_out);
  }
};

// Runs c, c + kChains and so on are chain c, whose results are added in their order. Then the
// sink's rest and the chains are added in theirs, whichever threads have them.
constexpr int kChains = 4;

// Where the partial results of a sequence and a part of its heads are.
struct PartialResults {
  const float* outs;  // Four dims of a head.
  const float* sums;
  ptrdiff_t row;  // From a run to the next one.
  int num_runs;

  // Adds runs first, first + kStep and so on to chains 0, 1, ... in turn.
  template <int kDim, int kStep, int kCount>
  __device__ __forceinline__ void AddTo(Merged (&chains)[kCount], int first) const {
    constexpr int kAtOnce = 8;  // Loads in flight.
    for (; first < num_runs; first += kAtOnce * kStep) {
      float2 sum[kAtOnce];
      float4 out[kAtOnce];
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        const int run = first + r * kStep;
        if (run >= num_runs) break;
        sum[r] = __ldcg(reinterpret_cast<const float2*>(sums + run * row * 2));
        out[r] = __ldcg(reinterpret_cast<const float4*>(outs + run * row * kDim));
      }
#pragma unroll
      for (int r = 0; r < kAtOnce; ++r) {
        if (first + r * kStep < num_runs) chains[r % kCount].Merge(sum[r].x, sum[r].y, out[r]);
      }
    }
  }
};

// A block merges what one sequence has of a head (kOfHead), a chain by D / 4 threads, or what it
// has of all heads that share pages, all chains of four dims by one thread. T: of the sink's rest.
template <int kDim, bool kOfHead>
constexpr int kCombineThreads = kOfHead ? kChains* kDim / 4 : kThreads;

template <int kDim, DecodeKind kKind, bool kOfHead, class T = __half>
__global__ void __launch_bounds__(kCombineThreads<kDim, kOfHead>)
    CombineKernel(const __grid_constant__ DecodeArguments a) {
  constexpr int kFours = kDim / 4;
  constexpr int kCombiners = kCombineThreads<kDim, kOfHead>;
  constexpr int kHeads = kOfHead ? 1 : kMostHeads;
  __shared__ float scores[kHeads][fragment::kTokens];
  // The product behind fetches its first weights while attention runs.
  LetNextKernelStart();
  const int blocks = kOfHead ? a.part_heads : 1;  // Of a part.
  const int index = static_cast<int>(blockIdx.x) / blocks;
  const int sequence = index / NumHeadParts(a);
  const int part = index % NumHeadParts(a);
  const HeadPart heads = HeadPartOf(a, part);
  const int first_head = kOfHead ? static_cast<int>(blockIdx.x) % blocks : 0;
  const int num_heads = kOfHead ? 1 : heads.count;
  if (first_head >= heads.count) return;
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  // Up to the wait nothing is read that the attention kernel writes.
  const int num_tokens = NumTokens(a, sequence);
  const int rest = a.sink.InRest(num_tokens);
  const int first_of_rest = HiddenInRest<kKind>(a, num_tokens);
  const int seen_rest = rest - first_of_rest;
  const int num_runs = RunsOf(a, SeenPages<kKind>(a, num_tokens));
  int first_item = 0;
#pragma unroll
  for (int first = 0; first < kMostSequences; first += 32) {
    if (first + lane < sequence) first_item += NumItems<kKind>(a, NumTokens(a, first + lane));
  }
  // Of run 0; that of the next one is a row of heads before it.
  first_item = __reduce_add_sync(~0u, first_item) + (num_runs - 1) * NumHeadParts(a) + part;

  const T* values = nullptr;
  if (seen_rest > 0) {
    const size_t skipped = static_cast<size_t>(heads.kv_head) * a.sink.rest_tokens * kDim;
    const uint32_t* slots = a.sink_rests + 2 * TableRow(a, sequence);
    const auto of_head = [&](uint32_t slot) {
      return reinterpret_cast<const T*>(a.arena +
                                        static_cast<size_t>(slot) * fragment::kArenaUnit) +
             skipped;
    };
    const T* const keys = of_head(slots[0]);
    values = of_head(slots[1]);
    for (int pair = warp; pair < num_heads * seen_rest; pair += kCombiners / 32) {
      const int head = pair / seen_rest;
      const int token = first_of_rest + pair % seen_rest;
      const __half* const q =
          a.q +
          (static_cast<size_t>(sequence) * a.num_heads + heads.first + first_head + head) * kDim;
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
  if (num_runs == 0 && seen_rest == 0) return;

  const auto results_of = [&](int head, int four) {
    const size_t row = static_cast<size_t>(first_item) * a.part_heads + first_head + head;
    return PartialResults{a.partial_out + row * kDim + 4 * four, a.partial_sums + row * 2,
                          -static_cast<ptrdiff_t>(NumHeadParts(a)) * a.part_heads, num_runs};
  };
  const auto finish = [&](int head, int four, const auto& chain_of) {
    Merged merged;
    if (seen_rest > 0) {
      for (int token = first_of_rest; token < rest; ++token) {
        merged.reference = fmaxf(merged.reference, scores[head][token]);
      }
      for (int token = first_of_rest; token < rest; ++token) {
        const auto* pairs =
            reinterpret_cast<const typename Pair<T>::Type*>(values + token * kDim) + 2 * four;
        const float2 v0 = ToFloats(pairs[0]);
        const float2 v1 = ToFloats(pairs[1]);
        merged.Add(Exp2(scores[head][token] - merged.reference), 1.0f, {v0.x, v0.y, v1.x, v1.y});
      }
    }
#pragma unroll
    for (int c = 0; c < kChains; ++c) {
      const Merged& chain = chain_of(c);
      merged.Merge(chain.reference, chain.weight, chain.out);
    }
    const float inverse = 1.0f / merged.weight;
    const float4 value = {merged.out.x * inverse, merged.out.y * inverse, merged.out.z * inverse,
                          merged.out.w * inverse};
    const int in_row = (heads.first + first_head + head) * kFours + four;
    const int width = a.num_heads * kDim;
    if (a.operand.data != nullptr) {
      StoreFour(a.operand, width, sequence, in_row, value);
    } else {
      reinterpret_cast<float4*>(a.out + static_cast<size_t>(sequence) * width)[in_row] = value;
    }
  };
  if constexpr (kOfHead) {
    __shared__ Merged chains[kChains][kFours];
    const int chain = threadIdx.x / kFours;
    const int four = threadIdx.x % kFours;
    Merged own[1];
    results_of(0, four).template AddTo<kDim, kChains>(own, chain);
    chains[chain][four] = own[0];
    __syncthreads();
    if (chain == 0) {
      finish(0, four, [&](int c) -> const Merged& { return chains[c][four]; });
    }
  } else {
    for (int x = threadIdx.x; x < num_heads * kFours; x += kCombiners) {
      Merged chains[kChains];
      results_of(x / kFours, x % kFours).template AddTo<kDim, 1>(chains, 0);
      finish(x / kFours, x % kFours, [&](int c) -> const Merged& { return chains[c]; });
    }
  }
}

template <int kDim, DecodeKind kKind, class T = __half>
void LaunchCombine(const DecodeArguments& a, Stream& stream) {
  const int parts = a.num_sequences * a.num_kv_heads * a.parts;
  if (a.merges_heads) {
    LaunchEarly(CombineKernel<kDim, kKind, true, T>, static_cast<unsigned>(parts * a.part_heads),
                kCombineThreads<kDim, true>, stream, "merging attention", a);
  } else {
    LaunchEarly(CombineKernel<kDim, kKind, false, T>, static_cast<unsigned>(parts),
                kCombineThreads<kDim, false>, stream, "merging attention", a);
  }
}

}  // namespace pmkvq::cuda
