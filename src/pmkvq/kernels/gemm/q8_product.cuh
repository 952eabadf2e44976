// The kernel for products with q8 weights: device_gemm_q8.h has the layout.
//
// An item is kStrips times 16 rows of W. A grid of as many blocks as the device holds takes items
// with a fixed stride. The eight warps of a block share out the columns, each has its own ring of
// stages in shared memory, and asks for what comes next, also of the next item, when a stage is
// done. A product of a group's 32 columns is multiplied with the group's scale in float. At the end
// of an item the warps' sums are added in their order, so a sum's order depends on K only.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pmkvq/kernels/cuda/copy.cuh"
#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/cuda/mma.cuh"
#include "pmkvq/kernels/gemm/device_gemm_q8.h"

namespace pmkvq::cuda {

constexpr int kQ8Warps = 8;
constexpr int kQ8Threads = 32 * kQ8Warps;
constexpr int kQ8StageTiles = 8;
constexpr int kQ8StageBytes = kQ8StageTiles * device_q8::kTileBytes;
constexpr int kQ8MostStages = 3;
// Sums of 16 rows of W and 8 rows of x.
constexpr int kQ8Sums = device_q8::kRows * 8;

constexpr int Q8SharedBytes(int stages) {
  return kQ8Warps * (stages * kQ8StageBytes + kQ8Sums * 4 + kQ8MostStages * 8);
}

struct Q8Arguments {
  const void* x;
  const uint8_t* w;
  float* y;
  int rows;
  int n;
  int k;
  int num_strips;
  int tiles_across;
  int stages;
  bool accumulate;
};

// Types of x: what it is multiplied as, and in how many parts.
template <class X>
struct Q8Input {
  using Type = X;
  static constexpr int kParts = 1;

  // Eight values.
  __device__ static void Load(const X* x, uint32_t (&words)[1][4]) {
    const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(x));
    words[0][0] = loaded.x;
    words[0][1] = loaded.y;
    words[0][2] = loaded.z;
    words[0][3] = loaded.w;
  }
};

// A float is the sum of three BF16 values, the smallest first.
template <>
struct Q8Input<float> {
  using Type = __nv_bfloat16;
  static constexpr int kParts = 3;

  __device__ static void Load(const float* x, uint32_t (&words)[3][4]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 v = __ldg(reinterpret_cast<const float4*>(x) + half);
      Split(v.x, v.y, 2 * half, words);
      Split(v.z, v.w, 2 * half + 1, words);
    }
  }

 private:
  __device__ static void Split(float a, float b, int word, uint32_t (&words)[3][4]) {
#pragma unroll
    for (int part = 2; part >= 0; --part) {
      const __nv_bfloat162 rounded = __floats2bfloat162_rn(a, b);
      words[part][word] = AsWord(rounded);
      const float2 back = ToFloats(rounded);
      a -= back.x;
      b -= back.y;
    }
  }
};

// Two codes of a word, bytes 0 and 1 or 2 and 3, as a pair of T: sign and magnitude are put into a
// float whose last bit counts 1, and its power of two is taken off.
template <class T>
__device__ __forceinline__ uint32_t CodePair(uint32_t codes, bool upper) {
  constexpr uint32_t kOne = sizeof(T) == 2 && MaxFinite<T>() < 1e5f ? 0x64006400u : 0x43004300u;
  const uint32_t twice = __byte_perm(codes, 0, upper ? 0x3322 : 0x1100);
  const uint32_t value = (twice & 0x807f807fu) | kOne;
  const uint32_t power = (twice & 0x80008000u) | kOne;
  return AsWord(__hsub2(AsPair<T>(value), AsPair<T>(power)));
}

// One lane's part of a tile.
template <class T>
struct Q8Tile {
  uint32_t codes[2][4];  // Product, register of operand A.
  float scales[2];       // Row g, g + 8.

