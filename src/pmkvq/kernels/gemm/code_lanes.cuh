// How one lane of a warp takes codes, scales and rows of x to tensor-core products:
// device_codes_layout.h has the tile. The two parts of four rows of x are the columns of one
// product.
//
// Instructions are scarcer than bytes with 4-bit codes: at the speed of memory a quarter of a
// multiprocessor has 64 issue slots for a group of 16 rows, and 32 for integer operations. So F16
// it is: its ten bits hold a code at bit 0 or 4 behind a first bit of 1024, put there by one AND-OR
// and taken off by one subtraction, exact. Rows g have their codes at bit 0, rows g + 8 at bit 4,
// so 16 times as large: their sums are divided at their end.
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
  // 1024 in both halves. As an argument, so that it stays in a register: an AND-OR with two
  // constants takes two instructions.
  uint32_t one = 0x64006400u;
};

// IQ4's table in bytes, 128 added to each value.
struct TableWords {
  uint32_t words[4];
};
constexpr TableWords MakeTable() {
  TableWords table{};
  for (int i = 0; i < 16; ++i) {
    const auto value = static_cast<uint32_t>(code_tile::kTable[i] + 128);
    table.words[i / 4] |= value << (8 * (i % 4));
  }
  return table;
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
  // Operands of rows g + 8 are this many times those of rows g.
  static constexpr int kSidePower = kF.bits == 8 || kF.is_table ? 1 : 16;
  // What is to be taken off each code.
  static constexpr int kOffset = kF.is_table ? 128 : kF.offset;
  static constexpr bool kOfSixteen = kF.scales == code_tile::Scales::kFactor16;
};
inline constexpr TableWords kTableWords = MakeTable();

// a b + c, of tiles as MultiplyTile has them.
__device__ __forceinline__ void MultiplyOnto(float (&d)[4], const uint32_t (&a)[4], uint2 b,
                                             const float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%10,%11,%12,%13};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(d[2]), "=f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b.x), "r"(b.y), "f"(c[0]), "f"(c[1]),
        "f"(c[2]), "f"(c[3]));
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

  // Of group `i` of the two; rows g + 8 in kSidePower times their size. one: CodesArguments.
  __device__ void Expand(int i, uint32_t one, uint32_t (&a)[2][4]) const {
#pragma unroll
    for (int product = 0; product < 2; ++product) {
      uint32_t(&to)[4] = a[product];
      if constexpr (kF.bits == 8) {
#pragma unroll
        for (int side = 0; side < 2; ++side) {
          const uint32_t codes = low_[4 * i + 2 * side + product];
          to[side] = __byte_perm(codes, one, 0x7170);
          to[2 + side] = __byte_perm(codes, one, 0x7372);
        }
      } else if constexpr (kF.is_table) {
        LookUp(low_[2 * i + product], one, to);
      } else {
        ExpandNibbles(low_[2 * i + product], i, product, one, to);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        to[2 * half] = Less(to[2 * half], Facts::kOffset);
        to[2 * half + 1] = Less(to[2 * half + 1], Facts::kOffset * Facts::kSidePower);
      }
    }
  }

 private:
  using Facts = CodeFacts<kFormat>;

  __device__ static uint32_t Less(uint32_t value, int offset) {
    return AsWord(
        __hsub2(AsPair<__half>(value), __float2half2_rn(1024.0f + static_cast<float>(offset))));
  }
  // word & mask | one, in one instruction.
  template <uint32_t kMask>
  __device__ static uint32_t AndOr(uint32_t word, uint32_t one) {
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "n"(kMask), "r"(one));
    return result;
  }

  __device__ void ExpandNibbles(uint32_t codes, int i, int product, uint32_t one,
                                uint32_t (&to)[4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t word = codes >> (8 * half);
      uint32_t first = AndOr<0x000f000fu>(word, one);
      uint32_t second = AndOr<0x00f000f0u>(word, one);
      const int pair = 2 * product + half;
      if constexpr (kF.bits == 5) {
        const uint32_t high = ShiftedBy(high_[0], pair + 8 * i - 4);
        first = AndOr<0x00100010u>(high, first);
        second = AndOr<0x01000100u>(high, second);
      } else if constexpr (kF.bits == 6) {
        const uint32_t high = ShiftedBy(high_[i], pair % 2 * 2 + pair / 2 * 8 - 4);
        first = AndOr<0x00300030u>(high, first);
        second = AndOr<0x03000300u>(high, second);
      }
      to[2 * half] = first;
      to[2 * half + 1] = second;
    }
  }

  __device__ static void LookUp(uint32_t codes, uint32_t one, uint32_t (&to)[4]) {
    constexpr TableWords kTable = kTableWords;
    // Which half of the table: of each code, its place among the four bytes, or 4 behind.
    const uint32_t which = (codes & 0x88888888u) >> 1 | 0x32103210u;
    const uint32_t place = codes & 0x77777777u;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t p = place >> (16 * half);
      const uint32_t w = which >> (16 * half);
      const uint32_t bytes = __byte_perm(__byte_perm(kTable.words[0], kTable.words[1], p),
                                         __byte_perm(kTable.words[2], kTable.words[3], p), w);
      to[2 * half] = __byte_perm(bytes, one, 0x7170);
      to[2 * half + 1] = __byte_perm(bytes, one, 0x7372);
    }
  }

  uint32_t low_[kF.bits == 8 ? 8 : 4];
  uint32_t high_[kF.bits == 6 ? 2 : 1];
};

