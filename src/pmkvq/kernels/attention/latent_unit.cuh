// One unit of attention over latents: what a warp, which has one group of 128 channels of c, does
// with some tiles of 16 tokens of a page. docs/cuda.md explains the arithmetic.
//
// Pages have tokens as rows (fragment_layout.h). A lane's 16 bytes are the second operand of the
// scores as they lie: rows are 16 query heads, columns tokens, sums run over channels. Sums of
// weighted values run over tokens, so a lane reads what other lanes own: 16 bytes have the same
// channels of two adjacent tokens, and a byte permutation pairs them. Rows of shared memory are
// swizzled (SwizzledLane), so that neither way of reading meets a bank twice.
//
//   tile i, half h, lane 4 g + t:   scores have heads g, g + 8 and tokens 32 t + 2 i + h, + 16
//   product 4 s + 2 y + x:          sums have heads g, g + 8, channels 32 t + 2 s + y + 16 x, + 8
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "pmkvq/kernels/attention/decode_unit.cuh"
#include "pmkvq/kernels/kv_quant/fragment_layout.h"

namespace pmkvq::cuda {

constexpr int kLatentSteps = 8;  // Of 128 channels.

// Tiles of a unit: those of codes, and half as many of 16-bit pages.
constexpr int kCodeTiles = 4;
__host__ __device__ constexpr int LatentTiles(int bits) {
  return bits == 16 ? kCodeTiles / 2 : kCodeTiles;
}
// Rows of 512 bytes of a tile of one group.
__host__ __device__ constexpr int LatentRows(int bits) {
  return fragment::TileWords(bits, 128) / 4;
}

__device__ __forceinline__ constexpr float LargestCode(int bits) {
  return bits == 8 ? 255.0f : bits == 4 ? 15.0f : 3.0f;
}
// Of values codes count from the middle of their range, so that sums of them are small.
__device__ __forceinline__ constexpr int MiddleCode(int bits) { return (1 << bits) / 2; }

// Codes of two tokens as floats around the middle: those of AND-OR are 1024 + code of the first
// token, and 1024 + kOdd code of the second. One exact multiply-add.
template <int kBits>
__device__ __forceinline__ uint32_t CentrePair(uint32_t magic) {
  constexpr float kOdd = kBits == 4 ? 16.0f : kBits == 2 ? 4.0f : 1.0f;
  constexpr auto kMiddle = static_cast<float>(MiddleCode(kBits));
  const __half2 factor = __floats2half2_rn(1.0f, 1.0f / kOdd);
  const __half2 summand = __floats2half2_rn(-1024.0f - kMiddle, -1024.0f / kOdd - kMiddle);
  const __half2 value = __hfma2(*reinterpret_cast<__half2*>(&magic), factor, summand);
  return *reinterpret_cast<const uint32_t*>(&value);
}

// Step and minimum of a token.
struct TokenBounds {
  float step;
  float min;
};

// Queries of 16 heads as the first operand, and the sums over their channels, of heads g and g + 8.
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
    queries.sum[h] = sum;
#pragma unroll
    for (int k = 0; k < kSteps; ++k) {
      queries.a[k][h] = __byte_perm(words[k], words[kSteps + k], 0x5410);
      queries.a[k][h + 2] = __byte_perm(words[k], words[kSteps + k], 0x7632);
    }
  }
}

