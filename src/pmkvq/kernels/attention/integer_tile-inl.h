// Products of packed codes with 16-bit integers by tiles of words.
//
// A tile in first-level cache holds packed codes in 32-bit words, still packed: four bytes of a
// token (dots, words of one place side by side over tokens) or one byte of four tokens (sums, side
// by side over bytes). The products take a word's codes out in registers, two of them in the halves
// of a lane, and multiply them with the pair of their factors: one instruction multiplies both and
// adds them up in the lane of their token or dim. So there are no sums over lanes, and the tile
// is no larger than the codes.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_ATTENTION_INTEGER_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_ATTENTION_INTEGER_TILE_INL_H_
#undef PMKVQ_KERNELS_ATTENTION_INTEGER_TILE_INL_H_
#else
#define PMKVQ_KERNELS_ATTENTION_INTEGER_TILE_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "pmkvq/kernels/attention/integer_products.h"
#include "pmkvq/kernels/simd_compat-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR

using pmkvq::HWY_NAMESPACE::MulPairs;

// Rows of factors at a time: their sums are in registers, the rest of which is for operands.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kMaxSums = 16;
constexpr int kMaxRowsAtOnce = 7;
#else
constexpr int kMaxSums = 8;
constexpr int kMaxRowsAtOnce = 4;
#endif

// The codes of plane kPlane of words of four packed bytes, in pairs: of bytes (0, 2) for half 0, of
// bytes (1, 3) for half 1.
template <int kBits, int kPlane, int kHalf, class D32>
HWY_INLINE hn::Vec<hn::RebindToSigned<D32>> PairsOf(D32 /*d32*/, hn::Vec<D32> words) {
  const hn::Repartition<uint16_t, D32> d16;
  constexpr int kShift = kPlane * kBits + kHalf * 8;
  auto codes = hn::BitCast(d16, words);
  if constexpr (kShift > 0) codes = hn::ShiftRight<kShift>(codes);
  if constexpr (kShift + kBits < 16) {
    codes = hn::And(codes, hn::Set(d16, uint16_t{(1 << kBits) - 1}));
  }
  return hn::BitCast(hn::RebindToSigned<D32>(), codes);
}

// The pair of 16-bit factors at x, in every lane.
template <class D16>
HWY_INLINE hn::Vec<D16> PairAt(D16 d16, const int16_t* x) {
  int32_t pair;
  std::memcpy(&pair, x, sizeof(pair));
  return hn::BitCast(d16, hn::Set(hn::Repartition<int32_t, D16>(), pair));
}

// One vector whose blocks of 16 bytes are rows[0], rows[4], ... from byte `offset` on.
template <class D32>
HWY_INLINE hn::Vec<D32> LoadBlocks(D32 d32, const std::byte* const* rows, int64_t offset) {
  if constexpr (hn::MaxLanes(D32()) == 4) {
    return hn::LoadU(d32, reinterpret_cast<const uint32_t*>(rows[0] + offset));
  } else {
    const hn::Half<D32> half;
    return hn::Combine(d32, LoadBlocks(half, rows + hn::MaxLanes(half), offset),
                       LoadBlocks(half, rows, offset));
  }
}

// Tokens [t0, t0 + width), `num_bytes` of each, to the tile [num_bytes / 4, width]; width a
// multiple of 16.
HWY_NOINLINE void LoadDotTile(const PackedRows& rows, int64_t num_bytes, int64_t t0, int64_t width,
                              uint32_t* HWY_RESTRICT tile) {
  const hn::ScalableTag<uint32_t> d32;
  const hn::Repartition<uint64_t, decltype(d32)> d64;
  constexpr auto kLanes = static_cast<int64_t>(hn::MaxLanes(hn::ScalableTag<uint32_t>()));
  for (int64_t t = 0; t < width; t += kLanes) {
    const std::byte* from[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) from[i] = rows.RowOrLast(t0 + t + i);
    for (int64_t j = 0; j < num_bytes; j += 16) {
      const auto a0 = LoadBlocks(d32, from + 0, j);
      const auto a1 = LoadBlocks(d32, from + 1, j);
      const auto a2 = LoadBlocks(d32, from + 2, j);
      const auto a3 = LoadBlocks(d32, from + 3, j);
      const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d32, a0, a1));
      const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d32, a2, a3));
      const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d32, a0, a1));
      const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d32, a2, a3));
      uint32_t* out = tile + j / 4 * width + t;
      hn::Store(hn::BitCast(d32, hn::InterleaveLower(d64, low01, low23)), d32, out);
      hn::Store(hn::BitCast(d32, hn::InterleaveUpper(d64, low01, low23)), d32, out + width);
      hn::Store(hn::BitCast(d32, hn::InterleaveLower(d64, high01, high23)), d32, out + 2 * width);
      hn::Store(hn::BitCast(d32, hn::InterleaveUpper(d64, high01, high23)), d32, out + 3 * width);
    }
  }
}

