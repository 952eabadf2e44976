// The kernel for products with quantised weights: device_codes_layout.h has the layout,
// code_lanes.cuh a warp's part.
//
// The columns of W are cut into eight parts. A sum over each part is made by one warp, in float and
// in the order of columns; then the sums of the parts are added in their order. So a sum's order
// depends on K only.
//
// An item is kStrips times 16 rows of W. A grid of as many blocks as the device holds takes items
// with a fixed stride. Eight warps of a block have a part each; a ninth asks for weights, through a
// ring of stages in shared memory, also for those of the next item, so that the others spend no
// instructions on it. Rows of x, at most four, are loaded a tile ahead: a load right before its
// product cost four times the product.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/gemm/code_lanes.cuh"

namespace pmkvq::cuda {

constexpr int kCodesParts = 8;  // Of the columns.
constexpr int kCodesThreads = 32 * (kCodesParts + 1);

// The first tile of a part.
__device__ __forceinline__ int FirstTile(int tiles_across, int part) {
  return tiles_across * part / kCodesParts;
}

// kStageTiles: of a stage, warp and strip. kStages: at most, as many as there is memory for.
// kBlocks: of a multiprocessor.
template <WeightFormat kFormatOf, int kStripsOf, int kStageTilesOf, int kStagesOf, int kBlocksOf>
struct CodesShape {
  static constexpr WeightFormat kFormat = kFormatOf;
  static constexpr int kStrips = kStripsOf;
  static constexpr int kStageTiles = kStageTilesOf;
  static constexpr int kStages = kStagesOf;
  static constexpr int kBlocks = kBlocksOf;
  static constexpr int kTileBytes = CodeFacts<kFormat>::kTileBytes;
  static constexpr int kPieceBytes = kStageTiles * kTileBytes;  // Of a warp and strip.
  static constexpr int kStageBytes = kCodesParts * kStrips * kPieceBytes;
  // Sums of 16 rows of W and four rows of x, of each part, twice.
  static constexpr int kStripSums = code_tile::kRows * 4;
  static constexpr int kSums = kStripSums * kStrips;

  static constexpr int Bytes(int stages) {
    return stages * kStageBytes + 2 * kCodesParts * kSums * 4 + kStages * 16;
  }
};

// The part of a warp. Parts are shorter and longer by turns. Each quarter of a multiprocessor has
// two warps of a block, w and w + 4: one of each length.
__device__ __forceinline__ int PartOf(int warp) { return warp < 4 ? warp : warp ^ 1; }

// The tiles of one warp in the stages of an item.
template <class Shape>
struct CodesSpan {
  __device__ CodesSpan(int tiles_across, int warp)
      : first(FirstTile(tiles_across, PartOf(warp))),
        count(FirstTile(tiles_across, PartOf(warp) + 1) - first) {}

  __device__ int TilesOf(int stage) const {
    return max(0, min(Shape::kStageTiles, count - stage * Shape::kStageTiles));
  }
  // Of an item. No part is longer than this.
  __device__ static int StagesOf(int tiles_across) {
    const int most = (tiles_across + kCodesParts - 1) / kCodesParts;
    return (most + Shape::kStageTiles - 1) / Shape::kStageTiles;
  }

  int first;
  int count;
};

// A place in the ring, and how often it has gone round.
struct CodesPlace {
  __device__ void Next(int stages) {
    if (++stage == stages) {
      stage = 0;
      parity ^= 1;
    }
  }
  int stage = 0;
  uint32_t parity = 0;
};

__device__ __forceinline__ void Arrive(uint32_t barrier) {
  asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}" ::"r"(barrier)
               : "memory");
}
__device__ __forceinline__ void InitCount(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count));
}

// What the last warp does: it fills stages for all the others.
template <class Shape>
__device__ __forceinline__ void AskForCodes(const CodesArguments& a, uint32_t memory, uint32_t full,
                                            uint32_t empty, int first, int stride, int lane) {
  constexpr int kPieces = kCodesParts * Shape::kStrips;
  static_assert(kPieces <= 32);
  const int piece = min(lane, kPieces - 1);
  const CodesSpan<Shape> span(a.tiles_across, piece % kCodesParts);
  const int num_stages = CodesSpan<Shape>::StagesOf(a.tiles_across);
  const int64_t row_bytes = int64_t{a.tiles_across} * Shape::kTileBytes;
  CodesPlace place;
  place.parity = 1;
  for (; first < a.num_strips; first += stride) {
    // Behind the last strip once more that one; its sums are not written.
    const int strip = min(first + piece / kCodesParts, a.num_strips - 1);
    const uint8_t* from = a.w + strip * row_bytes + span.first * Shape::kTileBytes;
#pragma unroll 1
    for (int stage = 0; stage < num_stages; ++stage) {
      const uint32_t barrier = full + static_cast<uint32_t>(place.stage) * 8;
      const uint32_t to = memory + static_cast<uint32_t>(place.stage * Shape::kStageBytes +
                                                         piece * Shape::kPieceBytes);
      const auto bytes = static_cast<uint32_t>(span.TilesOf(stage) * Shape::kTileBytes);
      Wait(empty + static_cast<uint32_t>(place.stage) * 8, place.parity);
      if constexpr (kHasBulkCopies) {
        BeginCopy(barrier, __reduce_add_sync(~0u, lane < kPieces ? bytes : 0), lane);
        __syncwarp();  // The barrier must know the bytes before any of them comes.
        if (lane < kPieces && bytes > 0) BulkCopy(to, from, bytes, barrier);
      } else {
        for (int i = 0; i < kPieces; ++i) {
          CopyByLanes(__shfl_sync(~0u, to, i),
                      reinterpret_cast<const uint8_t*>(
                          __shfl_sync(~0u, reinterpret_cast<uint64_t>(from), i)),
                      __shfl_sync(~0u, bytes, i), lane);
        }
      }
      EndCopy(barrier);
      from += bytes;
      place.Next(a.stages);
    }
  }
}

