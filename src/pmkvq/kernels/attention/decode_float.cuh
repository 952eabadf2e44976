// Decode attention in float arithmetic, for what the kernels of tensor-core products have no code
// for: heads of 256 values and caches of BF16, at all widths, with windows and keys per channel.
//
// A block has a work item (decode_kernel.cuh) and two query heads of the group; its warps take the
// pages of the run in turn. A lane has the rows and columns that the layout gives it
// (fragment_layout.h): of keys 16 tokens and a quarter of the dims, of values an eighth of the dims
// and a quarter of the tokens. So all values of a lane that are one token's belong to one group of
// at most 128 dims, and a group's step is multiplied once for all of them.
#pragma once

#include <algorithm>

#include "pmkvq/kernels/attention/decode_combine.cuh"
#include "pmkvq/kernels/attention/decode_kernel.cuh"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/cuda/launch.cuh"
#include "pmkvq/tensor/device/cuda_runtime.h"

namespace pmkvq::cuda {

constexpr int kFloatHeads = 2;  // Of a block at a time.

// Two rows (first index) and four columns x, y (second: 2 x + y) of one step of one tile. Codes, or
// 16-bit floats. `base` is the lane's first byte of the block.
template <class T, int kBits, int kCols>
__device__ __forceinline__ void ReadStep(const uint8_t* base, int tile, int step,
                                         float (&values)[2][4]) {
  const int first = tile * fragment::TileWords(kBits, kCols);
  const auto word = [&](int n) {
    return __ldg(reinterpret_cast<const uint32_t*>(base + fragment::WordByte(first + n, 0)));
  };
  if constexpr (kBits == 16) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int y = 0; y < 2; ++y) {
        const float2 two = ToFloats(AsPair<T>(word(4 * step + half + 2 * y)));
        values[half][y] = two.x;
        values[half][2 + y] = two.y;
      }
    }
  } else if constexpr (kBits == 8) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t four = word(2 * step + half);
#pragma unroll
      for (int i = 0; i < 4; ++i) values[half][i] = static_cast<float>(four >> (8 * i) & 0xffu);
    }
  } else {
    const uint32_t rotated = word(kBits == 4 ? step : step >> 1);
    uint32_t codes = __funnelshift_r(rotated, rotated, 2);
    if constexpr (kBits == 2) codes >>= 8 * (step & 1);
    constexpr uint32_t kMask = (1u << kBits) - 1u;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int shift =
            kBits * (half + 2 * (i & 1)) + 4 * kBits * (kBits == 2 ? 2 : 1) * (i >> 1);
        values[half][i] = static_cast<float>(codes >> shift & kMask);
      }
    }
  }
}

// (min, step) of a group.
template <class T>
__device__ __forceinline__ float2 BoundsOf(const T* metadata, int groups, int group,
                                           float max_code) {
  return {ToFloat(metadata[group]), ToFloat(metadata[groups + group]) / max_code};
}

// A warp's sums of two heads over the tokens so far. A lane has D / 8 dims, and of them the part
// that its quarter of each page's tokens makes.
template <int kDim>
struct FloatSums {
  float out[kDim / 16][2][kFloatHeads];
  float minimum[kFloatHeads];  // Weights times minima, for all dims of the lane.
  float reference[kFloatHeads];
  float weight[kFloatHeads];  // Of this lane's tokens.
};

template <class T, int kDim>
class FloatWarp {
 public:
  // Shared memory: queries [2, D], and of this warp weights [2, 128].
  __device__ FloatWarp(const DecodeArguments& a, const float* queries, float* weights)
      : a_(a), queries_(queries), weights_(weights), lane_(threadIdx.x % 32) {}