  __device__ void Load(const uint8_t* tile, int lane) {
    const uint2 low = *reinterpret_cast<const uint2*>(tile + lane * 8);
    const uint2 high = *reinterpret_cast<const uint2*>(tile + 256 + lane * 8);
    const uint32_t scale =
        *reinterpret_cast<const uint32_t*>(tile + device_q8::kCodeBytes + lane / 4 * 4);
    Expand(low.x, high.x, codes[0]);
    Expand(low.y, high.y, codes[1]);
    scales[0] = __uint_as_float(scale << 16);
    scales[1] = __uint_as_float(scale & 0xffff0000u);
  }

 private:
  __device__ static void Expand(uint32_t low, uint32_t high, uint32_t (&a)[4]) {
    a[0] = CodePair<T>(low, false);
    a[1] = CodePair<T>(high, false);
    a[2] = CodePair<T>(low, true);
    a[3] = CodePair<T>(high, true);
  }
};

// The copies of one warp, and its place in them.
template <int kStrips>
class Q8Ring {
 public:
  __device__ Q8Ring(const Q8Arguments& a, uint8_t* memory, uint64_t* barriers)
      : a_(a),
        memory_(memory),
        barriers_(SharedAddress(barriers)),
        lane_(static_cast<int>(threadIdx.x % 32)) {
    const int warp = static_cast<int>(threadIdx.x / 32);
    first_tile_ = a.tiles_across * warp / kQ8Warps;
    num_tiles_ = a.tiles_across * (warp + 1) / kQ8Warps - first_tile_;
    asked_strip_ = static_cast<int>(blockIdx.x) * kStrips;
    for (int stage = 0; stage < a.stages; ++stage) InitBarrier(Barrier(stage), lane_);
  }

  // Before any other; the block synchronises between the construction and it.
  __device__ void Start() {
    for (int stage = 0; stage < a_.stages; ++stage) Ask(stage);
  }
  __device__ int first_tile() const { return first_tile_; }
  __device__ int num_tiles() const { return num_tiles_; }
  // Tiles of the stage that begins with tile `tile` of this warp's.
  __device__ int TilesFrom(int tile) const { return min(kTiles, num_tiles_ - tile); }

  __device__ void WaitForStage() { Wait(Barrier(stage_), parity_); }
  __device__ const uint8_t* Tile(int strip, int tile) const {
    return Memory(stage_) + (strip * kTiles + tile) * device_q8::kTileBytes;
  }
  __device__ void EndStage() {
    __syncwarp();
    Ask(stage_);
    if (++stage_ == a_.stages) {
      stage_ = 0;
      parity_ ^= 1;
    }
  }

  static constexpr int kTiles = kQ8StageTiles / kStrips;  // Of a stage and strip.

 private:
  __device__ uint32_t Barrier(int stage) const {
    return barriers_ + static_cast<uint32_t>(stage) * 8;
  }
  __device__ uint8_t* Memory(int stage) const { return memory_ + stage * kQ8StageBytes; }

  // Asks for what follows, if anything does.
  __device__ void Ask(int stage) {
    if (num_tiles_ == 0 || asked_strip_ >= a_.num_strips) return;
    const int tiles = TilesFrom(asked_tile_);
    const uint32_t bytes = static_cast<uint32_t>(tiles * device_q8::kTileBytes);
    BeginCopy(Barrier(stage), bytes * kStrips, lane_);
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
      // Behind the last strip once more that one; its sums are not written.
      const int64_t row = min(asked_strip_ + strip, a_.num_strips - 1);
      const int64_t tile = row * a_.tiles_across + first_tile_ + asked_tile_;
      CopyBytes(SharedAddress(Memory(stage) + strip * kTiles * device_q8::kTileBytes),
                a_.w + tile * device_q8::kTileBytes, bytes, Barrier(stage), lane_);
    }
    EndCopy(Barrier(stage));
    asked_tile_ += tiles;
    if (asked_tile_ == num_tiles_) {
      asked_tile_ = 0;
      asked_strip_ += static_cast<int>(gridDim.x) * kStrips;
    }
  }

  const Q8Arguments& a_;
  uint8_t* memory_;
  uint32_t barriers_;
  int lane_;
  int first_tile_;
  int num_tiles_;
  int asked_strip_;
  int asked_tile_ = 0;
  int stage_ = 0;
  uint32_t parity_ = 0;
};