__device__ __forceinline__ float HalfToFloat(uint32_t word, bool upper) {
  return __half2float(upper ? __high2half(AsPair<__half>(word)) : __low2half(AsPair<__half>(word)));
}
// 2^15 + a byte of a word, as a float.
__device__ __forceinline__ float ByteAbovePower(uint32_t word, int byte) {
  return __uint_as_float(__byte_perm(word, 0x47000000u, 0x7404 + 16 * byte));
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
      return Times<0>(row_scale_[side], words_[0], 2 * side + i);
    } else if constexpr (kScales == Scales::kFactor) {
      return Times<128>(row_scale_[side], words_[0], 2 * side + i);
    } else {
      return Times<128>(row_scale_[side], words_[side], 2 * i + sixteenth);
    }
  }
  __device__ float Minimum(int i, int side) const {
    if constexpr (kScales == Scales::kFactorMin) {
      return Times<0>(row_minimum_[side], words_[1], 2 * side + i);
    } else {
      return HalfToFloat(words_[2 + side], i != 0);
    }
  }

 private:
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
  // x times a byte of the word less kLess, exact: (2^15 + byte) x - (2^15 + kLess) x.
  template <int kLess>
  __device__ static float Times(float x, uint32_t word, int byte) {
    constexpr float kPower = 32768.0f + kLess;
    return __fmaf_rn(ByteAbovePower(word, byte), x, -kPower * x);
  }

  uint32_t words_[kScales == Scales::kF16Min ? 4 : 2];
  float row_scale_[2];
  float row_minimum_[2];
};

// This lane's column of x: a part of every fourth row. Columns without a row repeat the last one,
// as nobody reads those sums; behind the last column of x come zeros.
template <int kTiles>
class LaneRows {
 public:
  __device__ LaneRows(const CodesArguments& a, int lane)
      : x_(a.x), k_(a.k), offset_(lane % 4 * 4), is_whole_(a.k % code_tile::kCols == 0) {
    const int g = lane / 4;
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const int row = min(4 * i + g / 2, a.rows - 1);
      rows_[i] = static_cast<uint32_t>(g % 2 * a.part_rows + row) * static_cast<uint32_t>(a.k) +
                 static_cast<uint32_t>(offset_);
    }
  }

  // Of 64 columns from `col` on: for each tile and group the columns of two products.
  __device__ void Load(int col, uint2 (&b)[kTiles][2][2]) const {
    if (!is_whole_) {
#pragma unroll
      for (int part = 0; part < 4; ++part) {
        const bool is_there = col + 16 * part + offset_ < k_;
#pragma unroll
        for (int i = 0; i < kTiles; ++i) {
          const uint32_t at = rows_[i] + static_cast<uint32_t>(col + 16 * part);
          b[i][part / 2][part % 2] =
              is_there ? __ldg(reinterpret_cast<const uint2*>(x_ + at)) : make_uint2(0, 0);
        }
      }
      return;
    }
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const auto* const from =
          reinterpret_cast<const uint2*>(x_ + (rows_[i] + static_cast<uint32_t>(col)));
#pragma unroll
      for (int part = 0; part < 4; ++part) b[i][part / 2][part % 2] = __ldg(from + 4 * part);
    }
  }

 private:
  const __half* x_;
  int k_;
  int offset_;
  bool is_whole_;
  uint32_t rows_[kTiles];  // Elements from x_.
};

