// The kernel for products with quantised weights: device_codes_layout.h has the layout,
// code_lanes.cuh a warp's part.
//
// The columns of W are cut into eight parts. A sum over each part is made by one warp, in float and
// in the order of columns; then the sums of the parts are added in their order. So a sum's order
// depends on K only.
//
// An item is kStrips times 16 rows of W. A grid of as many blocks as the device holds takes items
// with a fixed stride. The eight warps of a block have the eight parts. Each has its own ring of
// stages in shared memory, and asks for what comes next, also of the next item, when a stage is
// done. Rows of x are loaded half a tile ahead: a load right before its product cost four times the
// product.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/gemm/code_lanes.cuh"

namespace pmkvq::cuda {

constexpr int kCodesParts = 8;  // Of the columns.
constexpr int kCodesWarps = 8;
constexpr int kCodesThreads = 32 * kCodesWarps;

// kTiles: rows of x in units of four.
template <WeightFormat kFormat, int kTiles, int kStrips>
struct CodesShape {
  static constexpr int kStageTiles = kStrips == 1 ? 2 : 4;
  static constexpr int kStages =  // At most: as many as there is memory for.
      kStrips == 1 ? 3 : 2;
  // Of a multiprocessor: registers decide.
  static constexpr int kBlocks = kTiles > 2                                                ? 1
                                 : kTiles* kStrips == 1 && !CodeFacts<kFormat>::kHasMinima ? 3
                                                                                           : 2;
  // Sums of 16 rows of W and four rows of x, of each warp, twice.
  static constexpr int kTileSums = code_tile::kRows * 4;
  static constexpr int kSums = kTileSums * kTiles * kStrips;

  static constexpr int Bytes(int stages) {
    return kCodesWarps *
           (stages * kStageTiles * CodeFacts<kFormat>::kTileBytes + 2 * kSums * 4 + kStages * 8);
  }
};

// The copies of one warp, and its place in them.
template <int kTileBytes, int kStrips, int kStageTiles>
class CodesRing {
 public:
  // Of part `part` of the columns; strips from `strip` on, with a distance of `stride`.
  __device__ CodesRing(const CodesArguments& a, int part, int strip, int stride, uint8_t* memory,
                       uint64_t* barriers)
      : a_(a),
        memory_(memory),
        barriers_(SharedAddress(barriers)),
        lane_(static_cast<int>(threadIdx.x % 32)),
        asked_strip_(strip),
        stride_(stride) {
    first_tile_ = a.tiles_across * part / kCodesParts;
    num_tiles_ = a.tiles_across * (part + 1) / kCodesParts - first_tile_;
    for (int stage = 0; stage < a_.stages; ++stage) InitBarrier(Barrier(stage), lane_);
    __syncwarp();
  }

  // Before any other.
  __device__ void Start() {
    for (int stage = 0; stage < a_.stages; ++stage) Ask(stage);
  }
  __device__ int first_tile() const { return first_tile_; }
  __device__ int num_tiles() const { return num_tiles_; }
  // Tiles of the stage that begins with tile `tile` of this warp's.
  __device__ int TilesFrom(int tile) const { return min(kTiles, num_tiles_ - tile); }

  __device__ void WaitForStage() { Wait(Barrier(stage_), parity_); }
  __device__ const uint8_t* Tile(int strip, int tile) const {
    return Memory(stage_) + (strip * kTiles + tile) * kTileBytes;
  }
  __device__ void EndStage() {
    __syncwarp();
    Ask(stage_);
    if (++stage_ == a_.stages) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }

  static constexpr int kTiles = kStageTiles / kStrips;  // Of a stage and strip.

 private:
  __device__ uint32_t Barrier(int stage) const {
    return barriers_ + static_cast<uint32_t>(stage) * 8;
  }
  __device__ uint8_t* Memory(int stage) const { return memory_ + stage * kStageTiles * kTileBytes; }

  // Asks for what follows, if anything does.
  __device__ void Ask(int stage) {
    if (num_tiles_ == 0 || asked_strip_ >= a_.num_strips) return;
    const int tiles = TilesFrom(asked_tile_);
    const auto bytes = static_cast<uint32_t>(tiles * kTileBytes);
    BeginCopy(Barrier(stage), bytes * kStrips, lane_);
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      // Behind the last strip once more that one; its sums are not written.
      const int64_t row = min(asked_strip_ + strip, a_.num_strips - 1);
      const int64_t tile = row * a_.tiles_across + first_tile_ + asked_tile_;
      CopyBytes(SharedAddress(Memory(stage) + strip * kTiles * kTileBytes),
                a_.w + tile * kTileBytes, bytes, Barrier(stage), lane_);
    }
    EndCopy(Barrier(stage));
    asked_tile_ += tiles;
    if (asked_tile_ == num_tiles_) {
      asked_tile_ = 0;
      asked_strip_ += stride_;
    }
  }

