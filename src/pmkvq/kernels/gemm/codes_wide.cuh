// The kernel for products of more rows with quantised weights: the same sums as codes_product.cuh,
// bit by bit.
//
// The warps of a block share the columns of x, where those of codes_product.cuh have columns of
// their own: a tile's 128 columns of all rows lie in shared memory, in the order of operands, with
// the sums that go with them. Each warp has kStrips strips of W. The sums of the parts of the
// columns are added in their order: by one block, part after part, or by eight blocks of a cluster,
// a part each, through each other's shared memory, where a matrix has few rows.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pmkvq/kernels/gemm/codes_product.cuh"

namespace pmkvq::cuda {

constexpr int kMostWideWarps = 12;
constexpr int kMostWideThreads = 32 * kMostWideWarps;

// kTiles: rows of x in units of four, of a warp. kShares: so many warps have the same strips, and
// kTiles of x each. kStages: tiles that a warp has asked for.
template <WeightFormat kFormatOf, int kTilesOf, int kSharesOf, int kStripsOf, int kStagesOf>
struct WideShape {
  static constexpr WeightFormat kFormat = kFormatOf;
  static constexpr int kTiles = kTilesOf;
  static constexpr int kShares = kSharesOf;
  static constexpr int kAllTiles = kTiles * kShares;
  static constexpr int kStrips = kStripsOf;
  static constexpr int kStageTiles = 1;
  static constexpr int kStages = kStagesOf;
  static constexpr int kTileBytes = CodeFacts<kFormat>::kTileBytes;
  static constexpr int kStageBytes = kStrips * kTileBytes;
  static constexpr int kPieces = code_tile::kGroups * kAllTiles;             // Of x, in a tile.
  static constexpr int kPieceBytes = 512;                                    // 16 of each lane.
  static constexpr int kSumBytes = CodeFacts<kFormat>::kHasMinima ? 32 : 0;  // RowSums, of a piece.
  static constexpr int kRowBytes = kPieces * (kPieceBytes + kSumBytes);
  static constexpr int kOutputs = 2 * kStrips * kTiles;  // Of a lane.

  static constexpr int kSumsBytes = 4 * kOutputs * kMostWideThreads;

  static constexpr int Bytes(int warps, int stages) {
    return 2 * kRowBytes + kSumsBytes + warps / kShares * (stages * kStageBytes + kStages * 8);
  }
};

// 8 bytes, or zeros.
__device__ __forceinline__ void CopyEight(uint32_t target, const void* source, bool is_there) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 8, %2;" ::"r"(target), "l"(source),
               "r"(is_there ? 8 : 0)
               : "memory");
}
__device__ __forceinline__ void WaitForEights() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Tiles of x in shared memory: two, by turns.
template <class Shape>
class WideRows {
 public:
  __device__ WideRows(const CodesArguments& a, uint8_t* memory, int warp, int warps)
      : a_(a), memory_(memory), warp_(warp), warps_(warps), lane_(threadIdx.x % 32) {}

  __device__ void Ask(int tile, int turn) const {
    const int g = lane_ / 4;
    const int col = tile * code_tile::kCols + lane_ % 4 * 4;
    for (int piece = warp_; piece < Shape::kPieces; piece += warps_) {
      const int row = min(piece % Shape::kAllTiles * 4 + g / 2, a_.rows - 1);
      const int at = col + piece / Shape::kAllTiles * code_tile::kGroup;
      const __half* const from =
          a_.x + (static_cast<int64_t>(g % 2 * a_.part_rows + row) * a_.k + at);
      const uint32_t to = SharedAddress(Piece(turn, piece));
      const bool has_first = at < a_.k;
      const bool has_second = at + 16 < a_.k;
      CopyEight(to, has_first ? from : a_.x, has_first);
      CopyEight(to + 8, has_second ? from + 16 : a_.x, has_second);
    }
  }

  // Of what this warp has asked for.
  __device__ void Finish(int turn) const {
    WaitForEights();
    if constexpr (CodeFacts<Shape::kFormat>::kHasMinima) {
      for (int piece = warp_; piece < Shape::kPieces; piece += warps_) {
        uint2 rows[2];
        Load(turn, piece, rows);
        RowSums<Shape::kFormat> sums;
        sums.Make(rows);
        if (lane_ < 4) *Sums(turn, piece) = sums.values;
      }
    }
  }

