// Vectors for products with stored blocks: 64 codes, and the 16 floats or sums that belong to
// them, whatever the size of a register. Every operation gives the same bits on all instruction
// sets: there are no fused multiply-adds, and lane i of 16 always means bytes 4 i to 4 i + 3 of 64.
// For block_product.cc.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_GEMM_BLOCK_VECTORS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_GEMM_BLOCK_VECTORS_INL_H_
#undef PMKVQ_KERNELS_GEMM_BLOCK_VECTORS_INL_H_
#else
#define PMKVQ_KERNELS_GEMM_BLOCK_VECTORS_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/simd_compat-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

template <class T>
HWY_INLINE T LoadAs(const void* place) {
  T value;
  std::memcpy(&value, place, sizeof(value));
  return value;
}

#if HWY_TARGET == HWY_SCALAR

struct Bytes64 {
  uint8_t v[64];
};
struct Ints16 {
  int32_t v[16];
};
struct Floats16 {
  float v[16];
};

template <class Function>
HWY_INLINE Bytes64 EachByte(Function function) {
  Bytes64 out;
  for (int i = 0; i < 64; ++i) out.v[i] = static_cast<uint8_t>(function(i));
  return out;
}
template <class Function>
HWY_INLINE Floats16 EachFloat(Function function) {
  Floats16 out;
  for (int i = 0; i < 16; ++i) out.v[i] = function(i);
  return out;
}

HWY_INLINE Bytes64 Load64(const uint8_t* p) {
  return EachByte([&](int i) { return p[i]; });
}
HWY_INLINE Bytes64 LoadTwice32(const uint8_t* p) {
  return EachByte([&](int i) { return p[i % 32]; });
}
HWY_INLINE Bytes64 LoadTwice16(const uint8_t* p0, const uint8_t* p1) {
  return EachByte([&](int i) { return i < 32 ? p0[i % 16] : p1[i % 16]; });
}
template <int kFirst, int kSecond>
HWY_INLINE Bytes64 ShiftHalves(Bytes64 in, uint8_t mask) {
  return EachByte([&](int i) { return in.v[i] >> (i < 32 ? kFirst : kSecond) & mask; });
}
HWY_INLINE Bytes64 NibblesOf16(Bytes64 in) {
  return EachByte([&](int i) { return in.v[i] >> (i % 32 < 16 ? 0 : 4) & 15; });
}
template <int kFirst, int kSecond>
HWY_INLINE Bytes64 BitsOfHalves(Bytes64 in, uint8_t value) {
  return EachByte(
      [&](int i) { return (in.v[i] >> (i < 32 ? kFirst : kSecond) & 1) != 0 ? value : 0; });
}
HWY_INLINE Bytes64 BitsOfWords(uint32_t first, uint32_t second, uint8_t value) {
  return EachByte(
      [&](int i) { return ((i < 32 ? first : second) >> (i % 32) & 1) != 0 ? value : 0; });
}
HWY_INLINE Bytes64 Or(Bytes64 a, Bytes64 b) {
  return EachByte([&](int i) { return a.v[i] | b.v[i]; });
}
// Of bytes below 16.
HWY_INLINE Bytes64 Times16(Bytes64 a) {
  return EachByte([&](int i) { return a.v[i] << 4; });
}
HWY_INLINE Bytes64 LookUp(const uint8_t* table, Bytes64 nibbles) {
  return EachByte([&](int i) { return table[nibbles.v[i]]; });
}
HWY_INLINE void StoreBytes(Bytes64 a, uint8_t* out) { std::memcpy(out, a.v, 64); }

