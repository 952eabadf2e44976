// Products of packed codes with 16-bit integers, in vectors.
//
// Both products multiply a tile of pairs in first-level cache: 32-bit words that hold the codes of
// two dims of a token (dots, words of one pair of dims side by side over tokens) or of two tokens
// of a dim (sums, side by side over dims), against words that hold the two factors. So one
// instruction multiplies both and adds them up in the lane of their token or dim, and there are no
// sums over lanes. A tile is expanded once and used by all query rows.
#include "pmkvq/kernels/attention/integer_products.h"

#include <algorithm>
#include <cstring>

#include "pmkvq/base/check.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "pmkvq/kernels/attention/integer_products.cc"
#include "hwy/foreach_target.h"  // IWYU pragma: keep
#include "hwy/highway.h"
#include "pmkvq/kernels/simd_compat-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET != HWY_SCALAR

using pmkvq::HWY_NAMESPACE::MulPairs;

// Registers that hold sums: the rest is for operands.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kRowBlock = 8;
#else
constexpr int kRowBlock = 4;
#endif

// sums [kRows, kVecs vectors] += x [kRows, depth] tile [depth, kVecs vectors], in pairs.
template <int kRows, int kVecs>
HWY_INLINE void MulBlock(const int16_t* HWY_RESTRICT x, int64_t x_stride,
                         const int32_t* HWY_RESTRICT tile, int64_t tile_stride, int64_t depth,
                         int32_t* HWY_RESTRICT sums, int64_t stride) {
  const hn::ScalableTag<int32_t> d32;
  const hn::Repartition<int16_t, decltype(d32)> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d32));
  hn::Vec<decltype(d32)> sum[kRows][kVecs];
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::LoadU(d32, sums + r * stride + v * lanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    hn::Vec<decltype(d16)> codes[kVecs];
    HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
      codes[v] = hn::BitCast(d16, hn::Load(d32, tile + k * tile_stride + v * lanes));
    }
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      int32_t pair;
      std::memcpy(&pair, x + r * x_stride + 2 * k, sizeof(pair));
      const auto factors = hn::BitCast(d16, hn::Set(d32, pair));
      HWY_UNROLL(4) for (int v = 0; v < kVecs; ++v) {
        sum[r][v] = hn::Add(sum[r][v], MulPairs(codes[v], factors));
      }
    }
  }
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(4)
    for (int v = 0; v < kVecs; ++v) hn::StoreU(sum[r][v], d32, sums + r * stride + v * lanes);
  }
}

// What a tile is multiplied with, and where the sums go.
struct TileProduct {
  const int16_t* x;  // [rows, x_stride], pairs from the front.
  int64_t x_stride;
  const int32_t* tile;  // [depth, columns]
  int64_t depth;        // Pairs.
  int64_t columns;      // In full vectors.
  int32_t* sums;        // [rows, stride]
  int64_t stride;
};

template <int kRows>
HWY_INLINE void MulRows(const TileProduct& p, int64_t row) {
  constexpr int kWide = kRows >= 3 ? 2 : 4;
  const auto lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<int32_t>()));
  const int16_t* x = p.x + row * p.x_stride;
  int32_t* sums = p.sums + row * p.stride;
  int64_t n = 0;
  for (; n + kWide * lanes <= p.columns; n += kWide * lanes) {
    MulBlock<kRows, kWide>(x, p.x_stride, p.tile + n, p.columns, p.depth, sums + n, p.stride);
  }
  for (; n < p.columns; n += lanes) {
    MulBlock<kRows, 1>(x, p.x_stride, p.tile + n, p.columns, p.depth, sums + n, p.stride);
  }
}

HWY_NOINLINE void MulTile(const TileProduct& p, int64_t rows) {
  int64_t r = 0;
  const auto run = [&]<int kRows>() HWY_ATTR {
    for (; rows - r >= kRows; r += kRows) MulRows<kRows>(p, r);
  };
  if constexpr (kRowBlock == 8) {
    run.template operator()<8>();
    run.template operator()<7>();
    run.template operator()<6>();
    run.template operator()<5>();
  }
  run.template operator()<4>();
  run.template operator()<3>();
  run.template operator()<2>();
  run.template operator()<1>();
}