  __device__ void Load(int turn, int piece, uint2 (&rows)[2]) const {
    const uint4 four = *reinterpret_cast<const uint4*>(Piece(turn, piece));
    rows[0] = make_uint2(four.x, four.y);
    rows[1] = make_uint2(four.z, four.w);
  }
  // Of this lane's two columns.
  __device__ float2* Sums(int turn, int piece) const {
    return reinterpret_cast<float2*>(memory_ + turn * Shape::kRowBytes +
                                     Shape::kPieces * Shape::kPieceBytes +
                                     piece * Shape::kSumBytes) +
           lane_ % 4;
  }

 private:
  __device__ uint8_t* Piece(int turn, int piece) const {
    return memory_ + turn * Shape::kRowBytes + piece * Shape::kPieceBytes + lane_ * 16;
  }
  const CodesArguments& a_;
  uint8_t* memory_;
  int warp_;
  int warps_;
  int lane_;
};

__device__ __forceinline__ void SyncCluster() {
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
#endif
}
// A float in the shared memory of another block of the cluster.
__device__ __forceinline__ float LoadFrom(uint32_t address, int block) {
  float value = 0.0f;
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
  uint32_t there;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(block));
  asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(value) : "r"(there) : "memory");
#endif
  return value;
}

// A warp's ring of weights, of kStrips strips. A warp that does not ask reads what another one asks
// for.
template <class Shape>
class WideRing {
 public:
  __device__ WideRing(const CodesArguments& a, int first_tile, int end_tile, int strip,
                      uint8_t* memory, uint64_t* barriers, bool asks)
      : stages_(a.stages),
        read_(memory),
        memory_(SharedAddress(memory)),
        barriers_(SharedAddress(barriers)),
        row_bytes_(int64_t{a.tiles_across} * Shape::kTileBytes),
        from_(a.w + strip * row_bytes_ + first_tile * Shape::kTileBytes),
        last_strip_(a.num_strips - 1 - strip),
        left_(asks && strip < a.num_strips ? end_tile - first_tile : 0),
        lane_(static_cast<int>(threadIdx.x % 32)) {
    if (!asks) return;
    for (int stage = 0; stage < stages_; ++stage) {
      InitBarrier(barriers_ + static_cast<uint32_t>(stage) * 8, lane_);
    }
    __syncwarp();
    for (int stage = 0; stage < stages_; ++stage) Ask(stage);
  }

  // For the next tile.
  __device__ const uint8_t* WaitForTile() const {
    Wait(barriers_ + static_cast<uint32_t>(place_.stage) * 8, place_.parity);
    return read_ + place_.stage * Shape::kStageBytes;
  }
  // When all warps are done with the tile.
  __device__ void EndTile() {
    Ask(place_.stage);
    place_.Next(stages_);
  }

 private:
  __device__ void Ask(int stage) {
    if (left_ == 0) return;
    --left_;
    const uint32_t barrier = barriers_ + static_cast<uint32_t>(stage) * 8;
    const uint32_t to = memory_ + static_cast<uint32_t>(stage * Shape::kStageBytes);
    BeginCopy(barrier, Shape::kStageBytes, lane_);
#pragma unroll
    for (int strip = 0; strip < Shape::kStrips; ++strip) {
      // Behind the last strip once more that one; its sums are not written.
      CopyBytes(to + static_cast<uint32_t>(strip * Shape::kTileBytes),
                from_ + min(strip, last_strip_) * row_bytes_, Shape::kTileBytes, barrier, lane_);
    }
    EndCopy(barrier);
    from_ += Shape::kTileBytes;
  }

  int stages_;
  const uint8_t* read_;
  uint32_t memory_;
  uint32_t barriers_;
  int64_t row_bytes_;
  const uint8_t* from_;
  int last_strip_;
  int left_;
  int lane_;
  CodesPlace place_;
};