HWY_INLINE Floats16 SetFloats(float value) {
  return EachFloat([&](int) { return value; });
}
HWY_INLINE Floats16 SetHalf(uint16_t bits) { return SetFloats(ToFloat(F16{bits})); }
HWY_INLINE Floats16 LoadFloats(const float* p) {
  return EachFloat([&](int i) { return p[i]; });
}
HWY_INLINE void StoreFloats(Floats16 a, float* out) { std::memcpy(out, a.v, sizeof(a.v)); }
HWY_INLINE Floats16 Mul(Floats16 a, Floats16 b) {
  return EachFloat([&](int i) { return a.v[i] * b.v[i]; });
}
HWY_INLINE Floats16 Add(Floats16 a, Floats16 b) {
  return EachFloat([&](int i) { return a.v[i] + b.v[i]; });
}
template <class T>
HWY_INLINE Floats16 FloatsOf16(const T* p, int offset) {
  return EachFloat([&](int i) { return static_cast<float>(p[i] - offset); });
}
HWY_INLINE Floats16 FloatsOf8Twice(uint64_t bytes, int offset) {
  return EachFloat([&](int i) {
    return static_cast<float>(static_cast<int>(bytes >> (i / 2 * 8) & 255) - offset);
  });
}
HWY_INLINE Floats16 HalvesTwice(uint64_t low, uint64_t high) {
  return EachFloat([&](int i) {
    return ToFloat(F16{static_cast<uint16_t>((i < 8 ? low : high) >> (i % 8 / 2 * 16))});
  });
}
HWY_INLINE Floats16 PowersTwice(uint64_t exponents) {
  return EachFloat([&](int i) {
    const auto e = static_cast<uint32_t>(exponents >> (i / 2 * 8) & 255);
    return LoadAs<float>(&(const uint32_t&)(e < 2 ? 0x00200000u << e : (e - 1) << 23));
  });
}
HWY_INLINE Floats16 ToFloats(Ints16 a) {
  return EachFloat([&](int i) { return static_cast<float>(a.v[i]); });
}
#else  // HWY_TARGET == HWY_SCALAR

using D8 = hn::CappedTag<uint8_t, 64>;
using D16 = hn::Repartition<uint16_t, D8>;
using D32 = hn::Repartition<uint32_t, D8>;
using DI32 = hn::Repartition<int32_t, D8>;
using DF = hn::Repartition<float, D8>;
constexpr size_t kByteLanes = hn::MaxLanes(D8());
constexpr size_t kFloatLanes = kByteLanes / 4;
constexpr size_t kVectors = 64 / kByteLanes;

// Loops over the vectors have to be unrolled: an index that the compiler does not know would put
// them into memory.
//
// NEON's vectors have constructors that are always inlined. A constructor that the compiler writes
// for a struct of them lacks the target's attributes, and GCC refuses to inline them there.
#if HWY_ARCH_ARM
#define PMKVQ_INLINE_CONSTRUCTOR(Name) \
  HWY_INLINE Name() {}
#else
#define PMKVQ_INLINE_CONSTRUCTOR(Name)
#endif
struct Bytes64 {
  PMKVQ_INLINE_CONSTRUCTOR(Bytes64)
  hn::Vec<D8> v[kVectors];
};
struct Ints16 {
  PMKVQ_INLINE_CONSTRUCTOR(Ints16)
  hn::Vec<DI32> v[kVectors];
};
struct Floats16 {
  PMKVQ_INLINE_CONSTRUCTOR(Floats16)
  hn::Vec<DF> v[kVectors];
};
#undef PMKVQ_INLINE_CONSTRUCTOR

template <class Function>
HWY_INLINE Bytes64 EachBytes(Function function) {
  Bytes64 out;
#pragma GCC unroll 4
  for (size_t n = 0; n < kVectors; ++n) out.v[n] = function(n);
  return out;
}
template <class Function>
HWY_INLINE Floats16 EachFloats(Function function) {
  Floats16 out;
#pragma GCC unroll 4
  for (size_t n = 0; n < kVectors; ++n) out.v[n] = function(n);
  return out;
}

HWY_INLINE Bytes64 Load64(const uint8_t* p) {
  return EachBytes([&](size_t n) HWY_ATTR { return hn::LoadU(D8(), p + n * kByteLanes); });
}

