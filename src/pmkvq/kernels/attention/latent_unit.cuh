// One unit of attention over latents: what a warp, which has one group of 128 channels of c, does
// with up to 64 tokens of a page. docs/cuda.md explains the arithmetic.
//
// Pages have tokens as rows (fragment_layout.h), so a lane's 16 bytes are the second operand of a
// product whose rows are 16 query heads: columns are tokens, sums run over channels. The same
// registers, each an 8 x 8 matrix of tokens and channels, transposed, are the second operand of the
// sums of weighted values. A code is made a float once for each of the two.
//
//   tile i, half h, lane 4 g + t:   scores have heads g, g + 8 and tokens 32 t + 2 i + h, + 16
//   step k, y:                      sums have heads g, g + 8 and channels 32 t + 2 k + y, + 16
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "pmkvq/kernels/attention/decode_unit.cuh"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"

namespace pmkvq::cuda {

constexpr int kLatentSteps = 8;  // Of 128 channels.

// Codes count from the middle of their range, so that sums of them are small. Also in `min`.
__device__ __forceinline__ constexpr float MiddleCode(int bits) {
  return bits == 8 ? 128.0f : bits == 4 ? 8.0f : bits == 2 ? 2.0f : 0.0f;
}
__device__ __forceinline__ constexpr float LargestCode(int bits) {
  return bits == 8 ? 255.0f : bits == 4 ? 15.0f : 3.0f;
}

// x * factor + summand of two halves; exact here.
template <int kFactorLog2>
__device__ __forceinline__ uint32_t Centre(uint32_t magic, float summand) {
  const __half2 x = *reinterpret_cast<__half2*>(&magic);
  const __half2 factor = __float2half2_rn(1.0f / static_cast<float>(1 << kFactorLog2));
  __half2 value = __hfma2(x, factor, __float2half2_rn(summand));
  return *reinterpret_cast<uint32_t*>(&value);
}

// Words of 4 or 2 bits, whose halves have the codes of two channels, for those of two tokens.
__device__ __forceinline__ uint32_t TransposePacked(uint32_t word) {
  return fragment::RotateLeft(Transpose(fragment::RotateRight(word, 2)), 2);
}

// A lane's values of 16 rows and kSteps steps, from word `first` on: x[k][half + 2 y], each two
// channels of one token.
template <int kBits, int kSteps>
__device__ __forceinline__ void ExpandWords(const uint8_t* base, int first,
                                            uint32_t (&x)[kSteps][4]) {
  uint32_t w[kSteps * kBits / 4];
  LoadWords(base, first, w);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    if constexpr (kBits == 16) {
#pragma unroll
      for (int j = 0; j < 4; ++j) x[k][j] = w[4 * k + j];
    } else if constexpr (kBits == 8) {
      constexpr uint32_t kBytes = 0x64646464u;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        x[k][half] = Centre<0>(__byte_perm(w[2 * k + half], kBytes, 0x4240), -1024.0f - 128.0f);
        x[k][half + 2] = Centre<0>(__byte_perm(w[2 * k + half], kBytes, 0x4341), -1024.0f - 128.0f);
      }
    } else if constexpr (kBits == 4) {
      const uint32_t turned = __funnelshift_r(w[k], w[k], 8);
      x[k][0] = Centre<2>(CodesToHalves<0x003c003cu>(w[k]), -256.0f - 8.0f);
      x[k][1] = Centre<6>(CodesToHalves<0x03c003c0u>(w[k]), -16.0f - 8.0f);
      x[k][2] = Centre<2>(CodesToHalves<0x003c003cu>(turned), -256.0f - 8.0f);
      x[k][3] = Centre<6>(CodesToHalves<0x03c003c0u>(turned), -16.0f - 8.0f);
    } else {
      const uint32_t word = k % 2 == 0 ? w[k / 2] : __funnelshift_r(w[k / 2], w[k / 2], 8);
      x[k][0] = Centre<2>(CodesToHalves<0x000c000cu>(word), -256.0f - 2.0f);
      x[k][1] = Centre<4>(CodesToHalves<0x00300030u>(word), -64.0f - 2.0f);
      x[k][2] = Centre<6>(CodesToHalves<0x00c000c0u>(word), -16.0f - 2.0f);
      x[k][3] = Centre<8>(CodesToHalves<0x03000300u>(word), -4.0f - 2.0f);
    }
  }
}

