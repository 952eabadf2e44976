// Decode attention over latents on CUDA: work items and shared memory.
//
// A block has a warp for each group of 128 channels of c. All of them go through the same units of
// some tiles of a page. A warp scores its channels, and the rope keys of some of the unit's tiles.
// Parts of scores go through shared memory: each warp adds up those of some half tiles and makes
// weights of them, for references that all warps have in common, which all then read. Each sums its
// own channels, which no other warp touches: nothing is merged within a block.
//
// One more warp copies what they read, ahead of its use and across work items, by 16 bytes a lane:
// so rows are swizzled on their way.
#pragma once

#include <cuda_fp16.h>

#include "pmkvq/kernels/attention/decode_arguments.cuh"
#include "pmkvq/kernels/attention/latent_loader.cuh"
#include "pmkvq/kernels/attention/latent_unit.cuh"
#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/cuda/lane_copy.cuh"

namespace pmkvq::cuda {

constexpr int kLatentHeads = 16;

template <int kGroups, int kRopeDims>
struct LatentMemory {
  static constexpr int kStages = kGroups * kLatentStages * LatentStage<kGroups, kRopeDims>::kBytes;
  static constexpr int kUnit = kCodeTiles * 2 * 32 * 16;  // A float of each score.
  static constexpr int kScores = (kGroups + 1) * kUnit;   // Parts, of all groups and the rope.
  // The largest scores of half tiles, then sums of weights of warps, of heads.
  static constexpr int kHeads = (2 * kCodeTiles + kGroups) * kLatentHeads * 4;
  static constexpr int kWeights = kUnit + kHeads;
  static constexpr int kRopeQueries = kRopeDims / 16 * 32 * 16 + 32 * 8;  // And their sums.
  static constexpr int kBytes = kStages + kScores + kWeights + kRopeQueries;
};

template <int kGroups, int kRopeDims>
__device__ __forceinline__ const __half* LatentQuery(const DecodeArguments& a,
                                                     const LatentUnit& unit, int head, int at) {
  if (head >= unit.num_heads) return nullptr;
  const size_t row = static_cast<size_t>(unit.sequence) * a.num_heads + unit.first_head + head;
  return a.q + row * (kGroups * kGroupDims + kRopeDims) + at;
}

template <int kGroups, int kRopeDims>
class LatentWarp {
 public:
  static constexpr int kRopeSteps = kRopeDims / 16;
  using Stage = LatentStage<kGroups, kRopeDims>;
  using Memory = LatentMemory<kGroups, kRopeDims>;

  __device__ __forceinline__ LatentWarp(const DecodeArguments& a, uint8_t* memory)
      : a_(a),
        scores_(reinterpret_cast<float4*>(memory + Memory::kStages)),
        weights_(reinterpret_cast<float4*>(memory + Memory::kStages + Memory::kScores)),
        heads_(reinterpret_cast<float*>(weights_ + 2 * kCodeTiles * 32)),
        rope_queries_(reinterpret_cast<uint4*>(memory + Memory::kStages + Memory::kScores +
                                               Memory::kWeights)),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32) {}

  // Queries of a new item. The rope's lie in shared memory, which all warps have read by now: since
  // the last unit's they have waited for each other.
  __device__ __forceinline__ void BeginItem(const LatentUnit& unit) {
    const int t = lane_ & 3;
    const __half* heads[2];
    FindQueries(unit, warp_ * kGroupDims + 32 * t, heads);
    MakeLatentQueries<kLatentSteps>(heads, queries_);
    if (warp_ == 0) {
      FindQueries(unit, kGroups * kGroupDims + 4 * kRopeSteps * t, heads);
      LatentQueries<kRopeSteps> queries;
      MakeLatentQueries<kRopeSteps>(heads, queries);
#pragma unroll
      for (int k = 0; k < kRopeSteps; ++k) {
        const uint32_t(&w)[4] = queries.a[k];
        rope_queries_[k * 32 + lane_] = make_uint4(w[0], w[1], w[2], w[3]);
      }
      RopeTotals()[lane_] = make_float2(queries.sum[0], queries.sum[1]);
    }
    BeginSums(sums_);
    SyncFirst<32 * kGroups>();
  }

