// Decode attention over latents on CUDA: work items and shared memory.
//
// A block has a warp for each group of 128 channels of c. All of them go through the same units of
// up to 64 tokens. A warp scores its channels, and the rope keys of some of the unit's tiles. Parts
// of scores go through shared memory: each warp adds up those of some tiles and makes weights of
// them, for a reference of the tile, which all warps then read. Each sums its own channels, which
// no other warp touches: nothing is merged within a block.
//
// Each warp copies what it reads itself, two units ahead, across work items.
#pragma once

#include <cuda_fp16.h>

#include "pmkvq/kernels/attention/decode_arguments.cuh"
#include "pmkvq/kernels/attention/latent_unit.cuh"
#include "pmkvq/kernels/cuda/copy.cuh"

namespace pmkvq::cuda {

constexpr int kLatentHeads = 16;
constexpr int kGroupDims = 128;
constexpr int kLatentStages = 2;

// A stage of one warp.
template <int kGroups, int kRopeDims>
struct LatentStage {
  static constexpr int kRopeTiles = kMostLatentTiles / kGroups;  // That a warp scores.
  static constexpr int kRopeTileBytes = 16 * kRopeDims * 2;      // At 16 bits.
  static constexpr int kLatents = 8192;
  static constexpr int kRopeAt = kLatents;
  static constexpr int kMetadataAt = kRopeAt + kRopeTiles * kRopeTileBytes;
  static constexpr int kBytes = kMetadataAt + 2 * fragment::MetadataBytes();
};
template <int kGroups, int kRopeDims>
struct LatentMemory {
  static constexpr int kStages = kGroups * kLatentStages * LatentStage<kGroups, kRopeDims>::kBytes;
  static constexpr int kUnit = kMostLatentTiles * 2 * 32 * 16;        // A float of each score.
  static constexpr int kScores = kGroups == 1 ? 0 : kGroups * kUnit;  // Parts, of all warps.
  // Weights, and the references of tiles and heads.
  static constexpr int kWeights = kGroups == 1 ? 0 : kUnit + kMostLatentTiles * kLatentHeads * 4;
  static constexpr int kRopeQueries = kRopeDims / 16 * 32 * 16 + 2 * 32 * 4;
  static constexpr int kBytes = kStages + kScores + kWeights + kRopeQueries;
};

// What a warp is told of the unit in a stage.
struct LatentUnit {
  int item;  // -1: there is none.
  int sequence;
  int first_head;
  int num_heads;
  int bits;       // Of c.
  int rope_bits;  // Of k_r.
  int tile;
  int tokens;  // Of the page.
  bool begins_item;
  bool ends_item;
};

// Goes through the units of a block's items and copies what one warp reads of them.
template <int kGroups, int kRopeDims>
class LatentLoader {
 public:
  using Stage = LatentStage<kGroups, kRopeDims>;

  __device__ __forceinline__ LatentLoader(const DecodeArguments& a, const BatchTable& batch,
                                          uint8_t* stages, LatentUnit* units, uint64_t* barriers)
      : a_(a),
        batch_(batch),
        stages_(stages),
        units_(units),
        barriers_(SharedAddress(barriers)),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32),
        num_items_(batch.item_ends[kMostSequences - 1]),
        item_(static_cast<int>(blockIdx.x)) {
    BeginItem();
  }

  // The next unit into a stage, which nobody reads any more.
  __device__ __forceinline__ void Push(int stage) {
    LatentUnit* const unit = units_ + stage;
    if (item_ >= num_items_) {
      if (lane_ == 0) unit->item = -1;
      __syncwarp();
      return;
    }
    const uint32_t widths = Word(4);
    const int bits = static_cast<int>(widths & 0xff);
    const int rope_bits = static_cast<int>(widths >> 8 & 0xff);
    const int tiles = LatentTiles(bits);
    const bool ends_page = tile_ + tiles >= 8;
    if (lane_ == 0) {
      unit->item = item_;
      unit->sequence = pages_.sequence;
      unit->first_head = pages_.heads.first;
      unit->num_heads = pages_.heads.count;
      unit->bits = bits;
      unit->rope_bits = rope_bits;
      unit->tile = tile_;
      unit->tokens = pages_.in_pages - page_ * fragment::kTokens;
      unit->begins_item = page_ == pages_.begin && tile_ == 0;
      unit->ends_item = ends_page && page_ + 1 == pages_.end;
    }
    Copy(stage, bits, rope_bits, tiles);
    __syncwarp();
    tile_ = ends_page ? 0 : tile_ + tiles;
    if (!ends_page) return;
    if (++page_ < pages_.end) {
      words_ = next_words_;
      ReadNext();
      return;
    }
    item_ += static_cast<int>(gridDim.x);
    BeginItem();
  }