// What a code of a token of half 0, or 1, is multiplied with in KeyOperands.
__device__ __forceinline__ constexpr float KeyFactor(int bits, int half) {
  return bits == 8 ? 1.0f : half == 0 ? 4.0f : bits == 4 ? 64.0f : 16.0f;
}
// Second operands of a tile's scores, of step k and each half of its tokens: floats of 16-bit
// pages, else 1024 + a code times its factor.
template <int kBits, int kSteps>
__device__ __forceinline__ void KeyOperands(const uint32_t (&w)[kSteps * kBits / 4], int k,
                                            uint32_t (&b)[2][2]) {
  if constexpr (kBits == 16) {
#pragma unroll
    for (int y = 0; y < 2; ++y) {
      b[0][y] = w[4 * k + 2 * y];
      b[1][y] = w[4 * k + 2 * y + 1];
    }
  } else if constexpr (kBits == 8) {
    constexpr uint32_t kBytes = 0x64646464u;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      b[half][0] = __byte_perm(w[2 * k + half], kBytes, 0x4240);
      b[half][1] = __byte_perm(w[2 * k + half], kBytes, 0x4341);
    }
  } else if constexpr (kBits == 4) {
    const uint32_t turned = __funnelshift_r(w[k], w[k], 8);
    b[0][0] = CodesToHalves<0x003c003cu>(w[k]);
    b[0][1] = CodesToHalves<0x003c003cu>(turned);
    b[1][0] = CodesToHalves<0x03c003c0u>(w[k]);
    b[1][1] = CodesToHalves<0x03c003c0u>(turned);
  } else {
    const uint32_t word = w[k / 2];
    const uint32_t first = k % 2 == 0 ? word : __funnelshift_r(word, word, 8);
    const uint32_t second = __funnelshift_r(word, word, k % 2 == 0 ? 4 : 12);
    b[0][0] = CodesToHalves<0x000c000cu>(first);
    b[0][1] = CodesToHalves<0x000c000cu>(second);
    b[1][0] = CodesToHalves<0x00300030u>(first);
    b[1][1] = CodesToHalves<0x00300030u>(second);
  }
}

// Scores, in base 2, of the two halves of a tile. `bounds` are of [half][which of the lane's two
// tokens], where pages have codes. Steps take turns in two sums, so that a product need not wait
// for the one before it.
template <int kBits, int kSteps>
__device__ __forceinline__ void ScoreTile(const LatentQueries<kSteps>& queries,
                                          const uint32_t (&w)[kSteps * kBits / 4],
                                          const TokenBounds (&bounds)[2][2],
                                          float (&scores)[2][4]) {
  constexpr float kLog2E = 1.44269504f;
  float sums[2][2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      sums[0][half][e] = kBits == 16 ? 0.0f : -1024.0f * queries.sum[e >> 1];
      sums[1][half][e] = 0.0f;
    }
  }
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    uint32_t b[2][2];
    KeyOperands<kBits, kSteps>(w, k, b);
    const uint32_t(&a)[4] = queries.a[k];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      Multiply(sums[k % 2][half], a[0], a[1], a[2], a[3], b[half]);
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float sum = sums[0][half][e] + sums[1][half][e];
      if constexpr (kBits == 16) {
        scores[half][e] = sum * kLog2E;
      } else {
        const TokenBounds& of = bounds[half][e & 1];
        scores[half][e] = fmaf(sum, of.step * (kLog2E / KeyFactor(kBits, half)),
                               of.min * (queries.sum[e >> 1] * kLog2E));
      }
    }
  }
}

// Where 16 bytes of a lane lie in a row of c: eight lanes that read one after the other, and eight
// that read the same channels of eight pairs of tokens, have all banks between them. Rows of the
// second half of a tile have the other order of halves of 128 bytes.
__device__ __forceinline__ constexpr int SwizzledLane(int lane) {
  return (lane & 24) | ((lane & 7) ^ (lane >> 3));
}
constexpr int kSwizzledHalf = 64;  // Bytes that a row of the second half is XORed with.
__device__ __forceinline__ constexpr bool IsSecondHalf(int bits, int row) {
  return (row & (bits / 4)) != 0;
}

// A lane's own words of tile i.
template <int kBits>
__device__ __forceinline__ void LoadOwnWords(const uint8_t* latents, int i, int lane,
                                             uint32_t (&w)[kLatentSteps * kBits / 4]) {
  constexpr int kRows = LatentRows(kBits);
  const int at = 16 * SwizzledLane(lane);
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int in_row = IsSecondHalf(kBits, row) ? at ^ kSwizzledHalf : at;
    const uint4 four =
        *reinterpret_cast<const uint4*>(latents + (i * kRows + row) * fragment::kRowBytes + in_row);
    w[4 * row] = four.x;
    w[4 * row + 1] = four.y;
    w[4 * row + 2] = four.z;
    w[4 * row + 3] = four.w;
  }
}