// kTiles: rows of x in units of 8.
template <class X, int kTiles, int kStrips>
__global__ void __launch_bounds__(kQ8Threads, kTiles <= 4 ? 2 : 1)
    Q8Kernel(const __grid_constant__ Q8Arguments a) {
  using Input = Q8Input<X>;
  using T = typename Input::Type;
  constexpr int kUnroll = kTiles == 1 ? 4 : 1;
  extern __shared__ __align__(128) uint8_t shared[];
  const int lane = static_cast<int>(threadIdx.x % 32);
  const int warp = static_cast<int>(threadIdx.x / 32);
  const int g = lane / 4;
  const int t = lane % 4;
  auto* sums = reinterpret_cast<float*>(shared + kQ8Warps * a.stages * kQ8StageBytes);
  auto* barriers = reinterpret_cast<uint64_t*>(sums + kQ8Warps * kQ8Sums);
  Q8Ring<kStrips> ring(a, shared + warp * a.stages * kQ8StageBytes,
                       barriers + warp * kQ8MostStages);
  __syncthreads();
  ring.Start();
  const X* x = static_cast<const X*>(a.x);

  for (int first = static_cast<int>(blockIdx.x) * kStrips; first < a.num_strips;
       first += static_cast<int>(gridDim.x) * kStrips) {
    float acc[kStrips][kTiles][4] = {};
    for (int begin = 0; begin < ring.num_tiles(); begin += Q8Ring<kStrips>::kTiles) {
      ring.WaitForStage();
      const int tiles = ring.TilesFrom(begin);
#pragma unroll kUnroll
      for (int tile = 0; tile < tiles; ++tile) {
        Q8Tile<T> w[kStrips];
#pragma unroll
        for (int strip = 0; strip < kStrips; ++strip) w[strip].Load(ring.Tile(strip, tile), lane);
        const int col = (ring.first_tile() + begin + tile) * device_q8::kCols + 8 * t;
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const int row = 8 * i + g;
          uint32_t words[Input::kParts][4] = {};
          if (row < a.rows && col < a.k) {
            Input::Load(x + static_cast<size_t>(row) * a.k + col, words);
          }
#pragma unroll
          for (int strip = 0; strip < kStrips; ++strip) {
            float product[4] = {};
#pragma unroll
            for (int part = 0; part < Input::kParts; ++part) {
              MultiplyTile<T>(product, w[strip].codes[0], words[part][0], words[part][1]);
              MultiplyTile<T>(product, w[strip].codes[1], words[part][2], words[part][3]);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) {
              acc[strip][i][j] = __fmaf_rn(w[strip].scales[j / 2], product[j], acc[strip][i][j]);
            }
          }
        }
      }
      ring.EndStage();
    }
    // The sums of the warps, one after the other.
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) {
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (8 * i >= a.rows) continue;
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sums[warp * kQ8Sums + (2 * t + j % 2) * 16 + g + 8 * (j / 2)] = acc[strip][i][j];
        }
        __syncthreads();
        const int thread = static_cast<int>(threadIdx.x);
        const int row = 8 * i + thread / 16;
        const int output = (first + strip) * device_q8::kRows + thread % 16;
        if (thread < kQ8Sums && row < a.rows && output < a.n) {
          float sum = sums[thread];
#pragma unroll
          for (int other = 1; other < kQ8Warps; ++other) sum += sums[other * kQ8Sums + thread];
          float* y = a.y + static_cast<size_t>(row) * a.n + output;
          *y = a.accumulate ? *y + sum : sum;
        }
        __syncthreads();
      }
    }
  }
}

}  // namespace pmkvq::cuda
