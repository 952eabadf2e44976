// How one lane of a warp takes codes, scales and rows of x to tensor-core products:
// device_codes_layout.h has the tile. The two parts of four rows of x are the columns of one
// product.
//
// Instructions are scarcer than bytes with 4-bit codes: at the speed of memory a quarter of a
// multiprocessor has 64 issue slots for a group of 16 rows, and 32 for integer operations. So F16
// it is: its ten bits hold a code at bit 0 or 4, and one shift serves two pairs of codes.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "pmkvq/kernels/cuda/float16.cuh"
#include "pmkvq/kernels/cuda/mma.cuh"
#include "pmkvq/kernels/gemm/code_tile.h"

namespace pmkvq::cuda {

struct CodesArguments {
  const __half* x;  // [2 part_rows, k]
  const uint8_t* w;
  float* y;
  int64_t y_stride;
  int part_rows;
  int rows;
  int n;
  int k;
  int num_strips;
  int tiles_across;
  int stages = 0;
};

// The bytes of IQ4's table as halves: eight lower and eight upper bytes in two words each.
struct TableWords {
  uint32_t low[4];
  uint32_t high[4];
};
constexpr uint16_t HalfOfSmall(int value) {
  // |value| < 128: exact.
  const int magnitude = value < 0 ? -value : value;
  int exponent = 0;
  while ((magnitude >> (exponent + 1)) != 0) ++exponent;
  const int mantissa = (magnitude << (10 - exponent)) & 0x3ff;
  return static_cast<uint16_t>((value < 0 ? 0x8000 : 0) | (exponent + 15) << 10 | mantissa);
}
constexpr TableWords MakeTable() {
  TableWords words{};
  for (int i = 0; i < 16; ++i) {
    const uint32_t half = HalfOfSmall(code_tile::kTable[i]);
    words.low[i / 4] |= (half & 0xffu) << (8 * (i % 4));
    words.high[i / 4] |= (half >> 8) << (8 * (i % 4));
  }
  return words;
}

// Numbers of a format, for kernels: they cannot call functions of the host.
template <WeightFormat kFormat>
struct CodeFacts {
  static constexpr code_tile::Format kF = code_tile::FormatOf(kFormat);
  static constexpr int kTileBytes = code_tile::TileBytes(kF);
  static constexpr int kLowBytes = code_tile::LowBytes(kF);
  static constexpr int kScalesAt = code_tile::ScalesAt(kF);
  static constexpr int kScaleBytes = code_tile::ScaleBytes(kF.scales);
  static constexpr bool kHasMinima = code_tile::HasMinima(kF.scales);
};
inline constexpr TableWords kTableWords = MakeTable();

// a & b | c.
__device__ __forceinline__ uint32_t AndOr(uint32_t a, uint32_t b, uint32_t c) {
  return (a & b) | c;
}
__device__ __forceinline__ uint32_t ShiftedBy(uint32_t word, int right) {
  return right >= 0 ? word >> right : word << -right;
}

// Codes of one lane's place: of a group, registers of the operand A of its two products of 16
// columns.
template <WeightFormat kFormat>
class LaneCodes {
 public:
  static constexpr code_tile::Format kF = CodeFacts<kFormat>::kF;