// The same values transposed: b[k][y][half], each one channel of two tokens. A transposition moves
// 16 bits at a time, and takes long: codes are moved packed, those of 16 bits of a word together.
template <int kBits, int kSteps>
__device__ __forceinline__ void TransposeWords(const uint8_t* base, int first,
                                               uint32_t (&b)[kSteps][2][2]) {
  uint32_t w[kSteps * kBits / 4];
  LoadWords(base, first, w);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    if constexpr (kBits == 16) {
#pragma unroll
      for (int j = 0; j < 4; ++j) b[k][j / 2][j % 2] = Transpose(w[4 * k + j]);
    } else if constexpr (kBits == 8) {
      constexpr uint32_t kBytes = 0x64646464u;
#pragma unroll
      for (int y = 0; y < 2; ++y) {
        // Of a channel the codes of both halves.
        const uint32_t both =
            Transpose(__byte_perm(w[2 * k], w[2 * k + 1], y == 0 ? 0x6240 : 0x7351));
        b[k][y][0] = Centre<0>(__byte_perm(both, kBytes, 0x4240), -1024.0f - 128.0f);
        b[k][y][1] = Centre<0>(__byte_perm(both, kBytes, 0x4341), -1024.0f - 128.0f);
      }
    } else if constexpr (kBits == 4) {
      const uint32_t word = TransposePacked(w[k]);
      const uint32_t turned = __funnelshift_r(word, word, 8);
      b[k][0][0] = Centre<2>(CodesToHalves<0x003c003cu>(word), -256.0f - 8.0f);
      b[k][0][1] = Centre<6>(CodesToHalves<0x03c003c0u>(word), -16.0f - 8.0f);
      b[k][1][0] = Centre<2>(CodesToHalves<0x003c003cu>(turned), -256.0f - 8.0f);
      b[k][1][1] = Centre<6>(CodesToHalves<0x03c003c0u>(turned), -16.0f - 8.0f);
    } else {
      if (k % 2 == 0) w[k / 2] = TransposePacked(w[k / 2]);
      const uint32_t word = k % 2 == 0 ? w[k / 2] : __funnelshift_r(w[k / 2], w[k / 2], 8);
      b[k][0][0] = Centre<2>(CodesToHalves<0x000c000cu>(word), -256.0f - 2.0f);
      b[k][0][1] = Centre<4>(CodesToHalves<0x00300030u>(word), -64.0f - 2.0f);
      b[k][1][0] = Centre<6>(CodesToHalves<0x00c000c0u>(word), -16.0f - 2.0f);
      b[k][1][1] = Centre<8>(CodesToHalves<0x03000300u>(word), -4.0f - 2.0f);
    }
  }
}

// Queries of 16 heads as the first operand, and the sums over their channels, of heads g and g + 8,
// times log2(e).
template <int kSteps>
struct LatentQueries {
  uint32_t a[kSteps][4];
  float sum[2];
};

// The channels of a lane, 4 kSteps adjacent ones of heads g and g + 8, from their places; a head
// without a place is 0.
template <int kSteps>
__device__ __forceinline__ void MakeLatentQueries(const __half* const (&heads)[2],
                                                  LatentQueries<kSteps>& queries) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    uint32_t words[2 * kSteps];
#pragma unroll
    for (int i = 0; i < kSteps / 2; ++i) {
      uint4 four = make_uint4(0, 0, 0, 0);
      if (heads[h] != nullptr) four = reinterpret_cast<const uint4*>(heads[h])[i];
      words[4 * i] = four.x;
      words[4 * i + 1] = four.y;
      words[4 * i + 2] = four.z;
      words[4 * i + 3] = four.w;
    }
    float sum = 0.0f;
#pragma unroll
    for (int k = 0; k < 2 * kSteps; ++k) {
      const float2 two = HalvesToFloats(words[k]);
      sum += two.x + two.y;
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    constexpr float kLog2E = 1.44269504f;
    queries.sum[h] = sum * kLog2E;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      queries.a[k][h] = __byte_perm(words[k], words[kSteps + k], 0x5410);
      queries.a[k][h + 2] = __byte_perm(words[k], words[kSteps + k], 0x7632);
    }
  }
}

// Scores of the two halves of a tile = queries x keys. Steps take turns in two sums, so that a
// product need not wait for the one before it.
template <int kSteps>
__device__ __forceinline__ void MultiplyKeys(const uint32_t (&a)[kSteps][4],
                                             const uint32_t (&x)[kSteps][4],
                                             float (&scores)[2][4]) {
  float sums[2][2][4] = {};
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t b[2] = {x[k][half], x[k][half + 2]};
      Multiply(sums[k % 2][half], a[k][0], a[k][1], a[k][2], a[k][3], b);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[half][e] = sums[0][half][e] + sums[1][half][e];
  }
}

// Step and minimum, at the middle code, of a token.
struct TokenBounds {
  float step;
  float min;
};
__device__ __forceinline__ TokenBounds BoundsOf(float min, float range, int bits) {
  const float step = range * (1.0f / LargestCode(bits));
  return {step, fmaf(step, MiddleCode(bits), min)};
}