// 32 bytes as both halves.
HWY_INLINE Bytes64 LoadTwice32(const uint8_t* p) {
#if HWY_TARGET == HWY_AVX3
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {{hn::Vec512<uint8_t>{_mm512_broadcast_i64x4(bytes)}}};
#else
  return EachBytes([&](size_t n) HWY_ATTR { return hn::LoadU(D8(), p + n * kByteLanes % 32); });
#endif
}

// 16 bytes twice, and 16 others twice.
HWY_INLINE Bytes64 LoadTwice16(const uint8_t* p0, const uint8_t* p1) {
#if HWY_TARGET == HWY_AVX3
  const auto twice = [](const uint8_t* p) HWY_ATTR {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  };
  return {
      {hn::Vec512<uint8_t>{_mm512_inserti64x4(_mm512_castsi256_si512(twice(p0)), twice(p1), 1)}}};
#else
  return EachBytes([&](size_t n)
                       HWY_ATTR { return hn::LoadDup128(D8(), n < kVectors / 2 ? p0 : p1); });
#endif
}

// Shifts for each of 16 words.
struct WordShifts {
  uint32_t v[16];
};
HWY_INLINE Bytes64 ShiftWords(Bytes64 in, const WordShifts& shifts, uint8_t mask) {
  return EachBytes([&](size_t n) HWY_ATTR {
    const auto by = hn::LoadU(D32(), shifts.v + n * kFloatLanes);
    return hn::And(hn::BitCast(D8(), hn::Shr(hn::BitCast(D32(), in.v[n]), by)),
                   hn::Set(D8(), mask));
  });
}
template <int kBits>
HWY_INLINE hn::Vec<D8> ShiftBytes(hn::Vec<D8> in, uint8_t mask) {
  return hn::And(hn::BitCast(D8(), hn::ShiftRight<kBits>(hn::BitCast(D16(), in))),
                 hn::Set(D8(), mask));
}

// Bits of each byte from kFirst (the first 32 bytes) or kSecond (the others) on. `mask` leaves no
// bit of a neighbour.
template <int kFirst, int kSecond>
HWY_INLINE Bytes64 ShiftHalves(Bytes64 in, uint8_t mask) {
  if constexpr (kVectors == 1 && kFirst != kSecond) {
    static constexpr WordShifts kShifts = {{kFirst, kFirst, kFirst, kFirst, kFirst, kFirst, kFirst,
                                            kFirst, kSecond, kSecond, kSecond, kSecond, kSecond,
                                            kSecond, kSecond, kSecond}};
    return ShiftWords(in, kShifts, mask);
  } else {
    return EachBytes([&](size_t n) HWY_ATTR {
      return n < (kVectors + 1) / 2 ? ShiftBytes<kFirst>(in.v[n], mask)
                                    : ShiftBytes<kSecond>(in.v[n], mask);
    });
  }
}

// Low nibbles of each first 16 bytes of 32, high ones of the others.
HWY_INLINE Bytes64 NibblesOf16(Bytes64 in) {
  if constexpr (kByteLanes > 16) {
    static constexpr WordShifts kShifts = {{0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4}};
    return ShiftWords(in, kShifts, 15);
  } else {
    return EachBytes([&](size_t n) HWY_ATTR {
      return n % 2 == 0 ? ShiftBytes<0>(in.v[n], 15) : ShiftBytes<4>(in.v[n], 15);
    });
  }
}