  // One head of a page, of which tokens first .. tokens are seen.
  __device__ __forceinline__ void Attend(const uint4& entry, const PageBits& bits, int head,
                                         int first, int tokens, FloatSums<kDim>& sums) const {
    float score[8][2][kFloatHeads];
    const uint8_t* const keys = Block(entry.x, bits.k, head);
    const T* const k_metadata = Metadata(entry.z, head, KeyGroups());
    switch (bits.k) {
      case 16:
        Score<16>(keys, k_metadata, score);
        break;
      case 8:
        Score<8>(keys, k_metadata, score);
        break;
      case 4:
        Score<4>(keys, k_metadata, score);
        break;
      default:
        Score<2>(keys, k_metadata, score);
    }
    Weigh(first, tokens, score, sums);
    const uint8_t* const values = Block(entry.y, bits.v, head);
    const T* const v_metadata = Metadata(entry.w, head, kTokenGroups);
    switch (bits.v) {
      case 16:
        AddValues<16>(values, v_metadata, sums);
        break;
      case 8:
        AddValues<8>(values, v_metadata, sums);
        break;
      case 4:
        AddValues<4>(values, v_metadata, sums);
        break;
      default:
        AddValues<2>(values, v_metadata, sums);
    }
    __syncwarp();  // The next page's weights go to the same place.
  }

  // The lanes' parts together: every lane then has its dims' sums over all tokens of the warp.
  __device__ __forceinline__ void Finish(FloatSums<kDim>& sums) const {
#pragma unroll
    for (int h = 0; h < kFloatHeads; ++h) {
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) {
        sums.weight[h] += __shfl_xor_sync(~0u, sums.weight[h], distance);
      }
#pragma unroll
      for (int tile = 0; tile < kDim / 16; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          float& sum = sums.out[tile][half][h];
          sum += sums.minimum[h];
          sum += __shfl_xor_sync(~0u, sum, 1);
          sum += __shfl_xor_sync(~0u, sum, 2);
        }
      }
    }
  }

 private:
  // Groups of a token: of 128 dims at most.
  static constexpr int kGroupsOfToken = kDim > 128 ? kDim / 128 : 1;
  static constexpr int kTokenGroups = kGroupsOfToken * fragment::kTokens;

  __device__ __forceinline__ int KeyGroups() const {
    return a_.keys_by_channel ? kDim : kTokenGroups;
  }
  __device__ __forceinline__ const uint8_t* Block(uint32_t units, int bits, int head) const {
    return a_.arena + static_cast<size_t>(units) * fragment::kArenaUnit +
           static_cast<size_t>(head) * fragment::BlockBytes(bits, kDim) + lane_ * 16;
  }
  __device__ __forceinline__ const T* Metadata(uint32_t units, int head, int groups) const {
    return reinterpret_cast<const T*>(a_.arena +
                                      static_cast<size_t>(units) * fragment::kArenaUnit) +
           static_cast<size_t>(head) * 2 * groups;
  }

  // Scores of tokens 16 g + 2 tile + half, the same in the four lanes of a g.
  template <int kBits>
  __device__ __forceinline__ void Score(const uint8_t* keys, const T* metadata,
                                        float (&score)[8][2][kFloatHeads]) const {
    constexpr float kMaxCode = (1 << kBits) - 1;
    const int g = lane_ >> 2;
    const int t = lane_ & 3;
    float sum[kFloatHeads] = {};  // Of queries; with keys per channel of queries times minima.
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
#pragma unroll
      for (int i = 0; i < 2 * kFloatHeads; ++i) score[tile][i & 1][i >> 1] = 0.0f;
    }
#pragma unroll 1
    for (int step = 0; step < kDim / 16; ++step) {
      float q[kFloatHeads][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int dim = kDim / 4 * t + kDim / 8 * (i >> 1) + 2 * step + (i & 1);
        float2 bounds = {1.0f, 1.0f};
        if (kBits < 16 && a_.keys_by_channel) bounds = BoundsOf(metadata, kDim, dim, kMaxCode);
#pragma unroll
        for (int h = 0; h < kFloatHeads; ++h) {
          const float query = queries_[h * kDim + dim];
          sum[h] = fmaf(query, bounds.x, sum[h]);
          q[h][i] = query * bounds.y;
        }
      }
#pragma unroll
      for (int tile = 0; tile < 8; ++tile) {
        float k[2][4];
        ReadStep<T, kBits, kDim>(keys, tile, step, k);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int h = 0; h < kFloatHeads; ++h) {
              score[tile][half][h] = fmaf(q[h][i], k[half][i], score[tile][half][h]);
            }
          }
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < 8; ++tile) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float2 bounds = {kBits < 16 ? 1.0f : 0.0f, 1.0f};
        if (kBits < 16 && !a_.keys_by_channel) {
          const int token = 16 * g + 2 * tile + half;
          const int group = token * kGroupsOfToken + t * kGroupsOfToken / 4;
          bounds = BoundsOf(metadata, kTokenGroups, group, kMaxCode);
        }