// One vector of a row, its words dealt to blocks of 16 bytes: word 4 b + k of the outcome is word
// k * blocks + b of memory.
template <class D32>
HWY_INLINE hn::Vec<D32> LoadDealt(D32 d32, const std::byte* from) {
  constexpr auto kWords = static_cast<int>(hn::MaxLanes(D32()));
  const auto words = hn::LoadU(d32, reinterpret_cast<const uint32_t*>(from));
  if constexpr (kWords == 4) return words;
  alignas(64) static constexpr int32_t kOrder8[8] = {0, 2, 4, 6, 1, 3, 5, 7};
  alignas(64) static constexpr int32_t kOrder16[16] = {0, 4, 8,  12, 1, 5, 9,  13,
                                                       2, 6, 10, 14, 3, 7, 11, 15};
  return hn::TableLookupLanes(words, hn::SetTableIndices(d32, kWords == 8 ? kOrder8 : kOrder16));
}

// One vector of each of four rows, from byte j on, to words of one byte of each row, those of rows
// 0 and 1 in a pair, as are those of 2 and 3. Interleaves work within blocks of 16 bytes: dealt
// words make bytes come out in order.
template <class D8, class V>
HWY_INLINE void InterleaveFourRows(D8 d8, const std::byte* const* from, int64_t j, V* words) {
  const hn::Repartition<uint16_t, D8> d16;
  const hn::Repartition<uint32_t, D8> d32;
  const auto a = hn::BitCast(d8, LoadDealt(d32, from[0] + j));
  const auto b = hn::BitCast(d8, LoadDealt(d32, from[2] + j));
  const auto c = hn::BitCast(d8, LoadDealt(d32, from[1] + j));
  const auto d = hn::BitCast(d8, LoadDealt(d32, from[3] + j));
  const auto low_ab = hn::BitCast(d16, hn::InterleaveLower(d8, a, b));
  const auto low_cd = hn::BitCast(d16, hn::InterleaveLower(d8, c, d));
  const auto high_ab = hn::BitCast(d16, hn::InterleaveUpper(d8, a, b));
  const auto high_cd = hn::BitCast(d16, hn::InterleaveUpper(d8, c, d));
  words[0] = hn::BitCast(d32, hn::InterleaveLower(d16, low_ab, low_cd));
  words[1] = hn::BitCast(d32, hn::InterleaveUpper(d16, low_ab, low_cd));
  words[2] = hn::BitCast(d32, hn::InterleaveLower(d16, high_ab, high_cd));
  words[3] = hn::BitCast(d32, hn::InterleaveUpper(d16, high_ab, high_cd));
}

// Four rows, from byte j on as far as full vectors reach, to a row of the tile.
template <class D8>
HWY_INLINE int64_t StoreFourRows(D8 d8, const std::byte* const* from, int64_t num_bytes, int64_t j,
                                 uint32_t* HWY_RESTRICT tile) {
  const hn::Repartition<uint32_t, D8> d32;
  constexpr auto kBytes = static_cast<int64_t>(hn::MaxLanes(D8()));
  for (; j + kBytes <= num_bytes; j += kBytes) {
    hn::Vec<decltype(d32)> words[4];
    InterleaveFourRows(d8, from, j, words);
    HWY_UNROLL(4) for (int k = 0; k < 4; ++k) hn::Store(words[k], d32, tile + j + k * kBytes / 4);
  }
  return j;
}