// Scores in base 2 of a tile's tokens, of `bounds` [half][which of the lane's two tokens].
__device__ __forceinline__ void FinishScores(const TokenBounds (&bounds)[2][2],
                                             const float (&sum)[2], float (&scores)[2][4]) {
  constexpr float kLog2E = 1.44269504f;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const TokenBounds& of = bounds[half][e & 1];
      scores[half][e] = fmaf(scores[half][e], of.step * kLog2E, of.min * sum[e >> 1]);
    }
  }
}

// Scores of the rope keys of a tile; `base` is the lane's first byte of it, `metadata` 128 minima
// and ranges.
template <int kBits, int kRopeSteps>
__device__ __forceinline__ void RopeScores(const LatentQueries<kRopeSteps>& queries,
                                           const uint8_t* base, const uint8_t* metadata, int tile,
                                           int lane, float (&scores)[2][4]) {
  uint32_t x[kRopeSteps][4];
  // A row may be shared by tiles.
  ExpandWords<kBits, kRopeSteps>(base, tile * fragment::TileWords(kBits, 16 * kRopeSteps) & 3, x);
  MultiplyKeys<kRopeSteps>(queries.a, x, scores);
  TokenBounds bounds[2][2];
#pragma unroll
  for (int e = 0; e < 2; ++e) {
    if constexpr (kBits == 16) {
      bounds[0][e] = bounds[1][e] = {1.0f, 0.0f};
    } else {
      const uint8_t* const at = metadata + 2 * (32 * (lane & 3) + 16 * e + 2 * tile);
      const float2 min = HalvesToFloats(*reinterpret_cast<const uint32_t*>(at));
      const float2 range =
          HalvesToFloats(*reinterpret_cast<const uint32_t*>(at + 2 * fragment::kTokens));
      bounds[0][e] = BoundsOf(min.x, range.x, kBits);
      bounds[1][e] = BoundsOf(min.y, range.y, kBits);
    }
  }
  FinishScores(bounds, queries.sum, scores);
}

// A warp's sums of its 128 channels over the tokens so far, of heads g and g + 8 (index 0 and 1):
//   sum p c = out 2^(scale_log2 - kWeightLog2) + minimum,  p = 2^(score - reference).
struct LatentSums {
  float out[2 * kLatentSteps][4];  // [2 k + y]
  float reference[2];
  float weight[2];   // Of this lane's tokens.
  float minimum[2];  // Weights times minima, likewise.
  int scale_log2;    // Steps so far are at most 2^this.
};
constexpr float kWeightLog2 = 14.0f;
constexpr int kLeastScaleLog2 = -24;  // That of F16's smallest number.
constexpr float kNoReference = -1e30f;

__device__ __forceinline__ void BeginSums(LatentSums& sums) {
#pragma unroll
  for (int n = 0; n < 2 * kLatentSteps; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sums.out[n][e] = 0.0f;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sums.reference[h] = kNoReference;
    sums.weight[h] = sums.minimum[h] = 0.0f;
  }
  sums.scale_log2 = kLeastScaleLog2;
}

__device__ __forceinline__ void ScaleOut(LatentSums& sums, float factor0, float factor1) {
#pragma unroll
  for (int n = 0; n < 2 * kLatentSteps; ++n) {
    sums.out[n][0] *= factor0;
    sums.out[n][1] *= factor0;
    sums.out[n][2] *= factor1;
    sums.out[n][3] *= factor1;
  }
}

// Brings the sums to references that are not below `largest` of any head, and to `step`.
__device__ __forceinline__ void RaiseSums(LatentSums& sums, float (&largest)[2], float step) {
#pragma unroll
  for (int distance = 1; distance < 4; distance *= 2) {
    largest[0] = fmaxf(largest[0], __shfl_xor_sync(~0u, largest[0], distance));
    largest[1] = fmaxf(largest[1], __shfl_xor_sync(~0u, largest[1], distance));
    step = fmaxf(step, __shfl_xor_sync(~0u, step, distance));
  }
  float factor[2];
  bool is_higher = false;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float reference = fmaxf(sums.reference[h], ceilf(largest[h]));
    factor[h] = Exp2(sums.reference[h] - reference);
    is_higher |= reference > sums.reference[h];
    sums.reference[h] = reference;
  }
  if (__any_sync(~0u, is_higher)) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sums.weight[h] *= factor[h];
      sums.minimum[h] *= factor[h];
    }
    ScaleOut(sums, factor[0], factor[1]);
  }
  // The same in all lanes: of one token every lane g has the same step.
  const int scale_log2 =
      max(sums.scale_log2, static_cast<int>(ceilf(__log2f(fmaxf(step, 0x1p-24f)))));
  if (scale_log2 > sums.scale_log2) {
    const float down = Exp2(static_cast<float>(sums.scale_log2 - scale_log2));
    ScaleOut(sums, down, down);
    sums.scale_log2 = scale_log2;
  }
}

