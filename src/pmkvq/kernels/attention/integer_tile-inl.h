// Products of packed codes with 16-bit integers by tiles of pairs.
//
// Both products multiply a tile of pairs in first-level cache: 32-bit words that hold the codes of
// two dims of a token (dots, words of one pair of dims side by side over tokens) or of two tokens
// of a dim (sums, side by side over dims), against words that hold the two factors. So one
// instruction multiplies both and adds them up in the lane of their token or dim, and there are no
// sums over lanes. A tile is expanded once and used by all query rows.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_ATTENTION_INTEGER_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_ATTENTION_INTEGER_TILE_INL_H_
#undef PMKVQ_KERNELS_ATTENTION_INTEGER_TILE_INL_H_
#else
#define PMKVQ_KERNELS_ATTENTION_INTEGER_TILE_INL_H_
#endif

#include <algorithm>
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

#endif  // HWY_TARGET != HWY_SCALAR

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_ATTENTION_INTEGER_TILE_INL_H_
