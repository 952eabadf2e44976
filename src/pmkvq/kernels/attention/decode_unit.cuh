// One unit of decode attention: a warp's scores, softmax and weighted values of up to 128 tokens of
// one page, from codes in shared memory. docs/cuda.md explains the arithmetic.
//
// A lane's part of a product's operand is what lies at its 16 bytes of a row (fragment_layout.h).
// Codes become floats of 16 bits without conversion: one AND-OR with the bits of 1,024 makes
// 1024 + m * code, where m is the weight of the code's lowest bit. Accumulators start at -1024
// times the sum of the other operand. m is the same in all codes of a row, or, at 2 bits, of a row
// and one of two columns; so it is divided out of the row's step (keys), the output row (values),
// or the columns' other operand, and never touches a code.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "pmkvq/kernels/kv_quant/fragment_layout.h"

namespace pmkvq::cuda {

constexpr uint32_t kOnes = 0x3c003c00u;   // Two F16 ones.
constexpr uint32_t kMagic = 0x64006400u;  // Two of 1,024.

// 2^x.
__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ uint32_t PackHalves(float low, float high) {
  uint32_t word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
__device__ __forceinline__ float2 HalvesToFloats(uint32_t word) {
  return __half22float2(*reinterpret_cast<__half2*>(&word));
}
__device__ __forceinline__ uint32_t MultiplyHalves(uint32_t word, float factor) {
  const __half2 product = __hmul2(*reinterpret_cast<__half2*>(&word), __float2half2_rn(factor));
  return *reinterpret_cast<const uint32_t*>(&product);
}

// c [16 rows, 8 columns] += a [16, 16] b [16, 8], operands and layout of mma.m16n8k16.
__device__ __forceinline__ void Multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2,
                                         uint32_t a3, const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b[0]), "r"(b[1]));
}
// An 8 x 8 matrix of F16, transposed.
__device__ __forceinline__ uint32_t Transpose(uint32_t word) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(word));
  return result;
}
// Codes under the mask as floats 1024 + m * code.
template <uint32_t kMask>
__device__ __forceinline__ uint32_t CodesToHalves(uint32_t word) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "n"(kMask), "n"(kMagic));
  return result;
}

// Of a width: m of even and odd rows, whether columns with y = 1 have 16 times that, the largest
// code, and how many tiles of keys (steps of values) are in shared memory at a time.
template <int kBits>
struct Width;
template <>
struct Width<16> {
  static constexpr float kEven = 1, kOdd = 1, kMaxCode = 1;
  static constexpr bool kWideColumns = false;
  static constexpr int kTiles = 2;
};
template <>
struct Width<8> {
  static constexpr float kEven = 1, kOdd = 1, kMaxCode = 255;
  static constexpr bool kWideColumns = false;
  static constexpr int kTiles = 4;
};
template <>
struct Width<4> {
  static constexpr float kEven = 4, kOdd = 64, kMaxCode = 15;
  static constexpr bool kWideColumns = false;
  static constexpr int kTiles = 8;
};
template <>
struct Width<2> {
  static constexpr float kEven = 4, kOdd = 16, kMaxCode = 3;
  static constexpr bool kWideColumns = true;
  static constexpr int kTiles = 8;
};
// Tiles that a unit computes: half a page, or less. What is unrolled for it then takes half of the
// place among the instructions that a multiprocessor keeps, and pages of many widths are attended
// faster. Where most pages of a sequence have keys and values of 2 bits, a unit is a whole page of
// them (WarpPages::has_whole_units): that has fewer instructions for a page.
template <int kBitsK, int kBitsV>
__host__ __device__ constexpr int UnitTiles() {
  constexpr int kBoth =
      Width<kBitsK>::kTiles < Width<kBitsV>::kTiles ? Width<kBitsK>::kTiles : Width<kBitsV>::kTiles;
  return kBoth < 4 ? kBoth : 4;
}
__device__ __forceinline__ int UnitTilesOf(int k_bits, int v_bits, bool has_whole_units) {
  if (has_whole_units && k_bits == 2 && v_bits == 2) return 8;
  return max(k_bits, v_bits) == 16 ? 2 : 4;
}
__device__ __forceinline__ int TilesOf(int bits) { return bits == 16 ? 2 : bits == 8 ? 4 : 8; }