// Values of tile i for the sums: b[product][pair], each one channel of two adjacent tokens, the
// pair 32 t + 2 i or 16 tokens behind it. Codes count from the middle: what sums of floats 1024 +
// code have too much could be taken off later, but tensor cores cut bits off their sums, 8 times as
// large then, and always to the same side.
template <int kBits>
__device__ __forceinline__ void LoadPairs(const uint8_t* latents, int i, int lane,
                                          uint32_t (&b)[16][2]) {
  constexpr int kRows = LatentRows(kBits);
  constexpr uint32_t kBytes = 0x64646464u;
  const int second_half = (lane >> 2) & 1;  // Of the channels of lane lane >> 3.
  const int t = lane & 3;
  if constexpr (kBits == 2) {
    const int at = i * fragment::kRowBytes + 16 * (8 * t + ((lane >> 3) ^ t)) + 8 * second_half;
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {
      const uint2 words = *reinterpret_cast<const uint2*>(latents + (at ^ pair * kSwizzledHalf));
#pragma unroll
      for (int v = 0; v < 2; ++v) {
        const uint32_t word = fragment::RotateRight(v == 0 ? words.x : words.y, 2);
#pragma unroll
        for (int y = 0; y < 2; ++y) {
          const uint32_t codes = y == 0 ? word : word >> 4;
#pragma unroll
          for (int step = 0; step < 2; ++step) {
#pragma unroll
            for (int x = 0; x < 2; ++x) {
              b[4 * (2 * v + step) + 2 * y + x][pair] = CentrePair<2>(
                  CodesToHalves<0x000c0003u>(__byte_perm(codes, 0, 0x0101 * (step + 2 * x))));
            }
          }
        }
      }
    }
  } else {
    const int at = (i * kRows + second_half * (kRows / 2)) * fragment::kRowBytes +
                   16 * (8 * t + ((lane >> 3) ^ t ^ (4 * second_half)));
#pragma unroll
    for (int row = 0; row < kRows / 2; ++row) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const uint4 words = *reinterpret_cast<const uint4*>(latents + row * fragment::kRowBytes +
                                                            (at ^ pair * kSwizzledHalf));
        if constexpr (kBits == 16) {
          b[4 * row][pair] = __byte_perm(words.x, words.y, 0x5410);
          b[4 * row + 1][pair] = __byte_perm(words.x, words.y, 0x7632);
          b[4 * row + 2][pair] = __byte_perm(words.z, words.w, 0x5410);
          b[4 * row + 3][pair] = __byte_perm(words.z, words.w, 0x7632);
        } else if constexpr (kBits == 8) {
#pragma unroll
          for (int step = 0; step < 2; ++step) {
            const uint32_t even = step == 0 ? words.x : words.z;
            const uint32_t odd = step == 0 ? words.y : words.w;
#pragma unroll
            for (int y = 0; y < 2; ++y) {
              const uint32_t codes = __byte_perm(even, odd, y == 0 ? 0x6240 : 0x7351);
              const int n = 4 * (2 * row + step) + 2 * y;
              b[n][pair] = CentrePair<8>(__byte_perm(codes, kBytes, 0x4140));
              b[n + 1][pair] = CentrePair<8>(__byte_perm(codes, kBytes, 0x4342));
            }
          }
        } else {
          const uint32_t four[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
          for (int step = 0; step < 4; ++step) {
            const uint32_t word = fragment::RotateRight(four[step], 2);
#pragma unroll
            for (int n = 0; n < 4; ++n) {  // Bytes y + 2 x.
              b[4 * step + 2 * (n & 1) + (n >> 1)][pair] =
                  CentrePair<4>(CodesToHalves<0x00f0000fu>(__byte_perm(word, 0, 0x0101 * n)));
            }
          }
        }
      }
    }
  }
}

// A warp's sums of its 128 channels over the tokens so far, of heads g and g + 8 (index 0 and 1):
//   sum p c = out / scale + minimum,  p = 2^(score - reference).
struct LatentSums {
  float out[16][4];    // [product]
  float reference[2];  // The same in all warps of a block.
  float weight[2];     // Of this lane's tokens in half tiles that this warp has weighed.
  float minimum[2];    // Weights times minima, of this lane's tokens.
  float scale;         // Of steps: a power of two, by which none so far is above kMostStep.
};
// References are whole numbers, so a new one rounds nothing again. A score may be so much above its
// reference: weights times steps then are at most 2^kRoomLog2 kMostStep, which F16 holds.
constexpr float kRoomLog2 = 6.0f;
constexpr float kMostStep = 512.0f;
constexpr float kLeastStep = 0x1p-24f;  // F16's smallest number.
constexpr float kNoReference = -1e30f;