// The codes of plane kPlane of words of four packed bytes, in pairs: of bytes (0, 2) for half 0, of
// bytes (1, 3) for half 1.
template <int kBits, int kPlane, int kHalf, class D32>
HWY_INLINE hn::Vec<hn::RebindToSigned<D32>> PairsOf(D32 d32, hn::Vec<D32> words) {
  const hn::Repartition<uint16_t, D32> d16;
  constexpr int kShift = kPlane * kBits + kHalf * 8;
  auto codes = hn::BitCast(d16, words);
  if constexpr (kShift > 0) codes = hn::ShiftRight<kShift>(codes);
  if constexpr (kShift + kBits < 16) {
    codes = hn::And(codes, hn::Set(d16, uint16_t{(1 << kBits) - 1}));
  }
  return hn::BitCast(hn::RebindToSigned<D32>(), codes);
}

// Stores the pairs of all planes of `words`: half h of plane p at out + p * plane + h * half.
// No lambdas here and below: the compiler does not always inline them.
template <int kBits, int kPlane = 0, class D32, class V>
HWY_INLINE void StorePairs(D32 d32, V bits, int64_t plane, int64_t half, int32_t* out) {
  const hn::RebindToSigned<D32> di32;
  const auto words = hn::BitCast(d32, bits);
  hn::Store(PairsOf<kBits, kPlane, 0>(d32, words), di32, out + kPlane * plane);
  hn::Store(PairsOf<kBits, kPlane, 1>(d32, words), di32, out + kPlane * plane + half);
  if constexpr (kPlane + 1 < 8 / kBits) StorePairs<kBits, kPlane + 1>(d32, words, plane, half, out);
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

// Tokens [t0, t0 + width) to the tile [columns / 2, width], width a multiple of 16. The pairs of
// word w are at (plane * 2 + half) * words + w.
template <int kBits>
HWY_NOINLINE void LoadDotTile(const PackedRows& rows, int64_t t0, int64_t width,
                              int32_t* HWY_RESTRICT tile) {
  const hn::ScalableTag<uint32_t> d32;
  const hn::Repartition<uint64_t, decltype(d32)> d64;
  constexpr auto kLanes = static_cast<int64_t>(hn::MaxLanes(hn::ScalableTag<uint32_t>()));
  const int64_t num_bytes = PackedGroupBytes(rows.columns, kBits);
  const int64_t half = num_bytes / 4 * width;
  for (int64_t t = 0; t < width; t += kLanes) {
    const std::byte* from[kLanes];
    for (int64_t i = 0; i < kLanes; ++i) {
      from[i] = rows.data + std::min(t0 + t + i, rows.num_rows - 1) * rows.row_bytes;
    }
    for (int64_t j = 0; j < num_bytes; j += 16) {
      const auto a0 = LoadBlocks(d32, from + 0, j);
      const auto a1 = LoadBlocks(d32, from + 1, j);
      const auto a2 = LoadBlocks(d32, from + 2, j);
      const auto a3 = LoadBlocks(d32, from + 3, j);
      const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d32, a0, a1));
      const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d32, a2, a3));
      const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d32, a0, a1));
      const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d32, a2, a3));
      int32_t* out = tile + j / 4 * width + t;
      const auto word0 = hn::InterleaveLower(d64, low01, low23);
      const auto word1 = hn::InterleaveUpper(d64, low01, low23);
      const auto word2 = hn::InterleaveLower(d64, high01, high23);
      const auto word3 = hn::InterleaveUpper(d64, high01, high23);
      StorePairs<kBits>(d32, word0, 2 * half, half, out);
      StorePairs<kBits>(d32, word1, 2 * half, half, out + width);
      StorePairs<kBits>(d32, word2, 2 * half, half, out + 2 * width);
      StorePairs<kBits>(d32, word3, 2 * half, half, out + 3 * width);
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

// Four rows, from byte j on as far as full vectors reach, to two rows of pairs of the tile
// [., columns].
template <int kBits, class D8>
HWY_INLINE int64_t ExpandFourRows(D8 d8, const std::byte* const* from, int64_t num_bytes, int64_t j,
                                  int64_t columns, int32_t* HWY_RESTRICT tile) {
  const hn::Repartition<uint32_t, D8> d32;
  constexpr auto kBytes = static_cast<int64_t>(hn::MaxLanes(D8()));
  for (; j + kBytes <= num_bytes; j += kBytes) {
    hn::Vec<decltype(d32)> words[4];
    InterleaveFourRows(d8, from, j, words);
    HWY_UNROLL(4) for (int k = 0; k < 4; ++k) {
      StorePairs<kBits>(d32, words[k], num_bytes, columns, tile + j + k * kBytes / 4);
    }
  }
  return j;
}

