// How blocks of quantised weights (docs/formats.md) become codes and scales: one struct Block<id>
// per format of PMKVQ_BLOCK_FORMATS. For block_product.cc.
//
// A piece is 256 weights: one block of 256, or eight blocks of 32. Weight i of a piece is
//   scale[i / 16] * (code[i] - kOffset) - minimum[i / 16]
// with codes from 0 to kMostCode. Where a scale belongs to kScaleValues = 32 weights, it stands
// there twice.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_GEMM_BLOCK_FORMATS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_GEMM_BLOCK_FORMATS_INL_H_
#undef PMKVQ_KERNELS_GEMM_BLOCK_FORMATS_INL_H_
#else
#define PMKVQ_KERNELS_GEMM_BLOCK_FORMATS_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "pmkvq/kernels/gemm/block_vectors-inl.h"
#include "pmkvq/tensor/weight_format.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {

// What formats have in common. Codes<c>: those of weights 64 c to 64 c + 63.
template <WeightFormat kFormat, int kOffsetOfCodes, int kLargestCode>
struct Block {
  static constexpr int64_t kValues = LayoutOf(kFormat).block_values;
  static constexpr size_t kBytes = static_cast<size_t>(LayoutOf(kFormat).block_bytes);
  static constexpr int kOffset = kOffsetOfCodes;
  static constexpr int kMostCode = kLargestCode;
  static constexpr bool kHasMinima = false;
  static constexpr int kScaleValues = 32;  // Or 16: how many weights have a scale.

  const uint8_t* p;
};

// F16 numbers at byte kAt of eight blocks that lie `bytes` apart.
template <size_t kAt>
HWY_INLINE Floats16 HalvesOfBlocks(const uint8_t* p, size_t bytes) {
  const auto four = [&](const uint8_t* first) HWY_ATTR {
    uint64_t word = 0;
#pragma GCC unroll 4
    for (size_t i = 0; i < 4; ++i) {
      word |= static_cast<uint64_t>(LoadAs<uint16_t>(first + i * bytes + kAt)) << (16 * i);
    }
    return word;
  };
  return HalvesTwice(four(p), four(p + 4 * bytes));
}

// Nibbles of blocks 2 kChunk and 2 kChunk + 1, from byte kAt on.
template <int kChunk, size_t kAt>
HWY_INLINE Bytes64 NibblesOfBlocks(const uint8_t* p, size_t bytes) {
  const uint8_t* const first = p + 2 * kChunk * bytes + kAt;
  return NibblesOf16(LoadTwice16(first, first + bytes));
}

// The same with words of high bits at byte kHighAt.
template <int kChunk, size_t kAt, size_t kHighAt>
HWY_INLINE Bytes64 FiveBitsOfBlocks(const uint8_t* p, size_t bytes) {
  const uint8_t* const first = p + 2 * kChunk * bytes + kHighAt;
  return Or(NibblesOfBlocks<kChunk, kAt>(p, bytes),
            BitsOfWords(LoadAs<uint32_t>(first), LoadAs<uint32_t>(first + bytes), 16));
}

struct BlockQ4_0 : Block<WeightFormat::kQ4_0, 8, 15> {
  HWY_INLINE void Scales(Floats16& scales, Floats16& /*minima*/) const {
    scales = HalvesOfBlocks<0>(p, kBytes);
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    return NibblesOfBlocks<kChunk, 2>(p, kBytes);
  }
};

struct BlockQ4_1 : Block<WeightFormat::kQ4_1, 0, 15> {
  static constexpr bool kHasMinima = true;
  // The file adds its minima.
  HWY_INLINE void Scales(Floats16& scales, Floats16& minima) const {
    scales = HalvesOfBlocks<0>(p, kBytes);
    minima = Mul(HalvesOfBlocks<2>(p, kBytes), SetFloats(-1.0f));
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    return NibblesOfBlocks<kChunk, 4>(p, kBytes);
  }
};

struct BlockQ5_0 : Block<WeightFormat::kQ5_0, 16, 31> {
  HWY_INLINE void Scales(Floats16& scales, Floats16& /*minima*/) const {
    scales = HalvesOfBlocks<0>(p, kBytes);
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    return FiveBitsOfBlocks<kChunk, 6, 2>(p, kBytes);
  }
};

