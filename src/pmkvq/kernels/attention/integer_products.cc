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
// word w are at (w * planes + plane) * 2 + half.
template <int kBits>
HWY_NOINLINE void LoadDotTile(const PackedRows& rows, int64_t t0, int64_t width,
                              int32_t* HWY_RESTRICT tile) {
  const hn::ScalableTag<uint32_t> d32;
  const hn::Repartition<uint64_t, decltype(d32)> d64;
  constexpr auto kLanes = static_cast<int64_t>(hn::MaxLanes(hn::ScalableTag<uint32_t>()));
  constexpr int64_t kPairs = 16 / kBits;  // Of a word.
  const int64_t num_bytes = PackedGroupBytes(rows.columns, kBits);
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
      int32_t* out = tile + j / 4 * kPairs * width + t;
      const int64_t word = kPairs * width;
      StorePairs<kBits>(d32, hn::InterleaveLower(d64, low01, low23), 2 * width, width, out);
      StorePairs<kBits>(d32, hn::InterleaveUpper(d64, low01, low23), 2 * width, width, out + word);
      out += 2 * word;
      StorePairs<kBits>(d32, hn::InterleaveLower(d64, high01, high23), 2 * width, width, out);
      StorePairs<kBits>(d32, hn::InterleaveUpper(d64, high01, high23), 2 * width, width,
                        out + word);
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

// Four rows, from byte j on as far as full vectors reach, to two rows of pairs of the tile
// [., columns]. Interleaves work within blocks of 16 bytes: dealt words make dims come out in
// order.
template <int kBits, class D8>
HWY_INLINE int64_t ExpandFourRows(D8 d8, const std::byte* const* from, int64_t num_bytes, int64_t j,
                                  int64_t columns, int32_t* HWY_RESTRICT tile) {
  const hn::Repartition<uint16_t, D8> d16;
  const hn::Repartition<uint32_t, D8> d32;
  constexpr auto kBytes = static_cast<int64_t>(hn::MaxLanes(D8()));
  for (; j + kBytes <= num_bytes; j += kBytes) {
    const auto a = hn::BitCast(d8, LoadDealt(d32, from[0] + j));
    const auto b = hn::BitCast(d8, LoadDealt(d32, from[2] + j));
    const auto c = hn::BitCast(d8, LoadDealt(d32, from[1] + j));
    const auto d = hn::BitCast(d8, LoadDealt(d32, from[3] + j));
    const auto low_ab = hn::BitCast(d16, hn::InterleaveLower(d8, a, b));
    const auto low_cd = hn::BitCast(d16, hn::InterleaveLower(d8, c, d));
    const auto high_ab = hn::BitCast(d16, hn::InterleaveUpper(d8, a, b));
    const auto high_cd = hn::BitCast(d16, hn::InterleaveUpper(d8, c, d));
    int32_t* out = tile + j;
    const auto word0 = hn::InterleaveLower(d16, low_ab, low_cd);
    const auto word1 = hn::InterleaveUpper(d16, low_ab, low_cd);
    const auto word2 = hn::InterleaveLower(d16, high_ab, high_cd);
    const auto word3 = hn::InterleaveUpper(d16, high_ab, high_cd);
    StorePairs<kBits>(d32, word0, num_bytes, columns, out);
    StorePairs<kBits>(d32, word1, num_bytes, columns, out + kBytes / 4);
    StorePairs<kBits>(d32, word2, num_bytes, columns, out + kBytes / 2);
    StorePairs<kBits>(d32, word3, num_bytes, columns, out + kBytes / 4 * 3);
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

void Dot(const PackedRows& rows, const int16_t* x, int64_t num_x, int64_t x_stride, int32_t* tile,
         int32_t* sums) {
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
  std::fill_n(sums, num_x * rows.columns, 0);
  const auto load = rows.bits == 8   ? LoadSumTile<8>
                    : rows.bits == 4 ? LoadSumTile<4>
                                     : LoadSumTile<2>;
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
  for (int64_t word = 0; word < num_bytes; word += 4) {
    for (int64_t plane = 0; plane < 8 / bits; ++plane) {
      for (int64_t half = 0; half < 2; ++half) {
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