  const CodesArguments& a_;
  uint8_t* memory_;
  uint32_t barriers_;
  int lane_;
  int asked_strip_;
  int stride_;
  int first_tile_;
  int num_tiles_;
  int asked_tile_ = 0;
  int stage_ = 0;
  uint32_t parity_ = 0;
};

// kTiles: rows of x in units of four.
template <WeightFormat kFormat, int kTiles, int kStrips>
__global__ void __launch_bounds__(kCodesThreads, CodesShape<kFormat, kTiles, kStrips>::kBlocks)
    CodesKernel(const __grid_constant__ CodesArguments a) {
  using Shape = CodesShape<kFormat, kTiles, kStrips>;
  constexpr int kTileBytes = CodeFacts<kFormat>::kTileBytes;
  constexpr int kUnroll = kTiles * kStrips == 1 ? 2 : 1;
  constexpr int kStage = Shape::kStageTiles * kTileBytes;
  constexpr int kHalfCols = code_tile::kCols / 2;
  using Ring = CodesRing<kTileBytes, kStrips, Shape::kStageTiles>;
  extern __shared__ __align__(128) uint8_t shared[];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4;
  const int t = lane % 4;
  auto* sums = reinterpret_cast<float*>(shared + kCodesWarps * a.stages * kStage);
  auto* barriers = reinterpret_cast<uint64_t*>(sums + 2 * kCodesWarps * Shape::kSums);
  const int stride = static_cast<int>(gridDim.x) * kStrips;
  int first = static_cast<int>(blockIdx.x) * kStrips;
  Ring ring(a, warp, first, stride, shared + warp * a.stages * kStage,
            barriers + warp * Shape::kStages);
  ring.Start();
  LetNextKernelStart();
  WaitForEarlierKernel();
  const LaneRows<kFormat, kTiles> rows(a, lane);
  const int first_col = ring.first_tile() * code_tile::kCols;
  const int end_col = first_col + ring.num_tiles() * code_tile::kCols;
  int next_col = first_col;  // Of x, behind what was asked for.
  uint2 next[kTiles][2][2];
  rows.Load(next_col, next);

  for (int turn = 0; first < a.num_strips; first += stride, turn ^= 1) {
    float acc[kStrips][kTiles][4] = {};
    for (int begin = 0; begin < ring.num_tiles(); begin += Ring::kTiles) {
      ring.WaitForStage();
      const int halves = 2 * ring.TilesFrom(begin);
#pragma unroll kUnroll
      for (int half = 0; half < halves; ++half) {
        uint2 b[kTiles][2][2];
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
#pragma unroll
          for (int part = 0; part < 4; ++part)
            b[i][part / 2][part % 2] = next[i][part / 2][part % 2];
        }
        // Behind the last columns of this warp come the first ones again.
        next_col = next_col + kHalfCols < end_col ? next_col + kHalfCols : first_col;
        rows.Load(next_col, next);
        const uint8_t* tiles[kStrips];
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip) tiles[strip] = ring.Tile(strip, half / 2);
        MultiplyHalf<kFormat>(tiles, half % 2, lane, b, acc);
      }
      ring.EndStage();
    }
    // Parts of x are added, then the sums of the warps, one after the other. The next item has the
    // other half of the memory.
    float* const all = sums + turn * kCodesWarps * Shape::kSums;
    float* const own = all + warp * Shape::kSums + t * 16 + g;
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        float* const to = own + (strip * kTiles + i) * Shape::kTileSums;
        to[0] = acc[strip][i][0] + acc[strip][i][1];
        to[8] = acc[strip][i][2] + acc[strip][i][3];
      }
    }
    __syncthreads();
    for (int at = static_cast<int>(threadIdx.x); at < Shape::kSums; at += kCodesThreads) {
      const int tile = at / Shape::kTileSums;
      const int row = tile % kTiles * 4 + at % Shape::kTileSums / 16;
      const int output = (first + tile / kTiles) * code_tile::kRows + at % 16;
      if (row < a.rows && output < a.n) {
        float sum = all[at];
#pragma unroll
        for (int other = 1; other < kCodesWarps; ++other) sum += all[other * Shape::kSums + at];
        a.y[row * a.y_stride + output] = sum;
      }
    }
  }
}

}  // namespace pmkvq::cuda
