// How stored weights of each format (tensor/weight_format.h) become vectors of floats: one struct
// Weight<id> per format. For gemm_decode.cc.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_GEMM_WEIGHT_FORMATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_GEMM_WEIGHT_FORMATS_INL_H_
#undef PMKVQ_KERNELS_GEMM_WEIGHT_FORMATS_INL_H_
#else
#define PMKVQ_KERNELS_GEMM_WEIGHT_FORMATS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "pmkvq/kernels/gemm/weight_q8.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

using D = hn::ScalableTag<float>;
using V = hn::Vec<D>;

// One step of a dot product takes a chunk of two float vectors.
HWY_INLINE size_t ChunkSize() { return 2 * hn::Lanes(D()); }

// Where a format keeps the elements of a row, in units of Raw.
template <class T>
struct PlainLayout {
  using Raw = T;
  // Whether a chunk's vectors are its even and its odd elements, and not its two halves.
  static constexpr bool kEvenOdd = false;
  // Rows end with their last element, not with a chunk.
  static constexpr bool kPadded = false;
  static HWY_INLINE size_t RowStride(size_t cols) { return cols; }
  static HWY_INLINE size_t OffsetOf(size_t col) { return col; }
};

// How a chunk of each format becomes two vectors, kHalf 0 and 1; `p` points to its first
// element, which is that of column `col`. InOrder is the struct that has its two halves in order;
// products may have another order (kEvenOdd), for which x is packed alike.
struct WeightF32 : PlainLayout<float> {
  using InOrder = WeightF32;
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t /*col*/) {
    const D d;
    return hn::LoadU(d, p + kHalf * hn::Lanes(d));
  }
};

struct WeightF16 : PlainLayout<uint16_t> {
  using InOrder = WeightF16;
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t /*col*/) {
    const D d;
    const hn::Rebind<hwy::float16_t, D> d16;
    const auto* half = reinterpret_cast<const hwy::float16_t*>(p);
    return hn::PromoteTo(d, hn::LoadU(d16, half + kHalf * hn::Lanes(d)));
  }
};

struct WeightBF16InOrder : PlainLayout<uint16_t> {
  using InOrder = WeightBF16InOrder;
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t /*col*/) {
    const D d;
    const hn::RebindToUnsigned<D> d32;
    const hn::Rebind<uint16_t, D> d16;
    const auto half = hn::LoadU(d16, p + kHalf * hn::Lanes(d));
    return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(d32, half)));
  }
};

#if HWY_TARGET == HWY_SCALAR  // Has no vectors to split in even and odd.
using WeightBF16 = WeightBF16InOrder;
#else
// Even elements, then odd ones: a shift and a mask expand a whole vector of BF16.
struct WeightBF16 : PlainLayout<uint16_t> {
  using InOrder = WeightBF16InOrder;
  static constexpr bool kEvenOdd = true;
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t /*col*/) {
    const D d;
    const hn::RebindToUnsigned<D> d32;
    const hn::Repartition<uint16_t, D> d16;
    const auto pairs = hn::BitCast(d32, hn::LoadU(d16, p));
    return hn::BitCast(
        d, kHalf == 0 ? hn::ShiftLeft<16>(pairs) : hn::And(pairs, hn::Set(d32, 0xffff0000u)));
  }
};
#endif

// Codes times the scale of their group; the product is exact (weight_q8.h).
struct WeightQ8 {
  using InOrder = WeightQ8;
  using Raw = int8_t;
  static constexpr bool kEvenOdd = false;
  static constexpr bool kPadded = true;
  static HWY_INLINE size_t RowStride(size_t cols) {
    return static_cast<size_t>(RowBytes(WeightFormat::kQ8, static_cast<int64_t>(cols)));
  }
  static HWY_INLINE size_t OffsetOf(size_t col) {
    return col / kQ8Group * kQ8GroupBytes + col % kQ8Group;
  }
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t col) {
    const D d;
    const hn::RebindToSigned<D> d32;
    const hn::RebindToUnsigned<D> du32;
    const hn::Rebind<int8_t, D> d8;
    // The last two codes and the scale: a load of four bytes that needs only a mask to be a float.
    uint32_t bits;
    std::memcpy(&bits, p + kQ8Group - 2 - col % kQ8Group, sizeof(bits));
    const V scale = hn::BitCast(d, hn::And(hn::Set(du32, bits), hn::Set(du32, 0xffff0000u)));
    const auto codes = hn::PromoteTo(d32, hn::LoadU(d8, p + kHalf * hn::Lanes(d)));
    return hn::Mul(hn::ConvertTo(d, codes), scale);
  }
};

// The same with an F16 scale in front of the codes. It has 11 bits: the product is exact, too.
struct WeightQ8_0 {
  using InOrder = WeightQ8_0;
  using Raw = int8_t;
  static constexpr bool kEvenOdd = false;
  static constexpr bool kPadded = true;
  static constexpr size_t kScaleBytes = 2;
  static constexpr size_t kBlockValues =
      static_cast<size_t>(LayoutOf(WeightFormat::kQ8_0).block_values);
  static constexpr size_t kBlockBytes =
      static_cast<size_t>(LayoutOf(WeightFormat::kQ8_0).block_bytes);
  static HWY_INLINE size_t RowStride(size_t cols) {
    return static_cast<size_t>(RowBytes(WeightFormat::kQ8_0, static_cast<int64_t>(cols)));
  }
  // Of the element's code, less the scale: that of column 0 has to be 0.
  static HWY_INLINE size_t OffsetOf(size_t col) {
    return col / kBlockValues * kBlockBytes + col % kBlockValues;
  }
  template <size_t kHalf>
  static HWY_INLINE V Load(const Raw* HWY_RESTRICT p, size_t col) {
    const D d;
    const hn::RebindToSigned<D> d32;
    const hn::Rebind<int8_t, D> d8;
    const hn::Rebind<uint16_t, D> du16;
    const hn::Rebind<hwy::float16_t, D> d16;
    uint16_t bits;
    std::memcpy(&bits, p - col % kBlockValues, sizeof(bits));
    const V scale = hn::PromoteTo(d, hn::BitCast(d16, hn::Set(du16, bits)));
    const auto codes = hn::PromoteTo(d32, hn::LoadU(d8, p + kScaleBytes + kHalf * hn::Lanes(d)));
    return hn::Mul(hn::ConvertTo(d, codes), scale);
  }
};

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_GEMM_WEIGHT_FORMATS_INL_H_