// Rows [t0, t0 + count), `num_bytes` of each, to the tile [count / 4, num_bytes]; count a multiple
// of 4.
HWY_NOINLINE void LoadSumTile(const PackedRows& rows, int64_t num_bytes, int64_t t0, int64_t count,
                              uint32_t* tile) {
  for (int64_t t = 0; t < count; t += 4) {
    const std::byte* from[4];
    for (int64_t i = 0; i < 4; ++i) from[i] = rows.RowOrLast(t0 + t + i);
    uint32_t* out = tile + t / 4 * num_bytes;
    int64_t j = StoreFourRows(hn::ScalableTag<uint8_t>(), from, num_bytes, 0, out);
    j = StoreFourRows(hn::CappedTag<uint8_t, 32>(), from, num_bytes, j, out);
    StoreFourRows(hn::CappedTag<uint8_t, 16>(), from, num_bytes, j, out);
  }
}

// Lines asked for with each word of a tile: a slice as large as the one that is multiplied is all
// asked for in one pass over it.
constexpr int64_t kLinesAtOnce = 2;

// A tile, its factors, and the place of the sums.
struct TileProduct {
  const int16_t* x;  // [rows, x_stride]
  int64_t x_stride;
  const uint32_t* tile;  // [depth, columns]
  int64_t depth;
  int64_t columns;  // In full vectors.
  int bits;
  int32_t* sums;  // [rows, stride]
  int64_t stride;
  ReadAhead* ahead;
};

// Sums of kRows rows of x and kVecs vectors of tokens, from column n on. Parts of a word are the
// codes of a plane in bytes 0 and 2, or in 1 and 3. They are taken out in a loop, not unrolled: the
// compiler would move all of them before the products and run out of registers.
template <int kRows, int kVecs>
HWY_INLINE void DotColumns(const TileProduct& p, int64_t row, int64_t n) {
  const hn::ScalableTag<uint32_t> d32;
  const hn::ScalableTag<int32_t> di32;
  const hn::ScalableTag<uint16_t> du16;
  const hn::ScalableTag<int16_t> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d32));
  const int num_parts = 2 * 8 / p.bits;
  const auto mask = hn::Set(du16, static_cast<uint16_t>((1 << p.bits) - 1));
  hn::Vec<decltype(di32)> sum[kRows][kVecs];
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::Zero(di32);
  }
  for (int64_t w = 0; w < p.depth; ++w) {
    p.ahead->Next(kLinesAtOnce);
    hn::Vec<decltype(du16)> words[kVecs];
    HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
      words[v] = hn::BitCast(du16, hn::Load(d32, p.tile + w * p.columns + n + v * lanes));
    }
    const int16_t* x = p.x + row * p.x_stride + 2 * w;
    for (int part = 0; part < num_parts; ++part, x += 2 * p.depth) {
      const int shift = part / 2 * p.bits + part % 2 * 8;
      hn::Vec<decltype(d16)> codes[kVecs];
      HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
        codes[v] = hn::BitCast(d16, hn::And(hn::ShiftRightSame(words[v], shift), mask));
      }
      HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
        const auto factors = PairAt(d16, x + r * p.x_stride);
        HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
          sum[r][v] = hn::Add(sum[r][v], MulPairs(codes[v], factors));
        }
      }
    }
  }
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
      hn::StoreU(sum[r][v], di32, p.sums + (row + r) * p.stride + n + v * lanes);
    }
  }
}

struct Dots {
  static constexpr int kRowsAtOnce = kMaxRowsAtOnce;
  template <int kRows>
  static constexpr int kVecs = kMaxSums / kRows >= 4   ? 4
                               : kMaxSums / kRows >= 2 ? 2
                                                       : 1;
  template <int kRows, int kVecs>
  static HWY_INLINE void Columns(const TileProduct& p, int64_t row, int64_t n) {
    DotColumns<kRows, kVecs>(p, row, n);
  }
};

// No lambdas here: the compiler does not always inline them.
//
// sum[r][plane][v] += products of the pairs of one half of words[v] with those of row r of x.
template <int kBits, int kRows, int kVecs, int kHalf, int kPlane = 0, class V32, class VF, class VS>
HWY_INLINE void AddWordSums(const V32* words, const VF* factors, VS (*sum)[8 / kBits][kVecs]) {
  const hn::ScalableTag<uint32_t> d32;
  const hn::ScalableTag<int16_t> d16;
  HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
    const auto codes = hn::BitCast(d16, PairsOf<kBits, kPlane, kHalf>(d32, words[v]));
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      sum[r][kPlane][v] = hn::Add(sum[r][kPlane][v], MulPairs(codes, factors[r]));
    }
  }
  if constexpr (kPlane + 1 < 8 / kBits) {
    AddWordSums<kBits, kRows, kVecs, kHalf, kPlane + 1>(words, factors, sum);
  }
}