 private:
  __device__ __forceinline__ void BeginItem() {
    if (item_ >= num_items_) return;
    pages_ = PagesOf<DecodeKind::kPlain>(a_, batch_, item_);
    page_ = pages_.begin;
    tile_ = 0;
    table_ = static_cast<size_t>(TableRow(a_, pages_.sequence)) * a_.max_pages;
    words_ = Words(page_);
    ReadNext();
  }
  // An entry of the page table, a word in each of four lanes, and widths in the fifth.
  __device__ __forceinline__ uint32_t Words(int page) const {
    if (lane_ < 4) return reinterpret_cast<const uint32_t*>(a_.entries + table_ + page)[lane_];
    return lane_ == 4 ? *reinterpret_cast<const uint16_t*>(a_.bits + table_ + page) : 0u;
  }
  __device__ __forceinline__ uint32_t Word(int lane) const {
    return __shfl_sync(~0u, words_, lane);
  }
  // Ahead of its use, which would wait for it.
  __device__ __forceinline__ void ReadNext() {
    if (page_ + 1 < pages_.end) next_words_ = Words(page_ + 1);
  }
  __device__ __forceinline__ const uint8_t* At(uint32_t units) const {
    return a_.arena + static_cast<size_t>(units) * fragment::kArenaUnit;
  }

  __device__ __forceinline__ void Copy(int stage, int bits, int rope_bits, int tiles) {
    const uint32_t barrier = barriers_ + 8 * stage;
    const uint32_t to = SharedAddress(stages_ + stage * Stage::kBytes);
    const uint32_t tile_bytes = 2 * kGroupDims * bits;
    // A row of 512 bytes at least, which tiles of fewer bytes share.
    const uint32_t rope_bytes = max(fragment::kRowBytes, 2 * kRopeDims * rope_bits);
    const int rope_tiles = (tiles - warp_ + kGroups - 1) / kGroups;  // 0 where there are too few.
    const uint32_t bytes = tiles * tile_bytes + rope_tiles * rope_bytes +
                           (bits < 16 ? fragment::MetadataBytes() : 0) +
                           (rope_bits < 16 ? fragment::MetadataBytes() : 0);
    BeginCopy(barrier, bytes, lane_);
    CopyBytes(to, At(Word(0)) + warp_ * fragment::BlockBytes(bits, kGroupDims) + tile_ * tile_bytes,
              tiles * tile_bytes, barrier, lane_);
    for (int j = 0; j < rope_tiles; ++j) {
      const int tile = tile_ + warp_ + j * kGroups;
      const uint32_t row = tile * fragment::TileWords(rope_bits, kRopeDims) / 4;
      CopyBytes(to + Stage::kRopeAt + j * Stage::kRopeTileBytes,
                At(Word(1)) + row * fragment::kRowBytes, rope_bytes, barrier, lane_);
    }
    if (bits < 16) {
      CopyBytes(to + Stage::kMetadataAt, At(Word(2)) + warp_ * fragment::MetadataBytes(),
                fragment::MetadataBytes(), barrier, lane_);
    }
    if (rope_bits < 16) {
      CopyBytes(to + Stage::kMetadataAt + fragment::MetadataBytes(), At(Word(3)),
                fragment::MetadataBytes(), barrier, lane_);
    }
    EndCopy(barrier);
  }