// Rows [t0, t0 + count), count a multiple of 4, to the tile [count / 2, columns].
template <int kBits>
HWY_NOINLINE void LoadSumTile(const PackedRows& rows, int64_t t0, int64_t count, int32_t* tile) {
  const int64_t num_bytes = PackedGroupBytes(rows.columns, kBits);
  for (int64_t t = 0; t < count; t += 4) {
    const std::byte* from[4];
    for (int64_t i = 0; i < 4; ++i) {
      from[i] = rows.data + std::min(t0 + t + i, rows.num_rows - 1) * rows.row_bytes;
    }
    int32_t* out = tile + t / 2 * rows.columns;
    int64_t j =
        ExpandFourRows<kBits>(hn::ScalableTag<uint8_t>(), from, num_bytes, 0, rows.columns, out);
    j = ExpandFourRows<kBits>(hn::CappedTag<uint8_t, 32>(), from, num_bytes, j, rows.columns, out);
    ExpandFourRows<kBits>(hn::CappedTag<uint8_t, 16>(), from, num_bytes, j, rows.columns, out);
  }
}

// sums[plane] += products of the pairs of all planes with one pair of factors for each half.
template <int kBits, int kPlane = 0, class D32, class VF, class VS>
HWY_INLINE void AddPlanes(D32 d32, hn::Vec<D32> words, VF factors0, VF factors1, VS* sums) {
  const hn::Repartition<int16_t, D32> d16;
  const auto half0 = MulPairs(hn::BitCast(d16, PairsOf<kBits, kPlane, 0>(d32, words)), factors0);
  const auto half1 = MulPairs(hn::BitCast(d16, PairsOf<kBits, kPlane, 1>(d32, words)), factors1);
  sums[kPlane] = hn::Add(sums[kPlane], hn::Add(half0, half1));
  if constexpr (kPlane + 1 < 8 / kBits) {
    AddPlanes<kBits, kPlane + 1>(d32, words, factors0, factors1, sums);
  }
}

// sum += products of the pairs of all planes with x: the pairs of plane p and half h begin at
// x + (2 p + h) * stride.
template <int kBits, int kPlane = 0, class D32, class VS>
HWY_INLINE void AddDots(D32 d32, hn::Vec<D32> words, const int16_t* x, int64_t stride, VS& sum) {
  const hn::Repartition<int16_t, D32> d16;
  const auto half0 = MulPairs(hn::BitCast(d16, PairsOf<kBits, kPlane, 0>(d32, words)),
                              hn::LoadU(d16, x + 2 * kPlane * stride));
  const auto half1 = MulPairs(hn::BitCast(d16, PairsOf<kBits, kPlane, 1>(d32, words)),
                              hn::LoadU(d16, x + (2 * kPlane + 1) * stride));
  sum = hn::Add(sum, hn::Add(half0, half1));
  if constexpr (kPlane + 1 < 8 / kBits) AddDots<kBits, kPlane + 1>(d32, words, x, stride, sum);
}

// The sums over lanes of four vectors, in four lanes.
template <class D32>
HWY_INLINE hn::Vec<hn::FixedTag<int32_t, 4>> SumLanesOfFour(D32 d32, const hn::Vec<D32>* v) {
  if constexpr (hn::MaxLanes(D32()) == 4) {
    const hn::Repartition<uint64_t, D32> d64;
    const auto sum01 = hn::BitCast(
        d64, hn::Add(hn::InterleaveLower(d32, v[0], v[1]), hn::InterleaveUpper(d32, v[0], v[1])));
    const auto sum23 = hn::BitCast(
        d64, hn::Add(hn::InterleaveLower(d32, v[2], v[3]), hn::InterleaveUpper(d32, v[2], v[3])));
    return hn::Add(hn::BitCast(d32, hn::InterleaveLower(d64, sum01, sum23)),
                   hn::BitCast(d32, hn::InterleaveUpper(d64, sum01, sum23)));
  } else {
    const hn::Half<D32> half;
    hn::Vec<decltype(half)> halves[4];
    HWY_UNROLL(4) for (int i = 0; i < 4; ++i) {
      halves[i] = hn::Add(hn::LowerHalf(half, v[i]), hn::UpperHalf(half, v[i]));
    }
    return SumLanesOfFour(half, halves);
  }
}