// The sums of a group's rows of x, for lane t's two columns of the product, of both parts: as rows
// g and as rows g + 8 want them. Where there are minima.
template <WeightFormat kFormat>
struct RowSums {
  using Facts = CodeFacts<kFormat>;

  __device__ void Make(const uint2 (&rows)[2]) {
    if constexpr (Facts::kHasMinima) {
      constexpr float kZero[4] = {};
      constexpr uint32_t kPlain = 0x3c003c00u;  // One.
      constexpr uint32_t kUpper = Facts::kSidePower == 16 ? 0x4c004c00u : kPlain;
      constexpr uint32_t kOnes[4] = {kPlain, kUpper, kPlain, kUpper};
      float first[4];
      float both[4];
      MultiplyOnto(first, kOnes, rows[0], kZero);
      MultiplyOnto(both, kOnes, rows[1], first);
      values = make_float2(both[0] + both[1], both[2] + both[3]);
    }
  }

  float2 values;
};

// Adds the product of a group, of 16 rows of W and four rows of x.
template <WeightFormat kFormat>
__device__ __forceinline__ void AddProduct(const uint32_t (&w)[2][4],
                                           const LaneScales<kFormat>& scales, int group,
                                           const uint2 (&rows)[2], const RowSums<kFormat>& sums,
                                           float (&acc)[4]) {
  using Facts = CodeFacts<kFormat>;
  constexpr float kZero[4] = {};
  float before[4];
  float product[4];
  MultiplyOnto(before, w[0], rows[0], kZero);
  if constexpr (Facts::kOfSixteen) {
    MultiplyOnto(product, w[1], rows[1], kZero);
#pragma unroll
    for (int j = 0; j < 4; ++j)
      acc[j] = __fmaf_rn(scales.Scale(group, 0, j / 2), before[j], acc[j]);
  } else {
    MultiplyOnto(product, w[1], rows[1], before);
  }
#pragma unroll
  for (int j = 0; j < 4; ++j) acc[j] = __fmaf_rn(scales.Scale(group, 1, j / 2), product[j], acc[j]);
  if constexpr (Facts::kHasMinima) {
    acc[0] = __fmaf_rn(scales.Minimum(group, 0), sums.values.x, acc[0]);
    acc[2] = __fmaf_rn(scales.Minimum(group, 1), sums.values.y, acc[2]);
  }
}

// Adds the products of half a tile: of `tiles[strip]`, half `half`, and columns `b` of x.
template <WeightFormat kFormat, int kTiles, int kStrips>
__device__ __forceinline__ void MultiplyHalf(const uint8_t* const (&tiles)[kStrips], int half,
                                             int lane, uint32_t one, const uint2 (&b)[kTiles][2][2],
                                             float (&acc)[kStrips][kTiles][4]) {
  LaneScales<kFormat> scales[kStrips];
  LaneCodes<kFormat> codes[kStrips];
#pragma unroll
  for (int strip = 0; strip < kStrips; ++strip) {
    codes[strip].Load(tiles[strip], lane, half);
    scales[strip].Load(tiles[strip], lane / 4, half);
  }
#pragma unroll
  for (int group = 0; group < 2; ++group) {
    uint32_t w[kStrips][2][4];
#pragma unroll
    for (int strip = 0; strip < kStrips; ++strip) codes[strip].Expand(group, one, w[strip]);
#pragma unroll
    for (int i = 0; i < kTiles; ++i) {
      const uint2(&rows)[2] = b[i][group];
      RowSums<kFormat> sums;
      sums.Make(rows);
#pragma unroll
      for (int strip = 0; strip < kStrips; ++strip) {
        AddProduct<kFormat>(w[strip], scales[strip], group, rows, sums, acc[strip][i]);
      }
    }
  }
}

}  // namespace pmkvq::cuda