#pragma unroll
        for (int h = 0; h < kFloatHeads; ++h) {
          float& s = score[tile][half][h];
          s = fmaf(s, bounds.y, sum[h] * bounds.x);
          s += __shfl_xor_sync(~0u, s, 1);
          s += __shfl_xor_sync(~0u, s, 2);
        }
      }
    }
  }

  // Scores to weights in shared memory; sums are brought along.
  __device__ __forceinline__ void Weigh(int first, int tokens,
                                        const float (&score)[8][2][kFloatHeads],
                                        FloatSums<kDim>& sums) const {
    const int g = lane_ >> 2;
#pragma unroll
    for (int h = 0; h < kFloatHeads; ++h) {
      float shown[8][2];
      float largest = -INFINITY;
#pragma unroll
      for (int tile = 0; tile < 8; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int token = 16 * g + 2 * tile + half;
          const bool is_seen = first <= token && token < tokens;
          shown[tile][half] = is_seen ? score[tile][half][h] * a_.scale : -INFINITY;
          largest = fmaxf(largest, shown[tile][half]);
        }
      }
#pragma unroll
      for (int distance = 4; distance < 32; distance *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
      }
      const float reference = fmaxf(sums.reference[h], largest);
      const float factor = Exp2(sums.reference[h] - reference);
      sums.reference[h] = reference;
      sums.weight[h] *= factor;
      sums.minimum[h] *= factor;
#pragma unroll
      for (int tile = 0; tile < kDim / 16; ++tile) {
        sums.out[tile][0][h] *= factor;
        sums.out[tile][1][h] *= factor;
      }
#pragma unroll
      for (int tile = 0; tile < 8; ++tile) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float weight = Exp2(shown[tile][half] - reference);
          sums.weight[h] += weight;
          if ((tile & 3) == (lane_ & 3)) {
            weights_[h * fragment::kTokens + 16 * g + 2 * tile + half] = weight;
          }
        }
      }
    }
    __syncwarp();
  }

  template <int kBits>
  __device__ __forceinline__ void AddValues(const uint8_t* values, const T* metadata,
                                            FloatSums<kDim>& sums) const {
    constexpr float kMaxCode = (1 << kBits) - 1;
    const int g = lane_ >> 2;
    const int t = lane_ & 3;
#pragma unroll 1
    for (int step = 0; step < fragment::kTokens / 16; ++step) {
      float p[kFloatHeads][4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int token = 32 * t + 16 * (i >> 1) + 2 * step + (i & 1);
        float2 bounds = {0.0f, 1.0f};
        if constexpr (kBits < 16) {
          const int group = token * kGroupsOfToken + g * kGroupsOfToken / 8;
          bounds = BoundsOf(metadata, kTokenGroups, group, kMaxCode);
        }
#pragma unroll
        for (int h = 0; h < kFloatHeads; ++h) {
          const float weight = weights_[h * fragment::kTokens + token];
          sums.minimum[h] = fmaf(weight, bounds.x, sums.minimum[h]);
          p[h][i] = weight * bounds.y;
        }
      }
#pragma unroll
      for (int tile = 0; tile < kDim / 16; ++tile) {
        float v[2][4];
        ReadStep<T, kBits, fragment::kTokens>(values, tile, step, v);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
#pragma unroll
            for (int h = 0; h < kFloatHeads; ++h) {
              sums.out[tile][half][h] = fmaf(p[h][i], v[half][i], sums.out[tile][half][h]);
            }
          }
        }
      }
    }
  }

  const DecodeArguments& a_;
  const float* queries_;
  float* weights_;
  int lane_;
};