  __device__ __forceinline__ void Attend(const LatentUnit& unit, const uint8_t* stage) {
    if (unit.bits == 8) {
      AttendWidth<8>(unit, stage);
    } else if (unit.bits == 4) {
      AttendWidth<4>(unit, stage);
    } else if (unit.bits == 2) {
      AttendWidth<2>(unit, stage);
    } else {
      AttendWidth<16>(unit, stage);
    }
  }

  // The item's partial result.
  __device__ __forceinline__ void EndItem(int item, int num_heads) {
    const int g = lane_ >> 2;
    const int t = lane_ & 3;
    const float scale = 1.0f / sums_.scale;
    float minima[2];
    float* const weights = heads_ + 2 * kCodeTiles * kLatentHeads;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float weight = sums_.weight[h];
      float minimum = sums_.minimum[h];
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) {
        weight += __shfl_xor_sync(~0u, weight, distance);
        minimum += __shfl_xor_sync(~0u, minimum, distance);
      }
      minima[h] = minimum;
      if (t == 0) weights[warp_ * kLatentHeads + g + 8 * h] = weight;
    }
    SyncFirst<32 * kGroups>();
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int head = g + 8 * h;
      if (head >= num_heads) continue;
      const float minimum = minima[h];
      const size_t row = static_cast<size_t>(item) * a_.part_heads + head;
      auto* const out = reinterpret_cast<float4*>(a_.partial_out + row * (kGroups * kGroupDims) +
                                                  warp_ * kGroupDims + 32 * t);