  const DecodeArguments& a_;
  const BatchTable& batch_;
  uint8_t* const stages_;
  LatentUnit* const units_;
  const uint32_t barriers_;
  const int lane_;
  const int warp_;
  const int num_items_;
  int item_;
  ItemPages pages_;
  int page_;
  int tile_;
  size_t table_;
  uint32_t words_;
  uint32_t next_words_ = 0;
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
        rope_queries_(reinterpret_cast<uint4*>(memory + Memory::kStages + Memory::kScores +
                                               Memory::kWeights)),
        lane_(threadIdx.x % 32),
        warp_(threadIdx.x / 32) {}

  // Queries of a new item. The rope's lie in shared memory, which all warps have read by now: since
  // the last unit's they have waited for each other.
  __device__ __forceinline__ void BeginItem(const LatentUnit& unit) {
    const int g = lane_ >> 2;
    const int t = lane_ & 3;
    const int at = warp_ * kGroupDims + 32 * t;
    const __half* const heads[2] = {LatentQuery<kGroups, kRopeDims>(a_, unit, g, at),
                                    LatentQuery<kGroups, kRopeDims>(a_, unit, g + 8, at)};
    MakeLatentQueries<kLatentSteps>(heads, queries_);
    if (warp_ == 0) {
      const int rope_at = kGroups * kGroupDims + 4 * kRopeSteps * t;
      const __half* const rope[2] = {LatentQuery<kGroups, kRopeDims>(a_, unit, g, rope_at),
                                     LatentQuery<kGroups, kRopeDims>(a_, unit, g + 8, rope_at)};
      LatentQueries<kRopeSteps> queries;
      MakeLatentQueries<kRopeSteps>(rope, queries);
#pragma unroll
      for (int k = 0; k < kRopeSteps; ++k) {
        rope_queries_[k * 32 + lane_] =
            make_uint4(queries.a[k][0], queries.a[k][1], queries.a[k][2], queries.a[k][3]);
      }
      auto* const totals = reinterpret_cast<float2*>(rope_queries_ + kRopeSteps * 32);
      totals[lane_] = make_float2(queries.sum[0], queries.sum[1]);
    }
    BeginSums(sums_);
    __syncthreads();
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
    const float scale = Exp2(static_cast<float>(sums_.scale_log2) - kWeightLog2);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float weight = sums_.weight[h];
      float minimum = sums_.minimum[h];
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) {
        weight += __shfl_xor_sync(~0u, weight, distance);
        minimum += __shfl_xor_sync(~0u, minimum, distance);
      }
      const int head = g + 8 * h;
      if (head >= num_heads) continue;
      const size_t row = static_cast<size_t>(item) * a_.part_heads + head;
      auto* const out = reinterpret_cast<float4*>(a_.partial_out + row * (kGroups * kGroupDims) +
                                                  warp_ * kGroupDims + 32 * t);
#pragma unroll
      for (int e = 0; e < 2; ++e) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float values[4];
#pragma unroll
          for (int n = 0; n < 4; ++n) {
            values[n] = fmaf(sums_.out[4 * i + n][2 * h + e], scale, minimum);
          }
          __stcg(out + 4 * e + i, make_float4(values[0], values[1], values[2], values[3]));
        }
      }
      if (warp_ == 0 && t == 0) {
        __stcg(reinterpret_cast<float2*>(a_.partial_sums + row * 2),
               make_float2(sums_.reference[h], weight));
      }
    }
  }

 private:
  // Scores of rope keys of the unit's tiles that are this warp's.
  template <int kTiles>
  __device__ __forceinline__ void AddRopeScores(const LatentUnit& unit, const uint8_t* stage,
                                                float (&scores)[kMostLatentTiles][2][4]) {
    LatentQueries<kRopeSteps> queries;
#pragma unroll
    for (int k = 0; k < kRopeSteps; ++k) {
      const uint4 four = rope_queries_[k * 32 + lane_];
      queries.a[k][0] = four.x;
      queries.a[k][1] = four.y;
      queries.a[k][2] = four.z;
      queries.a[k][3] = four.w;
    }
    const float2 total = reinterpret_cast<const float2*>(rope_queries_ + kRopeSteps * 32)[lane_];
    queries.sum[0] = total.x;
    queries.sum[1] = total.y;
    const uint8_t* const metadata = stage + Stage::kMetadataAt + fragment::MetadataBytes();
#pragma unroll 1
    for (int j = 0; warp_ + j * kGroups < kTiles; ++j) {
      const int tile = warp_ + j * kGroups;
      const uint8_t* const base = stage + Stage::kRopeAt + j * Stage::kRopeTileBytes + lane_ * 16;
      float own[2][4];
      const auto score = [&]<int kRopeBits>() {
        RopeScores<kRopeBits, kRopeSteps>(queries, base, metadata, unit.tile + tile, lane_, own);
      };
      if (unit.rope_bits == 8) {
        score.template operator()<8>();
      } else if (unit.rope_bits == 16) {
        score.template operator()<16>();
      } else if (unit.rope_bits == 4) {
        score.template operator()<4>();
      } else {
        score.template operator()<2>();
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (i != tile) continue;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
          for (int e = 0; e < 4; ++e) scores[i][half][e] += own[half][e];
        }
      }
    }
  }

  // Weights of tile i of the unit, 2^(score - reference), where the reference is not below any
  // score of the tile, and these references, of heads g and g + 8.
  template <int kBits>
  __device__ __forceinline__ void WeighTile(const LatentUnit& unit, int i, float (&scores)[2][4],
                                            float (&references)[2]) const {
    if constexpr (kBits == 16) HideTokens(unit.tile + i, unit.tokens, lane_, scores);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float largest = fmaxf(kNoReference, fmaxf(fmaxf(scores[0][2 * h], scores[0][2 * h + 1]),
                                                fmaxf(scores[1][2 * h], scores[1][2 * h + 1])));
#pragma unroll
      for (int distance = 1; distance < 4; distance *= 2) {
        largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, distance));
      }
      references[h] = ceilf(largest);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int e = 2 * h; e < 2 * h + 2; ++e) {
          scores[half][e] = Exp2(scores[half][e] - references[h]);
        }
      }
    }
  }

  // Adds up the parts of the scores of this warp's tiles, and leaves their weights for all.
  template <int kBits>
  __device__ __forceinline__ void ShareWeights(const LatentUnit& unit,
                                               const float (&scores)[kMostLatentTiles][2][4]) {
    constexpr int kTiles = LatentTiles(kBits);
    constexpr int kOfWarp = kMostLatentTiles * 2 * 32;
#pragma unroll
    for (int n = 0; n < 2 * kTiles; ++n) {
      const float(&s)[4] = scores[n / 2][n % 2];
      scores_[warp_ * kOfWarp + n * 32 + lane_] = make_float4(s[0], s[1], s[2], s[3]);
    }
    __syncthreads();
    auto* const references = reinterpret_cast<float*>(weights_ + kOfWarp);
#pragma unroll 1
    for (int i = warp_; i < kTiles; i += kGroups) {
      float whole[2][4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 sum = scores_[(2 * i + half) * 32 + lane_];
#pragma unroll
        for (int w = 1; w < kGroups; ++w) {
          const float4 more = scores_[w * kOfWarp + (2 * i + half) * 32 + lane_];
          sum = {sum.x + more.x, sum.y + more.y, sum.z + more.z, sum.w + more.w};
        }
        whole[half][0] = sum.x;
        whole[half][1] = sum.y;
        whole[half][2] = sum.z;
        whole[half][3] = sum.w;
      }
      float reference[2];
      WeighTile<kBits>(unit, i, whole, reference);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const float(&p)[4] = whole[half];
        weights_[(2 * i + half) * 32 + lane_] = make_float4(p[0], p[1], p[2], p[3]);
      }
      if ((lane_ & 3) == 0) {
        references[i * kLatentHeads + (lane_ >> 2)] = reference[0];
        references[i * kLatentHeads + (lane_ >> 2) + 8] = reference[1];
      }
    }
    // Parts and weights are written again behind the next unit's barriers only.
    __syncthreads();
  }

  template <int kBits>
  __device__ __forceinline__ void AttendWidth(const LatentUnit& unit, const uint8_t* stage) {
    constexpr int kTiles = LatentTiles(kBits);
    const uint8_t* const base = stage + lane_ * 16;
    float scores[kMostLatentTiles][2][4];
    TokenBounds bounds[kMostLatentTiles][2][2];
    LatentScores<kBits>(queries_, base, stage + Stage::kMetadataAt, unit.tile, lane_, scores,
                        bounds);
    AddRopeScores<kTiles>(unit, stage, scores);
    float references[kTiles][2];
    if constexpr (kGroups == 1) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) WeighTile<kBits>(unit, i, scores[i], references[i]);
    } else {
      ShareWeights<kBits>(unit, scores);
      const auto* const shared = reinterpret_cast<const float*>(weights_ + kMostLatentTiles * 64);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        references[i][0] = shared[i * kLatentHeads + (lane_ >> 2)];
        references[i][1] = shared[i * kLatentHeads + (lane_ >> 2) + 8];
      }
    }
    float largest[2] = {references[0][0], references[0][1]};