// A lane's `kCount` words from word `first` on; `base` is the lane's first byte of the block.
template <int kCount>
__device__ __forceinline__ void LoadWords(const uint8_t* base, int first,
                                          uint32_t (&words)[kCount]) {
  const uint8_t* p = base + (first >> 2) * fragment::kRowBytes + (first & 3) * 4;
  if constexpr (kCount == 1) {
    words[0] = *reinterpret_cast<const uint32_t*>(p);
  } else if constexpr (kCount == 2) {
    const uint2 two = *reinterpret_cast<const uint2*>(p);
    words[0] = two.x;
    words[1] = two.y;
  } else {
#pragma unroll
    for (int i = 0; i < kCount / 4; ++i) {
      const uint4 four = *reinterpret_cast<const uint4*>(p + i * fragment::kRowBytes);
      words[4 * i] = four.x;
      words[4 * i + 1] = four.y;
      words[4 * i + 2] = four.z;
      words[4 * i + 3] = four.w;
    }
  }
}

// c += (16 rows of codes, kSteps steps, from word `first` on) x b.
template <int kBits, int kSteps>
__device__ __forceinline__ void MultiplyCodes(float (&c)[4], const uint8_t* base, int first,
                                              const uint32_t (*b)[2]) {
  uint32_t w[kSteps * kBits / 4];
  LoadWords(base, first, w);
#pragma unroll
  for (int k = 0; k < kSteps; ++k) {
    if constexpr (kBits == 16) {
      Multiply(c, w[4 * k], w[4 * k + 1], w[4 * k + 2], w[4 * k + 3], b[k]);
    } else if constexpr (kBits == 8) {
      const uint32_t even = w[2 * k];
      const uint32_t odd = w[2 * k + 1];
      constexpr uint32_t kBytes = 0x64646464u;
      Multiply(c, __byte_perm(even, kBytes, 0x4240), __byte_perm(odd, kBytes, 0x4240),
               __byte_perm(even, kBytes, 0x4341), __byte_perm(odd, kBytes, 0x4341), b[k]);
    } else if constexpr (kBits == 4) {
      const uint32_t turned = __funnelshift_r(w[k], w[k], 8);
      Multiply(c, CodesToHalves<0x003c003cu>(w[k]), CodesToHalves<0x03c003c0u>(w[k]),
               CodesToHalves<0x003c003cu>(turned), CodesToHalves<0x03c003c0u>(turned), b[k]);
    } else {
      const uint32_t word = k % 2 == 0 ? w[k / 2] : __funnelshift_r(w[k / 2], w[k / 2], 8);
      Multiply(c, CodesToHalves<0x000c000cu>(word), CodesToHalves<0x00300030u>(word),
               CodesToHalves<0x00c000c0u>(word), CodesToHalves<0x03000300u>(word), b[k]);
    }
  }
}

// A warp's sums over the tokens so far. A lane has two heads (2 t and 2 t + 1; index 0 and 1) and,
// of them, D / 8 dims: tile j has dim D / 8 g + 2 j at [0], [1] and the next one at [2], [3].
//
// Weights are 2^(score - reference): out = (sum p step code + sum p min) / sum p. References are
// whole numbers, so a new one multiplies by a power of two and nothing is rounded again. That
// matters: what is subtracted for the offset 1024 must be the sum of the very weights that were
// multiplied.
template <int kDim>
struct WarpSums {
  float out[kDim / 16][4];
  float reference[2];
  float weight[2];   // Of this lane's tokens.
  float minimum[2];  // Weights times minima, likewise.
};

// The queries of the group as the second operand, and their sums.
template <int kDim>
struct Queries {
  uint32_t b[kDim / 16][2];
  float sum[2];     // Times scale * log2(e).
  float offset[2];  // -1024 times the sum of what is multiplied; the other where columns are wide.
  float wide_offset[2];
  // kGeneral: what scores are multiplied with; 1 but with keys per channel, whose ranges times a
  // power of two are in b, whose minima are in `sum`.
  float factor[2];
};

// Where a unit reads; addresses of shared memory.
struct UnitMemory {
  const uint8_t* k;           // Of the lane.
  const uint8_t* v;           // Of the lane.
  const uint8_t* k_metadata;  // 128 minima, then ranges, of the tokens.
  const uint8_t* v_metadata;
};