struct BlockQ5_1 : Block<WeightFormat::kQ5_1, 0, 31> {
  static constexpr bool kHasMinima = true;
  HWY_INLINE void Scales(Floats16& scales, Floats16& minima) const {
    scales = HalvesOfBlocks<0>(p, kBytes);
    minima = Mul(HalvesOfBlocks<2>(p, kBytes), SetFloats(-1.0f));
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    return FiveBitsOfBlocks<kChunk, 8, 4>(p, kBytes);
  }
};

constexpr uint64_t kEachByte = 0x0101010101010101u;

struct BlockQ2_K : Block<WeightFormat::kQ2_K, 0, 3> {
  static constexpr bool kHasMinima = true;
  static constexpr int kScaleValues = 16;
  HWY_INLINE void Scales(Floats16& scales, Floats16& minima) const {
    uint8_t low[16];
    uint8_t high[16];
    for (size_t i = 0; i < 16; i += 8) {
      const auto bytes = LoadAs<uint64_t>(p + i);
      const uint64_t low_bytes = bytes & 15 * kEachByte;
      const uint64_t high_bytes = bytes >> 4 & 15 * kEachByte;
      std::memcpy(low + i, &low_bytes, 8);
      std::memcpy(high + i, &high_bytes, 8);
    }
    scales = Mul(SetHalf(LoadAs<uint16_t>(p + 80)), FloatsOf16(low, 0));
    minima = Mul(SetHalf(LoadAs<uint16_t>(p + 82)), FloatsOf16(high, 0));
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    constexpr int kShift = kChunk % 2 * 4;
    return ShiftHalves<kShift, kShift + 2>(LoadTwice32(p + 16 + kChunk / 2 * 32), 3);
  }
};

struct BlockQ3_K : Block<WeightFormat::kQ3_K, 4, 7> {
  static constexpr int kScaleValues = 16;
  HWY_INLINE void Scales(Floats16& scales, Floats16& /*minima*/) const {
    const auto low = LoadAs<uint64_t>(p + 96);
    const uint64_t high = LoadAs<uint32_t>(p + 104);
    const auto two_bits = [&](int shift) { return high >> shift & 0x03030303u; };
    const uint64_t groups[2] = {(low & 15 * kEachByte) | (two_bits(0) | two_bits(2) << 32) << 4,
                                (low >> 4 & 15 * kEachByte) | (two_bits(4) | two_bits(6) << 32)
                                                                  << 4};
    scales = Mul(SetHalf(LoadAs<uint16_t>(p + 108)),
                 FloatsOf16(reinterpret_cast<const uint8_t*>(groups), 32));
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    constexpr int kShift = kChunk % 2 * 4;
    return Or(ShiftHalves<kShift, kShift + 2>(LoadTwice32(p + 32 + kChunk / 2 * 32), 3),
              BitsOfHalves<2 * kChunk, 2 * kChunk + 1>(LoadTwice32(p), 4));
  }
};

// Scales and minima of Q4_K and Q5_K: 6 bits each in 12 bytes behind two F16 factors.
HWY_INLINE void ScalesOf6Bits(const uint8_t* p, Floats16& scales, Floats16& minima) {
  const uint64_t a = LoadAs<uint32_t>(p + 4);
  const uint64_t b = LoadAs<uint32_t>(p + 8);
  const uint64_t c = LoadAs<uint32_t>(p + 12);
  const uint64_t scale = (a & 0x3f3f3f3fu) | ((c & 0x0f0f0f0fu) | (a >> 2 & 0x30303030u)) << 32;
  const uint64_t minimum = (b & 0x3f3f3f3fu) | ((c >> 4 & 0x0f0f0f0fu) | (b >> 2 & 0x30303030u))
                                                   << 32;
  scales = Mul(SetHalf(LoadAs<uint16_t>(p)), FloatsOf8Twice(scale, 0));
  minima = Mul(SetHalf(LoadAs<uint16_t>(p + 2)), FloatsOf8Twice(minimum, 0));
}