#pragma unroll
    for (int i = 1; i < kTiles; ++i) {
      largest[0] = fmaxf(largest[0], references[i][0]);
      largest[1] = fmaxf(largest[1], references[i][1]);
    }
    // Both references are whole numbers: nothing is rounded here.
    const auto weigh = [&](int i, float(&p)[2][4]) {
      const float factor[2] = {Exp2(references[i][0] - sums_.reference[0]),
                               Exp2(references[i][1] - sums_.reference[1])};
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        float4 four;
        if constexpr (kGroups == 1) {
          const float(&s)[4] = scores[i][half];
          four = make_float4(s[0], s[1], s[2], s[3]);
        } else {
          four = weights_[(2 * i + half) * 32 + lane_];
        }
        p[half][0] = four.x * factor[0];
        p[half][1] = four.y * factor[0];
        p[half][2] = four.z * factor[1];
        p[half][3] = four.w * factor[1];
      }
    };
    LatentValues<kBits>(sums_, base, unit.tile, unit.tokens, lane_, largest, bounds, weigh);
  }

  const DecodeArguments& a_;
  float4* const scores_;   // Parts: [warp][2 tile + half][lane].
  float4* const weights_;  // [2 tile + half][lane], then references [tile][head].
  uint4* const rope_queries_;
  const int lane_;
  const int warp_;
  LatentQueries<kLatentSteps> queries_;
  LatentSums sums_;
};