template <class T, int kDim>
__global__ void __launch_bounds__(kThreads, 2)
    FloatDecodeKernel(const __grid_constant__ DecodeArguments a) {
  constexpr DecodeKind kKind = DecodeKind::kFloat;
  __shared__ BatchTable batch;
  __shared__ float queries[kFloatHeads * kDim];
  __shared__ float weights[kWarps][kFloatHeads * fragment::kTokens];
  __shared__ float4 outs[kWarps][kFloatHeads][kDim / 4];
  __shared__ float references[kWarps][kFloatHeads][2];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (warp == 0) MakeTable<kKind>(a, batch);
  __syncthreads();
  const int num_items = batch.item_ends[kMostSequences - 1];
  const int parts = (a.part_heads + kFloatHeads - 1) / kFloatHeads;
  const FloatWarp<T, kDim> self(a, queries, weights[warp]);
  for (int work = blockIdx.x; work < num_items * parts; work += gridDim.x) {
    const int item = work / parts;
    const int first_head = work % parts * kFloatHeads;  // Of the item's.
    const ItemPages pages = PagesOf<kKind>(a, batch, item);
    const int num_heads = max(0, min(kFloatHeads, pages.heads.count - first_head));
    const size_t query =
        (static_cast<size_t>(pages.sequence) * a.num_heads + pages.heads.first + first_head) * kDim;
    for (int i = threadIdx.x; i < kFloatHeads * kDim; i += kThreads) {
      queries[i] = i < num_heads * kDim ? __half2float(a.q[query + i]) : 0.0f;
    }
    __syncthreads();
    FloatSums<kDim> sums{};
#pragma unroll
    for (int h = 0; h < kFloatHeads; ++h) sums.reference[h] = kFirstReference;
    const size_t row = static_cast<size_t>(TableRow(a, pages.sequence)) * a.max_pages;
    for (int page = pages.begin + warp; page < pages.end; page += kWarps) {
      const int before = page * fragment::kTokens;
      self.Attend(__ldg(reinterpret_cast<const uint4*>(a.entries + row + page)), a.bits[row + page],
                  pages.heads.kv_head, max(0, pages.hidden - before),
                  min(fragment::kTokens, pages.in_pages - before), sums);
    }
    self.Finish(sums);
    if (lane % 4 == 0) {  // Dims D / 8 g + 2 tile + half.
#pragma unroll
      for (int h = 0; h < kFloatHeads; ++h) {
#pragma unroll
        for (int tile = 0; tile < kDim / 16; tile += 2) {
          outs[warp][h][kDim / 32 * (lane / 4) + tile / 2] = {
              sums.out[tile][0][h], sums.out[tile][1][h], sums.out[tile + 1][0][h],
              sums.out[tile + 1][1][h]};
        }
      }
    }
    if (lane == 0) {
#pragma unroll
      for (int h = 0; h < kFloatHeads; ++h) {
        references[warp][h][0] = sums.reference[h];
        references[warp][h][1] = sums.weight[h];
      }
    }
    __syncthreads();
    for (int x = threadIdx.x; x < num_heads * (kDim / 4); x += kThreads) {
      const int head = x / (kDim / 4);
      const int four = x % (kDim / 4);
      float reference = -INFINITY;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) reference = fmaxf(reference, references[w][head][0]);
      Merged merged;
      merged.reference = reference;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        merged.Add(Exp2(references[w][head][0] - reference), references[w][head][1],
                   outs[w][head][four]);
      }
      const size_t partial = static_cast<size_t>(item) * a.part_heads + first_head + head;
      __stcg(reinterpret_cast<float4*>(a.partial_out + partial * kDim) + four, merged.out);
      if (four == 0) {
        __stcg(reinterpret_cast<float2*>(a.partial_sums + partial * 2),
               make_float2(reference, merged.weight));
      }
    }
    __syncthreads();
  }
}

template <class T, int kDim>
void LaunchFloatDecode(const DecodeArguments& arguments, int most_items, Stream& stream) {
  const internal::CudaDeviceScope scope(stream.device());
  constexpr int kBlocksPerMultiprocessor = 4;
  const int parts = (arguments.part_heads + kFloatHeads - 1) / kFloatHeads;
  const int blocks =
      std::min(FactsOf(stream.device().index).multiprocessors * kBlocksPerMultiprocessor,
               most_items * parts);
  FloatDecodeKernel<T, kDim>
      <<<static_cast<unsigned>(blocks), kThreads, 0, stream.handle()>>>(arguments);
  internal::CheckLaunch("attention");
  LaunchCombine<kDim, DecodeKind::kFloat, T>(arguments, stream);
}

}  // namespace pmkvq::cuda