// Dots without a tile: with one or two x to share it, a tile costs more than it saves.
template <int kBits, int kX, class D32>
HWY_INLINE void DotDirect(D32 d32, const PackedRows& rows, const int16_t* x, int64_t x_stride,
                          int32_t* sums) {
  const hn::RebindToSigned<D32> di32;
  constexpr auto kBytes = static_cast<int64_t>(4 * hn::MaxLanes(D32()));
  const int64_t num_bytes = PackedGroupBytes(rows.columns, kBits);
  for (int64_t t = 0; t < rows.num_rows; t += 4) {
    hn::Vec<decltype(di32)> sum[kX][4];
    for (auto& of_x : sum) {
      for (auto& of_row : of_x) of_row = hn::Zero(di32);
    }
    for (int64_t j = 0; j < num_bytes; j += kBytes) {
      HWY_UNROLL(4) for (int i = 0; i < 4; ++i) {
        const std::byte* row = rows.data + std::min(t + i, rows.num_rows - 1) * rows.row_bytes;
        const auto words = hn::LoadU(d32, reinterpret_cast<const uint32_t*>(row + j));
        HWY_UNROLL(2) for (int r = 0; r < kX; ++r) {
          AddDots<kBits>(d32, words, x + r * x_stride + j / 2, num_bytes / 2, sum[r][i]);
        }
      }
    }
    HWY_UNROLL(2) for (int r = 0; r < kX; ++r) {
      hn::Store(SumLanesOfFour(di32, sum[r]), hn::FixedTag<int32_t, 4>(),
                sums + r * kMaxIntegerRows + t);
    }
  }
}

// Registers for the sums of SumDirect; with more, a tile is faster.
constexpr int kMaxDirectSums = kRowBlock == 8 ? 16 : 8;

// Sums without a tile, from byte j of the rows on as far as full vectors reach.
template <int kBits, int kX, class D8>
HWY_INLINE int64_t SumDirect(D8 d8, const PackedRows& rows, const int16_t* weights, int64_t j,
                             int32_t* sums) {
  const hn::Repartition<uint32_t, D8> d32;
  const hn::RebindToSigned<decltype(d32)> di32;
  const hn::Repartition<int16_t, D8> d16;
  constexpr int kPlanes = 8 / kBits;
  constexpr auto kBytes = static_cast<int64_t>(hn::MaxLanes(D8()));
  const int64_t num_bytes = PackedGroupBytes(rows.columns, kBits);
  for (; j + kBytes <= num_bytes; j += kBytes) {
    hn::Vec<decltype(di32)> sum[kX][4][kPlanes];
    for (auto& of_x : sum) {
      for (auto& of_word : of_x) {
        for (auto& of_plane : of_word) of_plane = hn::Zero(di32);
      }
    }
    for (int64_t t = 0; t < rows.num_rows; t += 4) {
      const std::byte* from[4];
      HWY_UNROLL(4) for (int i = 0; i < 4; ++i) {
        from[i] = rows.data + std::min(t + i, rows.num_rows - 1) * rows.row_bytes;
      }
      hn::Vec<decltype(d32)> words[4];
      InterleaveFourRows(d8, from, j, words);
      HWY_UNROLL(2) for (int r = 0; r < kX; ++r) {
        int32_t pairs[2];
        std::memcpy(pairs, weights + r * kMaxIntegerRows + t, sizeof(pairs));
        const auto factors0 = hn::BitCast(d16, hn::Set(di32, pairs[0]));
        const auto factors1 = hn::BitCast(d16, hn::Set(di32, pairs[1]));
        HWY_UNROLL(4) for (int k = 0; k < 4; ++k) {
          AddPlanes<kBits>(d32, words[k], factors0, factors1, sum[r][k]);
        }
      }
    }
    HWY_UNROLL(2) for (int r = 0; r < kX; ++r) {
      HWY_UNROLL(4) for (int k = 0; k < 4; ++k) {
        HWY_UNROLL(4) for (int p = 0; p < kPlanes; ++p) {
          hn::StoreU(sum[r][k][p], di32,
                     sums + r * rows.columns + p * num_bytes + j + k * kBytes / 4);
        }
      }
    }
  }
  return j;
}