#pragma unroll
      for (int x = 0; x < 2; ++x) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {  // Four channels from 16 x + 4 i on.
          float values[4];
#pragma unroll
          for (int c = 0; c < 4; ++c) {
            const int step = 2 * (i & 1) + (c >> 1);
            const int e = 2 * h + (i >> 1);
            values[c] = fmaf(sums_.out[4 * step + 2 * (c & 1) + x][e], scale, minimum);
          }
          __stcg(out + 4 * x + i, make_float4(values[0], values[1], values[2], values[3]));
        }
      }
      if (warp_ == 0 && t == 0) {
        float weight = weights[head];
#pragma unroll
        for (int w = 1; w < kGroups; ++w) weight += weights[w * kLatentHeads + head];
        __stcg(reinterpret_cast<float2*>(a_.partial_sums + row * 2),
               make_float2(sums_.reference[h], weight));
      }
    }
  }

 private:
  static constexpr int kOfPart = 2 * kCodeTiles * 32;
  // Unrolled; a warp alone weighs all, and has no registers left for more than one.
  static constexpr int kTilesAtOnce = kGroups == 1 ? 1 : 4;

  // Places of the channels of heads g and g + 8 from `at` on.
  __device__ __forceinline__ void FindQueries(const LatentUnit& unit, int at,
                                              const __half* (&heads)[2]) const {
    heads[0] = LatentQuery<kGroups, kRopeDims>(a_, unit, lane_ >> 2, at);
    heads[1] = LatentQuery<kGroups, kRopeDims>(a_, unit, (lane_ >> 2) + 8, at);
  }
  __device__ __forceinline__ float2* RopeTotals() const {
    return reinterpret_cast<float2*>(rope_queries_ + kRopeSteps * 32);
  }

  // Scores of the rope keys of the warp's tile j; `tile` of the page.
  template <int kBits>
  __device__ __forceinline__ void ScoreRope(const uint8_t* stage, int j, int tile,
                                            float (&scores)[2][4]) const {
    // A row may be shared by tiles.
    uint32_t w[kRopeSteps * kBits / 4];
    LoadWords(stage + Stage::kRopeAt + j * Stage::kRopeTileBytes + 16 * lane_,
              tile * fragment::TileWords(kBits, kRopeDims) & 3, w);
    LatentQueries<kRopeSteps> queries;
#pragma unroll
    for (int k = 0; k < kRopeSteps; ++k) {
      const uint4 four = rope_queries_[k * 32 + lane_];
      queries.a[k][0] = four.x;
      queries.a[k][1] = four.y;
      queries.a[k][2] = four.z;
      queries.a[k][3] = four.w;
    }
    const float2 totals = RopeTotals()[lane_];
    queries.sum[0] = totals.x;
    queries.sum[1] = totals.y;
    TokenBounds bounds[2][2] = {};
    if constexpr (kBits != 16) {
      const auto* const metadata =
          reinterpret_cast<const uint32_t*>(stage + Stage::kRopeMetadataAt + 64 * j);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int place = 2 * (lane_ & 3) + e;
        MakeBounds<kBits>(metadata[place], metadata[8 + place], e, bounds);
      }
    }
    ScoreTile<kBits, kRopeSteps>(queries, w, bounds, scores);
  }
  template <int kBits>
  static __device__ __forceinline__ void MakeBounds(uint32_t minima, uint32_t ranges, int e,
                                                    TokenBounds (&bounds)[2][2]) {
    const float2 min = HalvesToFloats(minima);
    const float2 range = HalvesToFloats(ranges);
    constexpr float kStep = 1.0f / LargestCode(kBits);
    bounds[0][e] = {range.x * kStep, min.x};
    bounds[1][e] = {range.y * kStep, min.y};
  }

  // Of tile i of the unit.
  template <int kBits>
  __device__ __forceinline__ void LoadBounds(const uint8_t* stage, int i,
                                             TokenBounds (&bounds)[2][2]) const {
    const auto* const words = reinterpret_cast<const uint32_t*>(stage + Stage::kMetadataAt) +
                              2 * (lane_ & 3) * kCodeTiles + i;
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      MakeBounds<kBits>(words[e * kCodeTiles], words[(8 + e) * kCodeTiles], e, bounds);
    }
  }
  // The largest range of the unit's tokens: numbers of one sign are ordered as their bits are.
  __device__ __forceinline__ float LargestRange(const uint8_t* stage) const {
    const auto* const words =
        reinterpret_cast<const uint32_t*>(stage + Stage::kMetadataAt) + 8 * kCodeTiles;
    uint32_t largest = 0;
#pragma unroll
    for (int i = 0; i < 8 * kCodeTiles / 32; ++i) {
      const uint32_t two = words[32 * i + lane_];
      largest = max(largest, max(two & 0xffffu, two >> 16));
    }
    if constexpr (8 * kCodeTiles < 32) {
      if (lane_ < 8 * kCodeTiles) largest = max(words[lane_] & 0xffffu, words[lane_] >> 16);
    }
    return HalvesToFloats(__reduce_max_sync(~0u, largest)).x;
  }

  __device__ __forceinline__ void StorePart(int part, int i, const float (&scores)[2][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float(&s)[4] = scores[half];
      scores_[part * kOfPart + (2 * i + half) * 32 + lane_] = make_float4(s[0], s[1], s[2], s[3]);
    }
  }

  // Adds up the parts of the scores of this warp's half tiles, and leaves their weights for all.
  template <int kBits>
  __device__ __forceinline__ void ShareWeights(const LatentUnit& unit) {
    constexpr int kHalves = 2 * LatentTiles(kBits);
    constexpr int kRounds = (kHalves + kGroups - 1) / kGroups;
    SyncFirst<32 * kGroups>();
    float own[kRounds][4];
    bool is_above = false;
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int n = warp_ + round * kGroups;
      if (kHalves % kGroups != 0 && n >= kHalves) break;
      float4 sum = scores_[n * 32 + lane_];
#pragma unroll
      for (int part = 1; part <= kGroups; ++part) {
        const float4 more = scores_[part * kOfPart + n * 32 + lane_];
        sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
      }
      float(&s)[4] = own[round];
      s[0] = sum.x;
      s[1] = sum.y;
      s[2] = sum.z;
      s[3] = sum.w;
      if constexpr (kBits == 16) HideTokens(unit.tile + n / 2, n % 2, unit.tokens, lane_, s);
#pragma unroll
      for (int e = 0; e < 4; ++e) is_above |= s[e] > sums_.reference[e >> 1] + kRoomLog2;
      weights_[n * 32 + lane_] = WeightsOf(s);
    }
    // Parts and weights are written again behind the next unit's barriers only.
    if (SyncFirstOr<32 * kGroups>(is_above)) {
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const int n = warp_ + round * kGroups;
        if (kHalves % kGroups != 0 && n >= kHalves) break;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float largest = fmaxf(own[round][2 * h], own[round][2 * h + 1]);
#pragma unroll
          for (int distance = 1; distance < 4; distance *= 2) {
            largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
          }
          if ((lane_ & 3) == 0) heads_[n * kLatentHeads + (lane_ >> 2) + 8 * h] = largest;
        }
      }
      SyncFirst<32 * kGroups>();
      float largest[2] = {kNoReference, kNoReference};
