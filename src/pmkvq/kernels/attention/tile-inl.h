// Tiles in first-level cache: transposing, expanding, and multiplying them.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_ATTENTION_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_ATTENTION_TILE_INL_H_
#undef PMKVQ_KERNELS_ATTENTION_TILE_INL_H_
#else
#define PMKVQ_KERNELS_ATTENTION_TILE_INL_H_
#endif

#include <algorithm>
#include <cstdint>

#include "pmkvq/kernels/attention/attention_internal.h"
#include "pmkvq/kernels/kv_quant/codes-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

// Rows transposed at a time.
constexpr int64_t kTransposeRows = 8;

// out [cols, 8] = transpose of 8 rows of `cols` unsigned integers.
//
// Interleaving the first half of the registers with the second moves the highest bit of an
// element's (row, column) index to the lowest place; three times move the whole row index there.
template <class T>
HWY_INLINE void TransposeRows(const T* const* rows, int64_t cols, T* HWY_RESTRICT out) {
  int64_t c = 0;
#if HWY_TARGET != HWY_SCALAR
  const hn::FixedTag<T, 16 / sizeof(T)> d;
  constexpr int64_t kCols = 16 / sizeof(T);
  for (; c + kCols <= cols; c += kCols) {
    hn::Vec<decltype(d)> a[8];
    hn::Vec<decltype(d)> b[8];
    HWY_UNROLL(8) for (int i = 0; i < 8; ++i) a[i] = hn::LoadU(d, rows[i] + c);
    const auto shuffle = [&](const auto* from, auto* to) HWY_ATTR {
      HWY_UNROLL(4) for (int i = 0; i < 4; ++i) {
        to[2 * i] = hn::InterleaveLower(d, from[i], from[i + 4]);
        to[2 * i + 1] = hn::InterleaveUpper(d, from[i], from[i + 4]);
      }
    };
    shuffle(a, b);
    shuffle(b, a);
    shuffle(a, b);
    HWY_UNROLL(8) for (int i = 0; i < 8; ++i) hn::StoreU(b[i], d, out + c * 8 + i * kCols);
  }
#endif
  for (; c < cols; ++c) {
    for (int64_t i = 0; i < kTransposeRows; ++i) out[c * kTransposeRows + i] = rows[i][c];
  }
}

// Columns [cols, 8] of a transposed block to floats: tile[(dim) * 32 + 0..7].
template <class T, class Convert>
HWY_INLINE void ExpandColumns(const T* columns, int64_t cols, const Convert& convert, float* tile) {
  const hn::CappedTag<float, 8> df;
  const auto lanes = static_cast<int64_t>(hn::Lanes(df));
  for (int64_t c = 0; c < cols; ++c) {
    for (int64_t i = 0; i < kTransposeRows; i += lanes) {
      convert(df, columns + c * kTransposeRows + i, tile + c * kTileTokens + i);
    }
  }
}

// Eight rows of keys, group g, to tile columns 0..7. Rows beyond `count` repeat the last.
template <class T, class Convert>
HWY_INLINE void LoadEightKeys(const std::byte* data, int64_t row_bytes, int64_t count, int64_t cols,
                              const Convert& convert, float* scratch, float* tile) {
  const T* rows[kTransposeRows];
  for (int64_t i = 0; i < kTransposeRows; ++i) {
    rows[i] = reinterpret_cast<const T*>(data + std::min(i, count - 1) * row_bytes);
  }
  T* columns = reinterpret_cast<T*>(scratch);
  TransposeRows(rows, cols, columns);
  ExpandColumns(columns, cols, convert, tile);
}

template <int kBits>
void LoadEightCodes(const std::byte* data, int64_t row_bytes, int64_t count, int64_t group,
                    float* scratch, float* tile) {
  const int64_t plane_bytes = group * kBits / 8;
  const auto convert = [plane_bytes](auto df, const uint8_t* from, float* to) HWY_ATTR {
    const hn::Rebind<uint8_t, decltype(df)> d8;
    const hn::Rebind<int32_t, decltype(df)> di;
    pmkvq::HWY_NAMESPACE::SplitPlanes<kBits>(
        df, hn::PromoteTo(di, hn::LoadU(d8, from)), [&](int plane, auto codes) HWY_ATTR {
          hn::StoreU(codes, df, to + plane * plane_bytes * kTileTokens);
        });
  };
  LoadEightKeys<uint8_t>(data, row_bytes, count, plane_bytes, convert, scratch, tile);
}