// `value` where the bit is set.
template <int kFirst, int kSecond>
HWY_INLINE Bytes64 BitsOfHalves(Bytes64 in, uint8_t value) {
  return EachBytes([&](size_t n) HWY_ATTR {
    const D8 d8;
    auto bit = hn::Set(d8, uint8_t{1} << (n < (kVectors + 1) / 2 ? kFirst : kSecond));
    if constexpr (kVectors == 1) {
      bit = hn::IfThenElse(hn::FirstN(d8, 32), bit, hn::Set(d8, uint8_t{1} << kSecond));
    }
    return hn::IfThenElseZero(hn::TestBit(in.v[n], bit), hn::Set(d8, value));
  });
}
// Bit i of `first` is that of byte i, those of `second` are the other half's.
HWY_INLINE Bytes64 BitsOfWords(uint32_t first, uint32_t second, uint8_t value) {
#if HWY_TARGET == HWY_AVX3
  const auto bits = static_cast<__mmask64>(first | static_cast<uint64_t>(second) << 32);
  return {{hn::Vec512<uint8_t>{_mm512_maskz_set1_epi8(bits, static_cast<char>(value))}}};
#else
  static constexpr uint8_t kByteOf[32] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,
                                          2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3};
  static constexpr uint8_t kBit[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
  return EachBytes([&](size_t n) HWY_ATTR {
    const D8 d8;
    const auto word = hn::BitCast(d8, hn::Set(D32(), n < kVectors / 2 ? first : second));
    const auto bytes = hn::TableLookupBytes(word, hn::LoadU(d8, kByteOf + n * kByteLanes % 32));
    return hn::IfThenElseZero(hn::TestBit(bytes, hn::LoadDup128(d8, kBit)), hn::Set(d8, value));
  });
#endif
}
HWY_INLINE Bytes64 Or(Bytes64 a, Bytes64 b) {
  return EachBytes([&](size_t n) HWY_ATTR { return hn::Or(a.v[n], b.v[n]); });
}
// Of bytes below 16.
HWY_INLINE Bytes64 Times16(Bytes64 a) {
  return EachBytes([&](size_t n) HWY_ATTR {
    return hn::BitCast(D8(), hn::ShiftLeft<4>(hn::BitCast(D16(), a.v[n])));
  });
}
// `table` has 16 bytes.
HWY_INLINE Bytes64 LookUp(const uint8_t* table, Bytes64 nibbles) {
  return EachBytes([&](size_t n) HWY_ATTR {
    return hn::TableLookupBytes(hn::LoadDup128(D8(), table), nibbles.v[n]);
  });
}
HWY_INLINE void StoreBytes(Bytes64 a, uint8_t* out) {
#pragma GCC unroll 4
  for (size_t n = 0; n < kVectors; ++n) hn::StoreU(a.v[n], D8(), out + n * kByteLanes);
}

HWY_INLINE Floats16 SetFloats(float value) {
  return EachFloats([&](size_t) HWY_ATTR { return hn::Set(DF(), value); });
}
HWY_INLINE hn::Vec<DF> PromoteHalves(hn::Vec<hn::Rebind<uint16_t, DF> > bits) {
  return hn::PromoteTo(DF(), hn::BitCast(hn::Rebind<hwy::float16_t, DF>(), bits));
}
HWY_INLINE Floats16 SetHalf(uint16_t bits) {
  const auto value = PromoteHalves(hn::Set(hn::Rebind<uint16_t, DF>(), bits));
  return EachFloats([&](size_t) HWY_ATTR { return value; });
}
HWY_INLINE Floats16 LoadFloats(const float* p) {
  return EachFloats([&](size_t n) HWY_ATTR { return hn::LoadU(DF(), p + n * kFloatLanes); });
}
HWY_INLINE void StoreFloats(Floats16 a, float* out) {
#pragma GCC unroll 4
  for (size_t n = 0; n < kVectors; ++n) hn::StoreU(a.v[n], DF(), out + n * kFloatLanes);
}
HWY_INLINE Floats16 Mul(Floats16 a, Floats16 b) {
  return EachFloats([&](size_t n) HWY_ATTR { return hn::Mul(a.v[n], b.v[n]); });
}
HWY_INLINE Floats16 Add(Floats16 a, Floats16 b) {
  return EachFloats([&](size_t n) HWY_ATTR { return hn::Add(a.v[n], b.v[n]); });
}