__device__ __forceinline__ void BeginSums(LatentSums& sums) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
#pragma unroll
    for (int n = 0; n < 16; ++n) sums.out[n][e] = 0.0f;
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    sums.reference[h] = kNoReference;
    sums.weight[h] = sums.minimum[h] = 0.0f;
  }
  sums.scale = kMostStep / kLeastStep;
}

__device__ __forceinline__ void ScaleOut(LatentSums& sums, float factor0, float factor1) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    const float factor = e < 2 ? factor0 : factor1;
#pragma unroll
    for (int n = 0; n < 16; ++n) sums.out[n][e] *= factor;
  }
}

// Brings the sums to references that are not below `largest`, the same in all lanes of a head.
__device__ __forceinline__ void RaiseReferences(LatentSums& sums, const float (&largest)[2]) {
  float factor[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float reference = fmaxf(sums.reference[h], ceilf(largest[h]));
    factor[h] = Exp2(sums.reference[h] - reference);
    sums.reference[h] = reference;
    sums.weight[h] *= factor[h];
    sums.minimum[h] *= factor[h];
  }
  ScaleOut(sums, factor[0], factor[1]);
}

// Brings the sums to steps of `step`, the same in all lanes, or less.
__device__ __forceinline__ void RaiseStep(LatentSums& sums, float step) {
  if (step * sums.scale <= kMostStep) return;
  const float scale = kMostStep * Exp2(-ceilf(__log2f(step)));
  const float factor = scale / sums.scale;
  ScaleOut(sums, factor, factor);
  sums.scale = scale;
}

// Hides what lies behind the last token of a 16-bit page; tile i of the page, one half.
__device__ __forceinline__ void HideTokens(int i, int half, int tokens, int lane,
                                           float (&scores)[4]) {
#pragma unroll
  for (int e = 0; e < 4; ++e) {
    if (32 * (lane & 3) + 16 * (e & 1) + 2 * i + half >= tokens) scores[e] = -INFINITY;
  }
}

// Adds tile i of the unit, weighted with p [half][token and head]. Of 16-bit pages tokens below
// `tokens` of tile `tile` + i.
template <int kBits>
__device__ __forceinline__ void AddValues(LatentSums& sums, const uint8_t* latents, int i, int tile,
                                          int tokens, int lane, const float (&p)[2][4],
                                          const TokenBounds (&bounds)[2][2]) {
  float w[2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    constexpr auto kMiddle = static_cast<float>(MiddleCode(kBits));
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if constexpr (kBits == 16) {
        w[half][e] = p[half][e] * sums.scale;
      } else {
        const TokenBounds& of = bounds[half][e & 1];
        const float middle = fmaf(of.step, kMiddle, of.min);
        sums.minimum[e >> 1] = fmaf(p[half][e], middle, sums.minimum[e >> 1]);
        w[half][e] = p[half][e] * (of.step * sums.scale);
      }
    }
  }
  const uint32_t a[4] = {PackHalves(w[0][0], w[1][0]), PackHalves(w[0][2], w[1][2]),
                         PackHalves(w[0][1], w[1][1]), PackHalves(w[0][3], w[1][3])};
  uint32_t b[16][2];
  LoadPairs<kBits>(latents, i, lane, b);
#pragma unroll
  for (int n = 0; n < 16; ++n) {
    if constexpr (kBits == 16) {
      // What lies behind the last token may be no number.
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const int left = tokens - (32 * (lane & 3) + 16 * pair + 2 * (tile + i));
        b[n][pair] &= left >= 2 ? ~0u : left == 1 ? 0x0000ffffu : 0u;
      }
    }
    Multiply(sums.out[n], a[0], a[1], a[2], a[3], b[n]);
  }
}

}  // namespace pmkvq::cuda