  // Of two groups, 2 * half and the one behind.
  __device__ void Load(const uint8_t* tile, int lane, int half) {
    if constexpr (kF.bits == 8) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint4 w = *reinterpret_cast<const uint4*>(tile + (2 * half + i) * 512 + lane * 16);
        low_[4 * i] = w.x;
        low_[4 * i + 1] = w.y;
        low_[4 * i + 2] = w.z;
        low_[4 * i + 3] = w.w;
      }
    } else {
      const uint4 w = *reinterpret_cast<const uint4*>(tile + half * 512 + lane * 16);
      low_[0] = w.x;
      low_[1] = w.y;
      low_[2] = w.z;
      low_[3] = w.w;
      const uint8_t* const high = tile + CodeFacts<kFormat>::kLowBytes;
      if constexpr (kF.bits == 5) {
        high_[0] = *reinterpret_cast<const uint32_t*>(high + lane * 8 + half * 4);
      } else if constexpr (kF.bits == 6) {
        const uint2 h = *reinterpret_cast<const uint2*>(high + lane * 16 + half * 8);
        high_[0] = h.x;
        high_[1] = h.y;
      }
    }
  }

  // Of group `i` of the two.
  __device__ void Expand(int i, uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int side = 0; side < 2; ++side) {
      uint32_t pairs[4];
      if constexpr (kF.bits == 8) {
        ExpandBytes(low_[4 * i + 2 * side], pairs[0], pairs[1]);
        ExpandBytes(low_[4 * i + 2 * side + 1], pairs[2], pairs[3]);
      } else if constexpr (kF.is_table) {
        LookUp(low_[2 * i + side], pairs);
      } else {
        ExpandNibbles(low_[2 * i + side], i, side, pairs);
      }
      a[0][side] = pairs[0];
      a[0][2 + side] = pairs[1];
      a[1][side] = pairs[2];
      a[1][2 + side] = pairs[3];
    }
  }

 private:
  static constexpr uint32_t kOne = 0x64006400u;  // 1024, whose last bit counts 1.

  __device__ static uint32_t Less(uint32_t value, float less) {
    return AsWord(__hsub2(AsPair<__half>(value), __float2half2_rn(less)));
  }

  __device__ static void ExpandBytes(uint32_t codes, uint32_t& first, uint32_t& second) {
    first = Less(__byte_perm(codes, kOne, 0x7170), 1024.0f + kF.offset);
    second = Less(__byte_perm(codes, kOne, 0x7372), 1024.0f + kF.offset);
  }

  __device__ void ExpandNibbles(uint32_t codes, int i, int side, uint32_t (&pairs)[4]) const {
    constexpr uint32_t kLow = 0x000f000fu;
    constexpr uint32_t kNext = 0x00f000f0u;
#pragma unroll
    for (int both = 0; both < 2; ++both) {
      const uint32_t word = both == 0 ? codes : codes >> 8;
      uint32_t first = AndOr(word, kLow, kOne);
      uint32_t second = AndOr(word, kNext, kOne);
      const int half = 2 * side + both;
      if constexpr (kF.bits == 5) {
        const int step = 4 * i + half;
        const uint32_t high = ShiftedBy(high_[0], step % 4 + step / 4 * 8 - 4);
        first = AndOr(high, 0x00100010u, first);
        second = AndOr(high, 0x01000100u, second);
      } else if constexpr (kF.bits == 6) {
        const uint32_t high = ShiftedBy(high_[i], half % 2 * 2 + half / 2 * 8 - 4);
        first = AndOr(high, 0x00300030u, first);
        second = AndOr(high, 0x03000300u, second);
      }
      pairs[2 * both] = Less(first, 1024.0f + kF.offset);
      // (1024 + 16 code) / 16.
      pairs[2 * both + 1] =
          AsWord(__hfma2(AsPair<__half>(second), __float2half2_rn(0.0625f),
                         __float2half2_rn(-64.0f - static_cast<float>(kF.offset))));
    }
  }

  __device__ static void LookUp(uint32_t codes, uint32_t (&pairs)[4]) {
    constexpr TableWords kWords = kTableWords;
    // Which half of the table: of each code, its place among the four bytes, or 4 behind.
    const uint32_t which = (codes & 0x88888888u) >> 1 | 0x32103210u;
    const uint32_t place = codes & 0x77777777u;
#pragma unroll
    for (int both = 0; both < 2; ++both) {
      const uint32_t p = place >> (16 * both);
      const uint32_t w = which >> (16 * both);
      const uint32_t low = __byte_perm(__byte_perm(kWords.low[0], kWords.low[1], p),
                                       __byte_perm(kWords.low[2], kWords.low[3], p), w);
      const uint32_t high = __byte_perm(__byte_perm(kWords.high[0], kWords.high[1], p),
                                        __byte_perm(kWords.high[2], kWords.high[3], p), w);
      pairs[2 * both] = __byte_perm(low, high, 0x5140);
      pairs[2 * both + 1] = __byte_perm(low, high, 0x7362);
    }
  }

  uint32_t low_[kF.bits == 8 ? 8 : 4];
  uint32_t high_[kF.bits == 6 ? 2 : 1];
};