// Bytes less `offset`. T: uint8_t or int8_t.
template <class T>
HWY_INLINE Floats16 FloatsOf16(const T* p, int offset) {
  return EachFloats([&](size_t n) HWY_ATTR {
    const auto bytes = hn::LoadU(hn::Rebind<T, DF>(), p + n * kFloatLanes);
    return hn::ConvertTo(DF(), hn::Sub(hn::PromoteTo(DI32(), bytes), hn::Set(DI32(), offset)));
  });
}

using Bytes16 = hn::Full128<uint8_t>;
HWY_INLINE hn::Vec<Bytes16> EachTwice(uint64_t bytes) {
  const auto once = hn::BitCast(Bytes16(), hn::Set(hn::Full128<uint64_t>(), bytes));
  return hn::InterleaveLower(Bytes16(), once, once);
}
// Vector n of 16 bytes widened to 32 bits.
HWY_INLINE hn::Vec<DI32> Widened(hn::Vec<Bytes16> bytes, size_t n) {
#if HWY_TARGET == HWY_AVX3
  (void)n;
  return hn::PromoteTo(DI32(), bytes);
#else
  HWY_ALIGN uint8_t memory[16];
  hn::Store(bytes, Bytes16(), memory);
  return hn::PromoteTo(DI32(), hn::LoadU(hn::Rebind<uint8_t, DF>(), memory + n * kFloatLanes));
#endif
}
// Bytes less `offset`, each for two floats.
HWY_INLINE Floats16 FloatsOf8Twice(uint64_t bytes, int offset) {
  const auto twice = EachTwice(bytes);
  return EachFloats([&](size_t n) HWY_ATTR {
    return hn::ConvertTo(DF(), hn::Sub(Widened(twice, n), hn::Set(DI32(), offset)));
  });
}
// F16 numbers, each for two floats.
HWY_INLINE Floats16 HalvesTwice(uint64_t low, uint64_t high) {
  const hn::Full128<uint64_t> d64;
  const hn::Full128<uint16_t> d16;
  const auto once =
      hn::BitCast(d16, hn::InterleaveLower(d64, hn::Set(d64, low), hn::Set(d64, high)));
  const auto lower = hn::InterleaveLower(d16, once, once);
  const auto upper = hn::InterleaveUpper(d16, once, once);
  return EachFloats([&](size_t n) HWY_ATTR {
#if HWY_TARGET == HWY_AVX3
    (void)n;
    return PromoteHalves(hn::Combine(hn::Rebind<uint16_t, DF>(), upper, lower));
#elif HWY_TARGET == HWY_AVX2
    return PromoteHalves(n == 0 ? lower : upper);
#else
    const auto half = n < 2 ? lower : upper;
    return PromoteHalves(n % 2 == 0 ? hn::LowerHalf(half)
                                    : hn::UpperHalf(hn::Rebind<uint16_t, DF>(), half));
#endif
  });
}
// 2^(e - 128) of each byte e, for two floats; e 0 and 1 are subnormal.
HWY_INLINE Floats16 PowersTwice(uint64_t exponents) {
  const auto twice = EachTwice(exponents);
  return EachFloats([&](size_t n) HWY_ATTR {
    const DI32 d32;
    const auto e = Widened(twice, n);
    const auto normal = hn::ShiftLeft<23>(hn::Sub(e, hn::Set(d32, 1)));
    const auto subnormal =
        hn::Add(hn::Set(d32, 0x00200000),
                hn::IfThenElseZero(hn::Eq(e, hn::Set(d32, 1)), hn::Set(d32, 0x00200000)));
    return hn::BitCast(DF(), hn::IfThenElse(hn::Lt(e, hn::Set(d32, 2)), subnormal, normal));
  });
}

HWY_INLINE Floats16 ToFloats(Ints16 a) {
  return EachFloats([&](size_t n) HWY_ATTR { return hn::ConvertTo(DF(), a.v[n]); });
}

#endif  // HWY_TARGET == HWY_SCALAR

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_GEMM_BLOCK_VECTORS_INL_H_