// Adds to the sums of kRows rows of weights and kVecs vectors of packed bytes, from byte n on.
template <int kBits, int kRows, int kVecs>
HWY_INLINE void SumColumns(const TileProduct& p, int64_t row, int64_t n) {
  constexpr int kPlanes = 8 / kBits;
  const hn::ScalableTag<uint32_t> d32;
  const hn::ScalableTag<int32_t> di32;
  const hn::ScalableTag<int16_t> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d32));
  const int16_t* x = p.x + row * p.x_stride;
  int32_t* sums = p.sums + row * p.stride + n;
  hn::Vec<decltype(di32)> sum[kRows][kPlanes][kVecs];
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4) for (int i = 0; i < kPlanes; ++i) {
      HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
        sum[r][i][v] = hn::LoadU(di32, sums + r * p.stride + i * p.columns + v * lanes);
      }
    }
  }
  for (int64_t k = 0; k < p.depth; ++k) {
    p.ahead->Next(kLinesAtOnce);
    hn::Vec<decltype(d32)> words[kVecs];
    HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
      words[v] = hn::Load(d32, p.tile + k * p.columns + n + v * lanes);
    }
    hn::Vec<decltype(d16)> factors[kRows];
    HWY_UNROLL(8)
    for (int r = 0; r < kRows; ++r) factors[r] = PairAt(d16, x + r * p.x_stride + 4 * k);
    AddWordSums<kBits, kRows, kVecs, 0>(words, factors, sum);
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      factors[r] = PairAt(d16, x + r * p.x_stride + 4 * k + 2);
    }
    AddWordSums<kBits, kRows, kVecs, 1>(words, factors, sum);
  }
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4) for (int i = 0; i < kPlanes; ++i) {
      HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
        hn::StoreU(sum[r][i][v], di32, sums + r * p.stride + i * p.columns + v * lanes);
      }
    }
  }
}

template <int kBits>
struct Sums {
  static constexpr int kPlanes = 8 / kBits;
  static constexpr int kRowsAtOnce =
      kMaxSums / kPlanes < kMaxRowsAtOnce ? kMaxSums / kPlanes : kMaxRowsAtOnce;
  template <int kRows>
  static constexpr int kVecs = kMaxSums / (kRows * kPlanes) >= 4   ? 4
                               : kMaxSums / (kRows * kPlanes) >= 2 ? 2
                                                                   : 1;
  template <int kRows, int kVecs>
  static HWY_INLINE void Columns(const TileProduct& p, int64_t row, int64_t n) {
    SumColumns<kBits, kRows, kVecs>(p, row, n);
  }
};

template <class Product, int kRows>
HWY_INLINE void MulRows(const TileProduct& p, int64_t row) {
  constexpr int kVecs = Product::template kVecs<kRows>;
  const auto lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<int32_t>()));
  int64_t n = 0;
  for (; n + kVecs * lanes <= p.columns; n += kVecs * lanes) {
    Product::template Columns<kRows, kVecs>(p, row, n);
  }
  if constexpr (kVecs > 1) {
    for (; n < p.columns; n += lanes) Product::template Columns<kRows, 1>(p, row, n);
  }
}

// All `rows` of x, in as few passes as the registers allow and of about the same size.
template <class Product, int kRows = Product::kRowsAtOnce>
HWY_INLINE void MulRowsOf(int64_t count, const TileProduct& p, int64_t row) {
  if (count == kRows) return MulRows<Product, kRows>(p, row);
  if constexpr (kRows > 1) MulRowsOf<Product, kRows - 1>(count, p, row);
}
template <class Product>
HWY_NOINLINE void MulTile(const TileProduct& p, int64_t rows) {
  const int64_t passes = (rows + Product::kRowsAtOnce - 1) / Product::kRowsAtOnce;
  for (int64_t i = 0; i < passes; ++i) {
    const int64_t row = rows * i / passes;
    MulRowsOf<Product>(rows * (i + 1) / passes - row, p, row);
  }
}

#endif  // HWY_TARGET != HWY_SCALAR

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_ATTENTION_INTEGER_TILE_INL_H_