struct BlockQ4_K : Block<WeightFormat::kQ4_K, 0, 15> {
  static constexpr bool kHasMinima = true;
  HWY_INLINE void Scales(Floats16& scales, Floats16& minima) const {
    ScalesOf6Bits(p, scales, minima);
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    return ShiftHalves<0, 4>(LoadTwice32(p + 16 + 32 * kChunk), 15);
  }
};

struct BlockQ5_K : Block<WeightFormat::kQ5_K, 0, 31> {
  static constexpr bool kHasMinima = true;
  HWY_INLINE void Scales(Floats16& scales, Floats16& minima) const {
    ScalesOf6Bits(p, scales, minima);
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    return Or(ShiftHalves<0, 4>(LoadTwice32(p + 48 + 32 * kChunk), 15),
              BitsOfHalves<2 * kChunk, 2 * kChunk + 1>(LoadTwice32(p + 16), 16));
  }
};

struct BlockQ6_K : Block<WeightFormat::kQ6_K, 32, 63> {
  static constexpr int kScaleValues = 16;
  HWY_INLINE void Scales(Floats16& scales, Floats16& /*minima*/) const {
    scales = Mul(SetHalf(LoadAs<uint16_t>(p + 208)),
                 FloatsOf16(reinterpret_cast<const int8_t*>(p + 192), 0));
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    constexpr int kShift = kChunk % 2 * 4;
    return Or(ShiftHalves<kShift, kShift>(Load64(p + kChunk / 2 * 64), 15),
              Times16(ShiftHalves<kShift, kShift + 2>(LoadTwice32(p + 128 + kChunk / 2 * 32), 3)));
  }
};

// The table of docs/formats.md plus 128.
alignas(16) constexpr uint8_t kNonLinear[16] = {1,   24,  45,  63,  79,  93,  106, 118,
                                                129, 141, 153, 166, 181, 197, 217, 241};
// Twice the values of E2M1, plus 12; its negative zero is 0.
alignas(16) constexpr uint8_t kE2M1[16] = {12, 13, 14, 15, 16, 18, 20, 24,
                                           12, 11, 10, 9,  8,  6,  4,  0};

struct BlockIQ4_NL : Block<WeightFormat::kIQ4_NL, 128, 241> {
  HWY_INLINE void Scales(Floats16& scales, Floats16& /*minima*/) const {
    scales = HalvesOfBlocks<0>(p, kBytes);
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    return LookUp(kNonLinear, NibblesOfBlocks<kChunk, 2>(p, kBytes));
  }
};

struct BlockIQ4_XS : Block<WeightFormat::kIQ4_XS, 128, 241> {
  HWY_INLINE void Scales(Floats16& scales, Floats16& /*minima*/) const {
    // Nibbles and pairs of bits, each to a byte.
    uint64_t low = LoadAs<uint32_t>(p + 4);
    low = (low | low << 16) & 0x0000ffff0000ffffu;
    low = (low | low << 8) & 0x00ff00ff00ff00ffu;
    low = (low | low << 4) & 15 * kEachByte;
    uint64_t high = LoadAs<uint16_t>(p + 2);
    high = (high | high << 24) & 0x000000ff000000ffu;
    high = (high | high << 12) & 0x000f000f000f000fu;
    high = (high | high << 6) & 3 * kEachByte;
    scales = Mul(SetHalf(LoadAs<uint16_t>(p)), FloatsOf8Twice(low | high << 4, 32));
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    const uint8_t* const first = p + 8 + 32 * kChunk;
    return LookUp(kNonLinear, NibblesOf16(LoadTwice16(first, first + 16)));
  }
};

struct BlockMXFP4 : Block<WeightFormat::kMXFP4, 12, 24> {
  HWY_INLINE void Scales(Floats16& scales, Floats16& /*minima*/) const {
    uint64_t exponents = 0;
#pragma GCC unroll 8
    for (size_t i = 0; i < 8; ++i) exponents |= static_cast<uint64_t>(p[i * kBytes]) << (8 * i);
    scales = PowersTwice(exponents);
  }
  template <int kChunk>
  HWY_INLINE Bytes64 Codes() const {
    return LookUp(kE2M1, NibblesOfBlocks<kChunk, 1>(p, kBytes));
  }
};

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_GEMM_BLOCK_FORMATS_INL_H_