__device__ __forceinline__ float HalfToFloat(uint32_t word, bool upper) {
  return __half2float(upper ? __high2half(AsPair<__half>(word)) : __low2half(AsPair<__half>(word)));
}
// 2^23 + a byte of a word, as a float.
__device__ __forceinline__ float ByteAbovePower(uint32_t word, int byte) {
  return __uint_as_float(__byte_perm(word, 0x4b000000u, 0x7440 + byte));
}

// Scales of rows g and g + 8 of a tile, of two groups.
template <WeightFormat kFormat>
class LaneScales {
 public:
  using Scales = code_tile::Scales;
  static constexpr Scales kScales = CodeFacts<kFormat>::kF.scales;

  __device__ void Load(const uint8_t* tile, int g, int half) {
    const uint8_t* const at =
        tile + CodeFacts<kFormat>::kScalesAt + g * CodeFacts<kFormat>::kScaleBytes;
    if constexpr (kScales == Scales::kF16Min) {
      LoadWords<4>(at + 16 * half, words_);
    } else if constexpr (kScales == Scales::kFactorMin) {
      uint32_t rows[2];
      LoadWords<2>(at, rows);
      LoadWords<2>(at + 8 + 8 * half, words_);
#pragma unroll
      for (int side = 0; side < 2; ++side) {
        row_scale_[side] = HalfToFloat(rows[side], false);
        row_minimum_[side] = HalfToFloat(rows[side], true);
      }
    } else if constexpr (kScales == Scales::kFactor || kScales == Scales::kFactor16) {
      constexpr int kWords = kScales == Scales::kFactor ? 1 : 2;
      uint32_t rows[1];
      LoadWords<1>(at, rows);
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        uint32_t word[1];
        LoadWords<1>(at + 4 + 4 * (kWords * half + i), word);
        words_[i] = word[0];
      }
#pragma unroll
      for (int side = 0; side < 2; ++side) row_scale_[side] = HalfToFloat(rows[0], side != 0);
    } else {
      LoadWords<2>(at + 8 * half, words_);
    }
  }

  // Of group `i` of the two; sixteenth: of the group, where scales belong to 16 columns.
  __device__ float Scale(int i, int sixteenth, int side) const {
    if constexpr (kScales == Scales::kBF16) {
      return __uint_as_float(i == 0 ? words_[side] << 16 : words_[side] & 0xffff0000u);
    } else if constexpr (kScales == Scales::kF16 || kScales == Scales::kF16Min) {
      return HalfToFloat(words_[side], i != 0);
    } else if constexpr (kScales == Scales::kFactorMin) {
      return Times(row_scale_[side], words_[0], 2 * side + i);
    } else if constexpr (kScales == Scales::kFactor) {
      return TimesSigned(row_scale_[side], words_[0], 2 * side + i);
    } else {
      return TimesSigned(row_scale_[side], words_[side], 2 * i + sixteenth);
    }
  }
  __device__ float Minimum(int i, int side) const {
    if constexpr (kScales == Scales::kFactorMin) {
      return Times(row_minimum_[side], words_[1], 2 * side + i);
    } else {
      return HalfToFloat(words_[2 + side], i != 0);
    }
  }

 private:
  static constexpr float kPower = 8388608.0f;  // 2^23

  template <int kCount>
  __device__ static void LoadWords(const uint8_t* from, uint32_t* words) {
    if constexpr (kCount == 4) {
      const uint4 w = *reinterpret_cast<const uint4*>(from);
      words[0] = w.x;
      words[1] = w.y;
      words[2] = w.z;
      words[3] = w.w;
    } else if constexpr (kCount == 2) {
      const uint2 w = *reinterpret_cast<const uint2*>(from);
      words[0] = w.x;
      words[1] = w.y;
    } else {
      words[0] = *reinterpret_cast<const uint32_t*>(from);
    }
  }
  // x times a byte of the word, exact: (2^23 + byte) x - 2^23 x.
  __device__ static float Times(float x, uint32_t word, int byte) {
    return __fmaf_rn(ByteAbovePower(word, byte), x, -kPower * x);
  }
  __device__ static float TimesSigned(float x, uint32_t word, int byte) {
    return __fmul_rn(ByteAbovePower(word, byte) - (kPower + 128.0f), x);
  }

  uint32_t words_[kScales == Scales::kF16Min ? 4 : 2];
  float row_scale_[2];
  float row_minimum_[2];
};