#pragma unroll
      for (int n = 0; n < kHalves; ++n) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          largest[h] = fmaxf(largest[h], heads_[n * kLatentHeads + (lane_ >> 2) + 8 * h]);
        }
      }
      RaiseReferences(sums_, largest);
#pragma unroll
      for (int round = 0; round < kRounds; ++round) {
        const int n = warp_ + round * kGroups;
        if (kHalves % kGroups != 0 && n >= kHalves) break;
        weights_[n * 32 + lane_] = WeightsOf(own[round]);
      }
      SyncFirst<32 * kGroups>();
    }
#pragma unroll
    for (int round = 0; round < kRounds; ++round) {
      const int n = warp_ + round * kGroups;
      if (kHalves % kGroups != 0 && n >= kHalves) break;
      const float4 p = weights_[n * 32 + lane_];
      sums_.weight[0] += p.x + p.y;
      sums_.weight[1] += p.z + p.w;
    }
  }
  __device__ __forceinline__ float4 WeightsOf(const float (&s)[4]) const {
    return make_float4(Exp2(s[0] - sums_.reference[0]), Exp2(s[1] - sums_.reference[0]),
                       Exp2(s[2] - sums_.reference[1]), Exp2(s[3] - sums_.reference[1]));
  }

  template <int kBits>
  __device__ __forceinline__ void AttendWidth(const LatentUnit& unit, const uint8_t* stage) {
    constexpr int kTiles = LatentTiles(kBits);
#pragma unroll kTilesAtOnce
    for (int i = 0; i < kTiles; ++i) {
      uint32_t w[kLatentSteps * kBits / 4];
      LoadOwnWords<kBits>(stage, i, lane_, w);
      float scores[2][4];
      TokenBounds bounds[2][2] = {};
      if constexpr (kBits != 16) LoadBounds<kBits>(stage, i, bounds);
      ScoreTile<kBits, kLatentSteps>(queries_, w, bounds, scores);
      StorePart(warp_, i, scores);
    }
    ScoreRopes(unit, stage, kTiles);
    ShareWeights<kBits>(unit);
    RaiseStep(sums_, kBits == 16 ? 1.0f : LargestRange(stage) * (1.0f / LargestCode(kBits)));
#pragma unroll kTilesAtOnce
    for (int i = 0; i < kTiles; ++i) {
      float p[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float4 four = weights_[(2 * i + half) * 32 + lane_];
        p[half][0] = four.x;
        p[half][1] = four.y;
        p[half][2] = four.z;
        p[half][3] = four.w;
      }
      TokenBounds bounds[2][2] = {};
      if constexpr (kBits != 16) LoadBounds<kBits>(stage, i, bounds);
      AddValues<kBits>(sums_, stage, i, unit.tile, unit.tokens, lane_, p, bounds);
    }
  }

  // Of the unit's tiles that are this warp's.
  __device__ __forceinline__ void ScoreRopes(const LatentUnit& unit, const uint8_t* stage,
                                             int tiles) {
#pragma unroll 1
    for (int j = 0; warp_ + j * kGroups < tiles; ++j) {
      const int i = warp_ + j * kGroups;
      float scores[2][4];
      if (unit.rope_bits == 8) {
        ScoreRope<8>(stage, j, unit.tile + i, scores);
      } else if (unit.rope_bits == 16) {
        ScoreRope<16>(stage, j, unit.tile + i, scores);
      } else if (unit.rope_bits == 4) {
        ScoreRope<4>(stage, j, unit.tile + i, scores);
      } else {
        ScoreRope<2>(stage, j, unit.tile + i, scores);
      }
      StorePart(kGroups, i, scores);
    }
  }

  const DecodeArguments& a_;
  float4* const scores_;   // Parts: [group, rope last][2 tile + half][lane].
  float4* const weights_;  // [2 tile + half][lane]
  float* const heads_;     // Largest scores [2 tile + half][head], sums of weights [warp][head].
  uint4* const rope_queries_;  // [step][lane], then their sums.
  const int lane_;
  const int warp_;
  LatentQueries<kLatentSteps> queries_;
  LatentSums sums_;
};