// New references, for scores that would leave F16's range: rare. Weights times steps then are near
// 2^8; what is summed so far, and `weights` of earlier tiles of the unit, are brought along.
template <int kDim, int kTiles>
__device__ __forceinline__ void RaiseReferences(WarpSums<kDim>& sums, float (&offset)[4],
                                                uint32_t (&weights)[kTiles][2], int num_weights,
                                                float max0, float max1, float max_step, int g) {
#pragma unroll
  for (int distance = 4; distance < 32; distance *= 2) {
    max0 = fmaxf(max0, __shfl_xor_sync(~0u, max0, distance));
    max1 = fmaxf(max1, __shfl_xor_sync(~0u, max1, distance));
    max_step = fmaxf(max_step, __shfl_xor_sync(~0u, max_step, distance));
  }
  const float shift = 8.0f - ceilf(__log2f(max_step));
  const float raised[2] = {fmaxf(sums.reference[0], ceilf(max0 - shift)),
                           fmaxf(sums.reference[1], ceilf(max1 - shift))};
  float factor[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    factor[i] = Exp2(sums.reference[i] - raised[i]);
    sums.reference[i] = raised[i];
    sums.weight[i] *= factor[i];
    sums.minimum[i] *= factor[i];
    offset[i] *= factor[i];
    offset[2 + i] *= factor[i];
  }
#pragma unroll
  for (int j = 0; j < kDim / 16; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sums.out[j][e] *= factor[e & 1];
  }
  // Transposed weights: a lane has head g of them.
  const float of0 = __shfl_sync(~0u, factor[0], g >> 1);
  const float of1 = __shfl_sync(~0u, factor[1], g >> 1);
  const float own = (g & 1) != 0 ? of1 : of0;
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    if (i >= num_weights) break;
    weights[i][0] = MultiplyHalves(weights[i][0], own);
    weights[i][1] = MultiplyHalves(weights[i][1], own);
  }
}

// Tokens of tiles tile .. tile + kTiles of a page; of 16-bit pages those below `tokens`, and with
// kGeneral those from `first` on. `k_done` is called when keys and their metadata have been read,
// `v_ready` before values are.
template <int kBitsK, int kBitsV, int kTiles, bool kGeneral, int kDim, class KDone, class VReady>
__device__ __forceinline__ void AttendUnit(WarpSums<kDim>& sums, const Queries<kDim>& queries,
                                           float scale, const UnitMemory& memory, int tile,
                                           int first, int tokens, int lane, const KDone& k_done,
                                           const VReady& v_ready) {
  using K = Width<kBitsK>;
  using V = Width<kBitsV>;
  constexpr int kPart = kTiles < 4 ? kTiles : 4;  // Tiles whose scores are in registers at a time.
  constexpr int kKeyWords = fragment::TileWords(kBitsK, kDim);
  constexpr float kLargestProduct = 14.0f;  // log2
  const int g = lane >> 2;
  const int first_k = K::kTiles == kTiles ? 0 : tile % K::kTiles;
  const int first_v = V::kTiles == kTiles ? 0 : tile % V::kTiles;
  uint32_t weights[kTiles][2];
  float offset[4] = {0, 0, 0, 0};  // Sums of weights, by column.
  const float even = scale / (K::kMaxCode * K::kEven);
  const float odd = scale / (K::kMaxCode * K::kOdd);
#pragma unroll
  for (int part = 0; part < kTiles / kPart; ++part) {
    float score[kPart][4];  // [0], [1]: an even token of both heads; [2], [3]: the next token.
#pragma unroll
    for (int i = 0; i < kPart; ++i) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        score[i][e] = kBitsK == 16      ? 0.0f
                      : K::kWideColumns ? queries.wide_offset[e & 1]
                                        : queries.offset[e & 1];
      }
      MultiplyCodes<kBitsK, kDim / 16>(score[i], memory.k, (first_k + part * kPart + i) * kKeyWords,
                                       queries.b);
    }
    // Metadata of the lane's tokens lie side by side: 4 bytes a tile.
    const int of_lane = g * 32 + (tile + part * kPart) * 4;
    const auto load = [&](const uint8_t* metadata, int array, uint32_t(&words)[kPart]) {
      LoadWords(metadata + of_lane + array * 2 * fragment::kTokens, 0, words);
    };
    float max0 = -INFINITY;
    float max1 = -INFINITY;
    uint32_t minima[kPart];
    uint32_t ranges[kPart];
    if constexpr (kBitsK != 16) {
      load(memory.k_metadata, 0, minima);
      load(memory.k_metadata, 1, ranges);
    }
