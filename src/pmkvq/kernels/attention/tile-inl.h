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