template <class HwyType>
void LoadEightHalves(const std::byte* data, int64_t row_bytes, int64_t count, int64_t group,
                     float* scratch, float* tile) {
  const auto convert = [](auto df, const uint16_t* from, float* to) HWY_ATTR {
    const hn::Rebind<HwyType, decltype(df)> d16;
    const auto* p = reinterpret_cast<const HwyType*>(from);
    hn::StoreU(hn::PromoteTo(df, hn::LoadU(d16, p)), df, to);
  };
  LoadEightKeys<uint16_t>(data, row_bytes, count, group, convert, scratch, tile);
}

void LoadEightFloats(const std::byte* data, int64_t row_bytes, int64_t count, int64_t group,
                     float* scratch, float* tile) {
  const auto convert = [](auto df, const uint32_t* from, float* to) HWY_ATTR {
    const hn::Rebind<uint32_t, decltype(df)> du;
    hn::StoreU(hn::BitCast(df, hn::LoadU(du, from)), df, to);
  };
  LoadEightKeys<uint32_t>(data, row_bytes, count, group, convert, scratch, tile);
}

// Registers that hold sums: the rest is for operands.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
constexpr int kRowBlock = 8;
#else
constexpr int kRowBlock = 4;
#endif

// c [kRows, kVecs vectors] += a [kRows, depth] b [depth, kVecs vectors]. Every element is one chain
// of fused multiply-adds over the depth, so its bits do not depend on the blocking.
template <int kRows, int kVecs>
HWY_INLINE void MulBlock(const float* HWY_RESTRICT a, int64_t lda, const float* HWY_RESTRICT b,
                         int64_t ldb, int64_t depth, float* HWY_RESTRICT c, int64_t ldc) {
  const hn::ScalableTag<float> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  hn::Vec<decltype(d)> sum[kRows][kVecs];
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8) for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::LoadU(d, c + r * ldc + v * lanes);
  }
  for (int64_t k = 0; k < depth; ++k) {
    hn::Vec<decltype(d)> operand[kVecs];
    HWY_UNROLL(8)
    for (int v = 0; v < kVecs; ++v) operand[v] = hn::LoadU(d, b + k * ldb + v * lanes);
    HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
      const auto factor = hn::Set(d, a[r * lda + k]);
      HWY_UNROLL(8) for (int v = 0; v < kVecs; ++v) {
        sum[r][v] = hn::MulAdd(factor, operand[v], sum[r][v]);
      }
    }
  }
  HWY_UNROLL(8) for (int r = 0; r < kRows; ++r) {
    HWY_UNROLL(8) for (int v = 0; v < kVecs; ++v) hn::StoreU(sum[r][v], d, c + r * ldc + v * lanes);
  }
}

// All columns of kRows rows, in blocks as wide as the registers allow.
template <int kRows>
HWY_INLINE void MulRows(const float* a, int64_t lda, const float* b, int64_t ldb, int64_t depth,
                        int64_t columns, float* c, int64_t ldc) {
  constexpr int kWide = kRows >= 4 ? 2 : kRows >= 2 ? 4 : 8;
  const auto lanes = static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));
  int64_t n = 0;
  const auto run = [&]<int kVecs>() HWY_ATTR {
    for (; n + kVecs * lanes <= columns; n += kVecs * lanes) {
      MulBlock<kRows, kVecs>(a, lda, b + n, ldb, depth, c + n, ldc);
    }
  };
  run.template operator()<kWide>();
  if constexpr (kWide > 2) run.template operator()<2>();
  run.template operator()<1>();
}

// c [rows, columns] += a [rows, depth] b [depth, columns]; `columns` in full vectors.
HWY_NOINLINE void MulTile(int64_t rows, const float* a, int64_t lda, const float* b, int64_t ldb,
                          int64_t depth, int64_t columns, float* c, int64_t ldc) {
  int64_t r = 0;
  const auto run = [&]<int kRows>() HWY_ATTR {
    for (; rows - r >= kRows; r += kRows) {
      MulRows<kRows>(a + r * lda, lda, b, ldb, depth, columns, c + r * ldc, ldc);
    }
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

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_ATTENTION_TILE_INL_H_