#pragma unroll
    for (int i = 0; i < kPart; ++i) {
      if constexpr (kBitsK == 16) {
        const int token = 16 * g + 2 * (tile + part * kPart + i);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          score[i][e] = token + (e >> 1) < tokens ? score[i][e] * scale : -INFINITY;
        }
      } else {
        const float2 min = HalvesToFloats(minima[i]);
        const float2 range = HalvesToFloats(ranges[i]);
        const float step_even = range.x * even;
        const float step_odd = range.y * odd;
        const float factor[2] = {kGeneral ? queries.factor[0] : 1.0f,
                                 kGeneral ? queries.factor[1] : 1.0f};
        score[i][0] = fmaf(score[i][0], step_even * factor[0], min.x * queries.sum[0]);
        score[i][1] = fmaf(score[i][1], step_even * factor[1], min.x * queries.sum[1]);
        score[i][2] = fmaf(score[i][2], step_odd * factor[0], min.y * queries.sum[0]);
        score[i][3] = fmaf(score[i][3], step_odd * factor[1], min.y * queries.sum[1]);
      }
      if constexpr (kGeneral) {
        const int token = 16 * g + 2 * (tile + part * kPart + i);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          if (token + (e >> 1) < first) score[i][e] = -INFINITY;
        }
      }
      max0 = fmaxf(max0, fmaxf(score[i][0], score[i][2]));
      max1 = fmaxf(max1, fmaxf(score[i][1], score[i][3]));
    }
    float max_step = 1.0f;
    if constexpr (kBitsV != 16) {
      load(memory.v_metadata, 0, minima);
      load(memory.v_metadata, 1, ranges);
      __half2 largest = *reinterpret_cast<const __half2*>(&ranges[0]);
#pragma unroll
      for (int i = 1; i < kPart; ++i) {
        largest = __hmax2(largest, *reinterpret_cast<const __half2*>(&ranges[i]));
      }
      max_step = fmaxf(__low2float(largest), __high2float(largest)) * (1.0f / V::kMaxCode);
    }
    // Each lane looks at its own scores only; the reference is raised where any product of weight
    // and step would leave F16.
    const float product =
        fmaxf(max0 - sums.reference[0], max1 - sums.reference[1]) + __log2f(max_step);
    if (__any_sync(~0u, product > kLargestProduct)) {
      RaiseReferences(sums, offset, weights, part * kPart, max0, max1, max_step, g);
    }
    constexpr float kEvenStep = 1.0f / V::kMaxCode;
    constexpr float kOddStep = V::kWideColumns ? 1.0f / (16.0f * V::kMaxCode) : 1.0f / V::kMaxCode;
#pragma unroll
    for (int i = 0; i < kPart; ++i) {
      const float p0 = Exp2(score[i][0] - sums.reference[0]);
      const float p1 = Exp2(score[i][1] - sums.reference[1]);
      const float p2 = Exp2(score[i][2] - sums.reference[0]);
      const float p3 = Exp2(score[i][3] - sums.reference[1]);
      sums.weight[0] += p0 + p2;
      sums.weight[1] += p1 + p3;
      uint32_t(&pair)[2] = weights[part * kPart + i];
      if constexpr (kBitsV == 16) {
        pair[0] = Transpose(PackHalves(p0, p1));
        pair[1] = Transpose(PackHalves(p2, p3));
      } else {
        const float2 min = HalvesToFloats(minima[i]);
        const float2 range = HalvesToFloats(ranges[i]);
        const float step_even = range.x * kEvenStep;
        const float step_odd = range.y * kOddStep;
        sums.minimum[0] = fmaf(p0, min.x, fmaf(p2, min.y, sums.minimum[0]));
        sums.minimum[1] = fmaf(p1, min.x, fmaf(p3, min.y, sums.minimum[1]));
        pair[0] = Transpose(PackHalves(p0 * step_even, p1 * step_even));
        pair[1] = Transpose(PackHalves(p2 * step_odd, p3 * step_odd));
        Multiply(offset, kOnes, kOnes, kOnes, kOnes, pair);
      }
    }
  }
  __syncwarp();
  k_done();
  v_ready();
  constexpr int kValueTileBytes = kBitsV == 2 ? 512 : 1024;
#pragma unroll
  for (int j = 0; j < kDim / 16; ++j) {
    if constexpr (kBitsV != 16) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        sums.out[j][e] = fmaf(offset[e & 1], -1024.0f, sums.out[j][e]);
      }
    }
    MultiplyCodes<kBitsV, kTiles>(sums.out[j], memory.v + j * kValueTileBytes, first_v * kBitsV / 4,
                                  weights);
  }
}

}  // namespace pmkvq::cuda