template <int kBits, int kX>
HWY_NOINLINE void DotWithoutTile(const PackedRows& rows, const int16_t* x, int64_t x_stride,
                                 int32_t* sums) {
  const hn::ScalableTag<uint32_t> full;
  const hn::CappedTag<uint32_t, 8> eight;
  const int64_t num_words = PackedGroupBytes(rows.columns, kBits) / 4;
  if (num_words % static_cast<int64_t>(hn::Lanes(full)) == 0) {
    DotDirect<kBits, kX>(full, rows, x, x_stride, sums);
  } else if (num_words % static_cast<int64_t>(hn::Lanes(eight)) == 0) {
    DotDirect<kBits, kX>(eight, rows, x, x_stride, sums);
  } else {
    DotDirect<kBits, kX>(hn::CappedTag<uint32_t, 4>(), rows, x, x_stride, sums);
  }
}

template <int kBits, int kX>
HWY_NOINLINE void SumWithoutTile(const PackedRows& rows, const int16_t* weights, int32_t* sums) {
  int64_t j = SumDirect<kBits, kX>(hn::ScalableTag<uint8_t>(), rows, weights, 0, sums);
  j = SumDirect<kBits, kX>(hn::CappedTag<uint8_t, 32>(), rows, weights, j, sums);
  SumDirect<kBits, kX>(hn::CappedTag<uint8_t, 16>(), rows, weights, j, sums);
}

// Both give whether they did it: only for one or two x.
template <int kBits>
bool TryDotDirect(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride,
                  int32_t* sums) {
  if (num_x > 2) return false;
  (num_x == 1 ? DotWithoutTile<kBits, 1> : DotWithoutTile<kBits, 2>)(rows, x, x_stride, sums);
  return true;
}
template <int kBits>
bool TrySumDirect(const PackedRows& rows, const int16_t* weights, int64_t num_x, int32_t* sums) {
  constexpr int kSums = 4 * 8 / kBits;  // Of one x.
  if constexpr (kSums <= kMaxDirectSums) {
    if (num_x == 1) return SumWithoutTile<kBits, 1>(rows, weights, sums), true;
  }
  if constexpr (2 * kSums <= kMaxDirectSums) {
    if (num_x == 2) return SumWithoutTile<kBits, 2>(rows, weights, sums), true;
  }
  return false;
}

void Dot(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride, int32_t* tile,
         int32_t* sums) {
  const auto try_direct = rows.bits == 8   ? TryDotDirect<8>
                          : rows.bits == 4 ? TryDotDirect<4>
                                           : TryDotDirect<2>;
  if (try_direct(rows, x, num_x, x_stride, sums)) return;
  const auto load = rows.bits == 8   ? LoadDotTile<8>
                    : rows.bits == 4 ? LoadDotTile<4>
                                     : LoadDotTile<2>;
  const int64_t padded = (rows.num_rows + 15) / 16 * 16;
  for (int64_t r = 0; r < num_x; ++r) std::fill_n(sums + r * kMaxIntegerRows, padded, 0);
  for (int64_t t = 0; t < padded; t += kIntegerTileRows) {
    const int64_t width = std::min(kIntegerTileRows, padded - t);
    load(rows, t, width, tile);
    MulTile({.x = x,
             .x_stride = x_stride,
             .tile = tile,
             .depth = rows.columns / 2,
             .columns = width,
             .sums = sums + t,
             .stride = kMaxIntegerRows},
            num_x);
  }
}

void Sum(const PackedRows& rows, const int16_t* weights, int64_t num_x, int32_t* tile,
         int32_t* sums) {
  const auto try_direct = rows.bits == 8   ? TrySumDirect<8>
                          : rows.bits == 4 ? TrySumDirect<4>
                                           : TrySumDirect<2>;
  if (try_direct(rows, weights, num_x, sums)) return;
  const auto load = rows.bits == 8   ? LoadSumTile<8>
                    : rows.bits == 4 ? LoadSumTile<4>
                                     : LoadSumTile<2>;
  std::fill_n(sums, num_x * rows.columns, 0);
  const int64_t padded = (rows.num_rows + 3) / 4 * 4;
  for (int64_t t = 0; t < padded; t += kIntegerTileRows) {
    const int64_t count = std::min(kIntegerTileRows, padded - t);
    load(rows, t, count, tile);
    MulTile({.x = weights + t,
             .x_stride = kMaxIntegerRows,
             .tile = tile,
             .depth = count / 2,
             .columns = rows.columns,
             .sums = sums,
             .stride = rows.columns},
            num_x);
  }
}