template <int kGroups, int kRopeDims>
__global__ void __launch_bounds__(32 * kGroups, kGroups == 1 ? 6 : 8 / kGroups)
    LatentKernel(const __grid_constant__ DecodeArguments a) {
  extern __shared__ __align__(128) uint8_t memory[];
  __shared__ __align__(8) uint64_t barriers[kGroups][kLatentStages];
  __shared__ LatentUnit units[kGroups][kLatentStages];
  __shared__ BatchTable batch;
  const int warp = threadIdx.x / 32;
  if (warp == 0) MakeTable<DecodeKind::kPlain>(a, batch);
#pragma unroll
  for (int stage = 0; stage < kLatentStages; ++stage) {
    InitBarrier(SharedAddress(&barriers[warp][stage]), threadIdx.x % 32);
  }
  __syncthreads();
  WaitForEarlierKernel();
  LetNextKernelStart();
  uint8_t* const stages = memory + warp * kLatentStages * LatentStage<kGroups, kRopeDims>::kBytes;
  LatentLoader<kGroups, kRopeDims> loader(a, batch, stages, units[warp], barriers[warp]);
  LatentWarp<kGroups, kRopeDims> self(a, memory);
#pragma unroll
  for (int stage = 0; stage < kLatentStages; ++stage) loader.Push(stage);
  for (uint32_t turn = 0;; ++turn) {
    const int stage = turn % kLatentStages;
    const LatentUnit& unit = units[warp][stage];
    const int item = unit.item;
    if (item < 0) break;
    Wait(SharedAddress(&barriers[warp][stage]), turn / kLatentStages % 2);
    if (unit.begins_item) self.BeginItem(unit);
    self.Attend(unit, stages + stage * LatentStage<kGroups, kRopeDims>::kBytes);
    const int ending_heads = unit.ends_item ? unit.num_heads : 0;
    __syncwarp();
    loader.Push(stage);
    if (ending_heads > 0) self.EndItem(item, ending_heads);
  }
}

}  // namespace pmkvq::cuda