// Tiles of c that a unit has: what 8 KiB hold of a group.
__host__ __device__ constexpr int LatentTiles(int bits) { return bits == 16 ? 2 : 4; }
constexpr int kMostLatentTiles = 4;

// Scores of the group's part of a unit's tokens, in base 2. `bounds` stay for the values.
template <int kBits>
__device__ __forceinline__ void LatentScores(const LatentQueries<kLatentSteps>& queries,
                                             const uint8_t* base, const uint8_t* metadata, int tile,
                                             int lane, float (&scores)[kMostLatentTiles][2][4],
                                             TokenBounds (&bounds)[kMostLatentTiles][2][2]) {
  constexpr int kTiles = LatentTiles(kBits);
  if constexpr (kBits != 16) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const uint8_t* const at = metadata + 2 * (32 * (lane & 3) + 16 * e + 2 * tile);
      uint32_t mins[kTiles];
      uint32_t ranges[kTiles];
      LoadWords(at, 0, mins);
      LoadWords(at + 2 * fragment::kTokens, 0, ranges);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        const float2 min = HalvesToFloats(mins[i]);
        const float2 range = HalvesToFloats(ranges[i]);
        bounds[i][0][e] = BoundsOf(min.x, range.x, kBits);
        bounds[i][1][e] = BoundsOf(min.y, range.y, kBits);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    uint32_t x[kLatentSteps][4];
    ExpandWords<kBits, kLatentSteps>(base, i * fragment::TileWords(kBits, 128), x);
    MultiplyKeys<kLatentSteps>(queries.a, x, scores[i]);
    if constexpr (kBits == 16) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[i][half][e] *= 1.44269504f;
      }
    } else {
      FinishScores(bounds[i], queries.sum, scores[i]);
    }
  }
}

// Hides what lies behind the last token of a 16-bit page; tile i of the page.
__device__ __forceinline__ void HideTokens(int i, int tokens, int lane, float (&scores)[2][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (32 * (lane & 3) + 16 * (e & 1) + 2 * i + half >= tokens) scores[half][e] = -INFINITY;
    }
  }
}

// Weighted values of a unit, whose weights are at most 2^(largest - reference); `weigh` gives those
// of a tile, of the lane's heads and tokens. Of 16-bit pages tokens below `tokens`.
template <int kBits, class Weigh>
__device__ __forceinline__ void LatentValues(LatentSums& sums, const uint8_t* base, int tile,
                                             int tokens, int lane, float (&largest)[2],
                                             const TokenBounds (&bounds)[kMostLatentTiles][2][2],
                                             const Weigh& weigh) {
  constexpr int kTiles = LatentTiles(kBits);
  const int t = lane & 3;
  float step = kBits == 16 ? 1.0f : 0.0f;
  if constexpr (kBits != 16) {
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        step = fmaxf(step, fmaxf(bounds[i][half][0].step, bounds[i][half][1].step));
      }
    }
  }
  RaiseSums(sums, largest, step);
  const float scale = Exp2(kWeightLog2 - static_cast<float>(sums.scale_log2));
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    float p[2][4];
    weigh(i, p);
    uint32_t weights[4];  // The first operand: [head half + 2 token half].
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      float w[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums.weight[e >> 1] += p[half][e];
        if constexpr (kBits == 16) {
          w[e] = p[half][e] * scale;
        } else {
          const TokenBounds& of = bounds[i][half][e & 1];
          sums.minimum[e >> 1] = fmaf(p[half][e], of.min, sums.minimum[e >> 1]);
          w[e] = p[half][e] * (of.step * scale);
        }
      }
      weights[2 * half] = PackHalves(w[0], w[1]);
      weights[2 * half + 1] = PackHalves(w[2], w[3]);
    }
    uint32_t b[kLatentSteps][2][2];
    TransposeWords<kBits, kLatentSteps>(base, i * fragment::TileWords(kBits, 128), b);
#pragma unroll
    for (int k = 0; k < kLatentSteps; ++k) {
#pragma unroll
      for (int y = 0; y < 2; ++y) {
        if constexpr (kBits == 16) {
          // What lies behind the last token may be no number.
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            const int token = 32 * t + 2 * (tile + i) + half;
            if (token >= tokens) b[k][y][half] &= 0xffff0000u;
            if (token + 16 >= tokens) b[k][y][half] &= 0x0000ffffu;
          }
        }
        Multiply(sums.out[2 * k + y], weights[0], weights[1], weights[2], weights[3], b[k][y]);
      }
    }
  }
}

}  // namespace pmkvq::cuda