// A grid of `split` blocks for each warps / kShares * kStrips strips; split is 1, or
// kCodesParts.
template <class Shape>
__global__ void __launch_bounds__(kMostWideThreads, 1)
    CodesWideKernel(const __grid_constant__ CodesArguments a, int split) {
  constexpr WeightFormat kFormat = Shape::kFormat;
  constexpr int kTiles = Shape::kTiles;
  constexpr int kStrips = Shape::kStrips;
  extern __shared__ __align__(128) uint8_t shared[];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int warps = static_cast<int>(blockDim.x / 32);
  const int block = static_cast<int>(blockIdx.x);
  const int first_part = split == 1 ? 0 : block % kCodesParts;
  const int end_part = split == 1 ? kCodesParts : first_part + 1;
  const int end_tile = FirstTile(a.tiles_across, end_part);
  const int share = warp % Shape::kShares;
  const int row_of_warps = warp / Shape::kShares;
  const int strip = (block / split * (warps / Shape::kShares) + row_of_warps) * kStrips;
  const bool has_strips = strip < a.num_strips;
  // Of outputs [kOutputs, kMostWideThreads].
  auto* const sums = reinterpret_cast<float*>(shared + 2 * Shape::kRowBytes) + threadIdx.x;
  uint8_t* const rings = shared + 2 * Shape::kRowBytes + Shape::kSumsBytes;
  auto* const barriers =
      reinterpret_cast<uint64_t*>(rings + warps / Shape::kShares * a.stages * Shape::kStageBytes);
  int tile = FirstTile(a.tiles_across, first_part);
  WideRing<Shape> ring(a, tile, end_tile, strip,
                       rings + row_of_warps * a.stages * Shape::kStageBytes,
                       barriers + row_of_warps * Shape::kStages, share == 0);
  LetNextKernelStart();
  WaitForEarlierKernel();
  const WideRows<Shape> rows(a, shared, warp, warps);
  int turn = 0;
  if (tile < end_tile) {
    rows.Ask(tile, turn);
    rows.Finish(turn);
  }
  __syncthreads();

  constexpr float kUpper = 1.0f / CodeFacts<kFormat>::kSidePower;
  for (int part = first_part; part < end_part; ++part) {
    float acc[kStrips][kTiles][4] = {};
    for (const int end = FirstTile(a.tiles_across, part + 1); tile < end; ++tile, turn ^= 1) {
      if (tile + 1 < end_tile) rows.Ask(tile + 1, turn ^ 1);
      if (has_strips) {
        const uint8_t* const weights = ring.WaitForTile();
#pragma unroll 1
        for (int half = 0; half < 2; ++half) {
          LaneScales<kFormat> scales[kStrips];
          LaneCodes<kFormat> codes[kStrips];
#pragma unroll
          for (int i = 0; i < kStrips; ++i) {
            const uint8_t* const from = weights + i * Shape::kTileBytes;
            codes[i].Load(from, lane, half);
            scales[i].Load(from, lane / 4, half);
          }
#pragma unroll
          for (int group = 0; group < 2; ++group) {
            uint32_t w[kStrips][2][4];
#pragma unroll
            for (int i = 0; i < kStrips; ++i) codes[i].Expand(group, a.one, w[i]);
#pragma unroll
            for (int j = 0; j < kTiles; ++j) {
              const int piece = (2 * half + group) * Shape::kAllTiles + share * kTiles + j;
              uint2 b[2];
              rows.Load(turn, piece, b);
              RowSums<kFormat> row_sums;
              if constexpr (CodeFacts<kFormat>::kHasMinima)
                row_sums.values = *rows.Sums(turn, piece);
#pragma unroll
              for (int i = 0; i < kStrips; ++i) {
                AddProduct<kFormat>(w[i], scales[i], group, b, row_sums, acc[i][j]);
              }
            }
          }
        }
      }
      if (tile + 1 < end_tile) rows.Finish(turn ^ 1);
      __syncthreads();
      ring.EndTile();
    }
#pragma unroll
    for (int i = 0; i < kStrips; ++i) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        const float(&sum)[4] = acc[i][j];
        const float both[2] = {sum[0] + sum[1], (sum[2] + sum[3]) * kUpper};
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          float& sum_of_parts = sums[((i * kTiles + j) * 2 + side) * kMostWideThreads];
          sum_of_parts = part == first_part ? both[side] : sum_of_parts + both[side];
        }
      }
    }
  }

  // A block of a cluster writes every eighth output, of all eight blocks.
  if (split != 1) SyncCluster();
  for (int at = first_part; at < Shape::kOutputs; at += split) {
    float sum;
    if (split == 1) {
      sum = sums[at * kMostWideThreads];
    } else {
      const uint32_t from = SharedAddress(sums + at * kMostWideThreads);
      sum = LoadFrom(from, 0);
#pragma unroll
      for (int other = 1; other < kCodesParts; ++other) sum += LoadFrom(from, other);
    }
    const int row = (share * kTiles + at / 2 % kTiles) * 4 + lane % 4;
    const int output = (strip + at / (2 * kTiles)) * code_tile::kRows + at % 2 * 8 + lane / 4;
    if (row < a.rows && output < a.n) a.y[row * a.y_stride + output] = sum;
  }
  if (split != 1) SyncCluster();
}

}  // namespace pmkvq::cuda