// Of a multiprocessor, by registers; by shared memory others than sm_90 hold fewer.
__host__ __device__ constexpr int LatentBlocks(int groups) {
  if (!kHasBulkCopies) return 1;
  return groups == 1 ? 4 : groups == 2 ? 3 : 2;
}

template <int kGroups, int kRopeDims>
__global__ void __launch_bounds__(32 * (kGroups + 1), LatentBlocks(kGroups))
    LatentKernel(const __grid_constant__ DecodeArguments a) {
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ __align__(8) uint64_t barriers[2][kLatentStages];  // Full, empty.
  __shared__ LatentUnit units[kLatentStages];
  __shared__ BatchTable batch;
  const int warp = threadIdx.x / 32;
  const uint32_t full = SharedAddress(barriers[0]);
  const uint32_t empty = SharedAddress(barriers[1]);
  if (warp == 0) MakeTable<DecodeKind::kPlain>(a, batch);
  if (threadIdx.x == 0) {
#pragma unroll
    for (int stage = 0; stage < kLatentStages; ++stage) {
      InitArrivals(full + 8 * stage, 32 + 1);
      InitArrivals(empty + 8 * stage, kGroups);
    }
  }
  __syncthreads();
  WaitForEarlierKernel();
  LetNextKernelStart();
  constexpr int kStageBytes = kGroups * LatentStage<kGroups, kRopeDims>::kBytes;
  if (warp == kGroups) {
    LatentLoader<kGroups, kRopeDims> loader(a, batch, memory, units);
    for (uint32_t turn = 0, has_unit = 1; has_unit != 0; ++turn) {
      const uint32_t stage = turn % kLatentStages;
      if (turn >= kLatentStages) Wait(empty + 8 * stage, (turn / kLatentStages + 1) % 2);
      has_unit = loader.Push(static_cast<int>(stage));
      ArriveWithCopies(full + 8 * stage);
      if (threadIdx.x % 32 == 0) Arrive(full + 8 * stage);  // What it has written of the unit.
      __syncwarp();
    }
    return;
  }
  LatentWarp<kGroups, kRopeDims> self(a, memory);
  for (uint32_t turn = 0;; ++turn) {
    const uint32_t stage = turn % kLatentStages;
    Wait(full + 8 * stage, turn / kLatentStages % 2);
    const LatentUnit& unit = units[stage];
    const int item = unit.item;
    if (item < 0) break;
    if (unit.begins_item) self.BeginItem(unit);
    self.Attend(unit,
                memory + stage * kStageBytes + warp * LatentStage<kGroups, kRopeDims>::kBytes);
    const int ending_heads = unit.ends_item ? unit.num_heads : 0;
    __syncwarp();
    if (threadIdx.x % 32 == 0) Arrive(empty + 8 * stage);
    if (ending_heads > 0) self.EndItem(item, ending_heads);
  }
}

}  // namespace pmkvq::cuda