// This lane's column of x: a part of every fourth row. Columns without a row repeat the last one,
// and places behind the last column of x repeat others: nobody reads those sums, and these weights
// are zero. There is no branch, so that loads and products of two halves of a tile may overlap.
template <WeightFormat kFormat, int kTiles>
class LaneRows {
 public:
  __device__ LaneRows(const CodesArguments& a, int lane) : k_(a.k), offset_(lane % 4 * 4) {
    const int g = lane / 4;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int row = min(4 * i + g / 2, a.rows - 1);
      rows_[i] = a.x + static_cast<int64_t>(g % 2 * a.part_rows + row) * a.k + offset_;
    }
  }

  // Of 64 columns from `col` on: for each tile and group the columns of two products.
  __device__ void Load(int col, uint2 (&b)[kTiles][2][2]) const {
    if constexpr (kFormat == WeightFormat::kQ8) {
      // Rows may end within a group.
      int at[4];
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        at[part] = col + 16 * part + offset_ < k_ ? col + 16 * part : 0;
      }
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int part = 0; part < 4; ++part) {
          b[i][part / 2][part % 2] = __ldg(reinterpret_cast<const uint2*>(rows_[i] + at[part]));
        }
      }
    } else {
      const int first = col < k_ ? col : 0;
      const int second = col + code_tile::kGroup < k_ ? col + code_tile::kGroup : 0;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          const auto* const from =
              reinterpret_cast<const uint2*>(rows_[i] + (group == 0 ? first : second));
          b[i][group][0] = __ldg(from);
          b[i][group][1] = __ldg(from + 4);
        }
      }
    }
  }

 private:
  int k_;
  int offset_;
  const __half* rows_[kTiles];
};

// Adds the products of half a tile: of `tiles[strip]`, half `half`, and columns `b` of x.
template <WeightFormat kFormat, int kTiles, int kStrips>
__device__ __forceinline__ void MultiplyHalf(const uint8_t* const (&tiles)[kStrips], int half,
                                             int lane, const uint2 (&b)[kTiles][2][2],
                                             float (&acc)[kStrips][kTiles][4]) {
  using Facts = CodeFacts<kFormat>;
  constexpr bool kOfSixteen = Facts::kF.scales == code_tile::Scales::kFactor16;
  constexpr uint32_t kOnes[4] = {0x3c003c00u, 0x3c003c00u, 0x3c003c00u, 0x3c003c00u};
  LaneScales<kFormat> scales[kStrips];
  LaneCodes<kFormat> codes[kStrips];
#pragma unroll
  for (int strip = 0; strip < kStrips; ++strip) {
    scales[strip].Load(tiles[strip], lane / 4, half);
    codes[strip].Load(tiles[strip], lane, half);
  }
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    uint32_t w[kStrips][2][4];
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) codes[strip].Expand(group, w[strip]);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint2(&rows)[2] = b[i][group];
      float sum_of_x = 0.0f;
      if constexpr (Facts::kHasMinima) {
        float ones[4] = {};
        MultiplyTile<__half>(ones, kOnes, rows[0].x, rows[0].y);
        MultiplyTile<__half>(ones, kOnes, rows[1].x, rows[1].y);
        sum_of_x = ones[0] + ones[1];
      }
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        float(&sum)[4] = acc[strip][i];
        float product[4] = {};
        MultiplyTile<__half>(product, w[strip][0], rows[0].x, rows[0].y);
        if constexpr (kOfSixteen) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sum[j] = __fmaf_rn(scales[strip].Scale(group, 0, j / 2), product[j], sum[j]);
            product[j] = 0.0f;
          }
        }
        MultiplyTile<__half>(product, w[strip][1], rows[1].x, rows[1].y);
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          sum[j] = __fmaf_rn(scales[strip].Scale(group, 1, j / 2), product[j], sum[j]);
        }
        if constexpr (Facts::kHasMinima) {
          sum[0] = __fmaf_rn(scales[strip].Minimum(group, 0), sum_of_x, sum[0]);
          sum[2] = __fmaf_rn(scales[strip].Minimum(group, 1), sum_of_x, sum[2]);
        }
      }
    }
  }
}

}  // namespace pmkvq::cuda