template <class Shape>
__global__ void __launch_bounds__(kCodesThreads, Shape::kBlocks)
    CodesKernel(const __grid_constant__ CodesArguments a) {
  constexpr int kStrips = Shape::kStrips;
  constexpr int kTileBytes = Shape::kTileBytes;
  constexpr int kHalfCols = code_tile::kCols / 2;
  extern __shared__ __align__(128) uint8_t shared[];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  auto* const sums = reinterpret_cast<float*>(shared + a.stages * Shape::kStageBytes);
  const uint32_t full = SharedAddress(sums + 2 * kCodesParts * Shape::kSums);
  const uint32_t empty = full + Shape::kStages * 8;
  const int stride = static_cast<int>(gridDim.x) * kStrips;
  int first = static_cast<int>(blockIdx.x) * kStrips;
  if (warp == kCodesParts) {
    for (int i = 0; i < a.stages; ++i) {
      InitBarrier(full + static_cast<uint32_t>(i) * 8, lane);
      if (lane == 0) InitCount(empty + static_cast<uint32_t>(i) * 8, kCodesParts);
    }
  }
  __syncthreads();
  LetNextKernelStart();
  if (warp == kCodesParts) {
    AskForCodes<Shape>(a, SharedAddress(shared), full, empty, first, stride, lane);
    return;
  }
  WaitForEarlierKernel();
  const CodesSpan<Shape> span(a.tiles_across, warp);
  const int num_stages = CodesSpan<Shape>::StagesOf(a.tiles_across);
  const LaneRows<1> rows(a, lane);
  const int first_col = span.first * code_tile::kCols;
  const int end_col = first_col + span.count * code_tile::kCols;
  int next_col = first_col;  // Of x, of the tile ahead.
  uint2 next[2][1][2][2];
#pragma unroll
  for (int half = 0; half < 2; ++half) rows.Load(first_col + half * kHalfCols, next[half]);
  CodesPlace place;

  for (int turn = 0; first < a.num_strips; first += stride, turn ^= 1) {
    float acc[kStrips][1][4] = {};
#pragma unroll 1
    for (int stage = 0; stage < num_stages; ++stage) {
      Wait(full + static_cast<uint32_t>(place.stage) * 8, place.parity);
      const uint8_t* tile = shared + place.stage * Shape::kStageBytes + warp * Shape::kPieceBytes;
#pragma unroll 1
      for (int left = span.TilesOf(stage); left > 0; --left, tile += kTileBytes) {
        const uint8_t* tiles[kStrips];
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip) {
          tiles[strip] = tile + strip * kCodesParts * Shape::kPieceBytes;
        }
        // Behind the last columns of this warp come the first ones again.
        next_col += code_tile::kCols;
        if (next_col == end_col) next_col = first_col;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          MultiplyHalf<Shape::kFormat>(tiles, half, lane, a.one, next[half], acc);
          rows.Load(next_col + half * kHalfCols, next[half]);
        }
      }
      __syncwarp();
      if (lane == 0) Arrive(empty + static_cast<uint32_t>(place.stage) * 8);
      place.Next(a.stages);
    }
    // The two parts of a row of x are added. The next item has the other half of the memory.
    constexpr float kUpper = 1.0f / CodeFacts<Shape::kFormat>::kSidePower;
    float* const all = sums + turn * kCodesParts * Shape::kSums;
    float* const own = all + PartOf(warp) * Shape::kSums + lane % 4 * 16 + lane / 4;
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      const float(&sum)[4] = acc[strip][0];
      own[strip * Shape::kStripSums] = sum[0] + sum[1];
      own[strip * Shape::kStripSums + 8] = (sum[2] + sum[3]) * kUpper;
    }
    asm volatile("bar.sync 1, %0;" ::"n"(32 * kCodesParts) : "memory");
    const auto at = static_cast<int>(threadIdx.x);
    const int row = at % Shape::kStripSums / 16;
    const int output = (first + at / Shape::kStripSums) * code_tile::kRows + at % 16;
    if (at < Shape::kSums && row < a.rows && output < a.n) {
      float sum = all[at];
#pragma unroll
      for (int other = 1; other < kCodesParts; ++other) sum += all[other * Shape::kSums + at];
      a.y[row * a.y_stride + output] = sum;
    }
  }
}

}  // namespace pmkvq::cuda