#endif  // HWY_TARGET != HWY_SCALAR

#if HWY_TARGET == HWY_SCALAR

// The inverse of ArrangeForDots is needed by nobody else.
void Dot(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride, int32_t*,
         int32_t* sums) {
  int16_t plain[kMaxGroup];
  int16_t index[kMaxGroup];
  int16_t order[kMaxGroup];
  for (int64_t i = 0; i < rows.columns; ++i) index[i] = static_cast<int16_t>(i);
  ArrangeForDots(rows.bits, rows.columns, index, order);
  for (int64_t r = 0; r < num_x; ++r) {
    for (int64_t i = 0; i < rows.columns; ++i) plain[order[i]] = x[r * x_stride + i];
    ref::DotPackedRows(rows, plain, 1, rows.columns, sums + r * kMaxIntegerRows);
    const int64_t padded = (rows.num_rows + 15) / 16 * 16;
    std::fill(sums + r * kMaxIntegerRows + rows.num_rows, sums + r * kMaxIntegerRows + padded,
              sums[r * kMaxIntegerRows + rows.num_rows - 1]);
  }
}

void Sum(const PackedRows& rows, const int16_t* weights, int64_t num_x, int32_t*, int32_t* sums) {
  ref::SumPackedRows(rows, weights, num_x, sums);
}

#endif  // HWY_TARGET == HWY_SCALAR

float ToIntegers(const float* HWY_RESTRICT x, int64_t count, int16_t* HWY_RESTRICT integers) {
  const hn::ScalableTag<float> df;
  const hn::Rebind<int16_t, decltype(df)> d16;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  auto largest = hn::Zero(df);
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) largest = hn::Max(largest, hn::Abs(hn::LoadU(df, x + i)));
  float max = hn::GetLane(hn::MaxOfLanes(df, largest));
  for (; i < count; ++i) max = std::max(max, std::abs(x[i]));
  if (max < kMinMagnitude) {
    std::fill_n(integers, count, int16_t{0});
    return 0.0f;
  }
  const float inverse = kMaxInteger / max;
  for (i = 0; i + lanes <= count; i += lanes) {
    const auto scaled = hn::Mul(hn::LoadU(df, x + i), hn::Set(df, inverse));
    hn::StoreU(hn::DemoteTo(d16, hn::NearestInt(scaled)), d16, integers + i);
  }
  for (; i < count; ++i) integers[i] = static_cast<int16_t>(std::nearbyint(x[i] * inverse));
  return max / kMaxInteger;
}

int64_t Target() { return HWY_TARGET; }

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pmkvq::internal {
namespace {

void CheckRows(const PackedRows& rows) {
  PMKVQ_DCHECK(0 < rows.num_rows && rows.num_rows <= kMaxIntegerRows);
  PMKVQ_DCHECK(rows.columns <= kMaxGroup && HasIntegerProducts(rows.columns, rows.bits));
}

}  // namespace

HWY_EXPORT(ToIntegers);
HWY_EXPORT(Dot);
HWY_EXPORT(Sum);
HWY_EXPORT(Target);

float QuantizeToIntegers(const float* x, int64_t count, int16_t* integers) {
  return HWY_DYNAMIC_DISPATCH(ToIntegers)(x, count, integers);
}

void ArrangeForDots(int bits, int64_t columns, const int16_t* in, int16_t* out) {
  const int64_t num_bytes = PackedGroupBytes(columns, bits);
  for (int64_t plane = 0; plane < 8 / bits; ++plane) {
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t word = 0; word < num_bytes; word += 4) {
        const int16_t* pair = in + plane * num_bytes + word + half;
        *out++ = pair[0];
        *out++ = pair[2];
      }
    }
  }
}

void DotPackedRows(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride,
                   int32_t* tile, int32_t* sums) {
  CheckRows(rows);
  HWY_DYNAMIC_DISPATCH(Dot)(rows, x, num_x, x_stride, tile, sums);
}

void SumPackedRows(const PackedRows& rows, const int16_t* weights, int64_t num_x, int32_t* tile,
                   int32_t* sums) {
  CheckRows(rows);
  HWY_DYNAMIC_DISPATCH(Sum)(rows, weights, num_x, tile, sums);
}

int64_t IntegerProductsTarget() { return HWY_DYNAMIC_DISPATCH(Target)(); }

}  // namespace pmkvq::internal
#endif  // HWY_ONCE
