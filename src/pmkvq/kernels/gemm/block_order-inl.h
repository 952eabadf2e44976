// What products with stored blocks do within the four parts of 16 bytes of 64 (block_piece.h): the
// order of groups, transpositions, and sums of products of bytes. A *slice* is what one register
// holds of 64 bytes; kSlices of them are 64. For block_product.cc.
#include "hwy/highway.h"

#if defined(PMKVQ_KERNELS_GEMM_BLOCK_ORDER_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PMKVQ_KERNELS_GEMM_BLOCK_ORDER_INL_H_
#undef PMKVQ_KERNELS_GEMM_BLOCK_ORDER_INL_H_
#else
#define PMKVQ_KERNELS_GEMM_BLOCK_ORDER_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "pmkvq/kernels/gemm/block_vectors-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pmkvq::internal::HWY_NAMESPACE {
namespace {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET == HWY_SCALAR

constexpr size_t kSlices = 1;
constexpr size_t kSliceBytes = 64;
using ByteSlice = Bytes64;
using IntSlice = Ints16;
using FloatSlice = Floats16;

template <class T>
HWY_INLINE T& SliceOf(T& whole, size_t /*n*/) {
  return whole;
}
template <class Function>
HWY_INLINE IntSlice EachInt(Function function) {
  IntSlice out;
  for (int i = 0; i < 16; ++i) out.v[i] = function(i);
  return out;
}

HWY_INLINE ByteSlice LoadBytes(const void* p) { return LoadAs<ByteSlice>(p); }
HWY_INLINE void StoreSlice(ByteSlice a, uint8_t* p) { std::memcpy(p, a.v, sizeof(a.v)); }
HWY_INLINE IntSlice LoadInts(const int32_t* p) { return LoadAs<IntSlice>(p); }
HWY_INLINE FloatSlice LoadSlice(const float* p) { return LoadAs<FloatSlice>(p); }
HWY_INLINE void StoreSlice(FloatSlice a, float* p) { std::memcpy(p, a.v, sizeof(a.v)); }
HWY_INLINE IntSlice NoInts() {
  return EachInt([](int) { return 0; });
}
HWY_INLINE FloatSlice NoFloats() { return SetFloats(0.0f); }
HWY_INLINE IntSlice Add(IntSlice a, IntSlice b) {
  return EachInt([&](int i) { return a.v[i] + b.v[i]; });
}
HWY_INLINE IntSlice Times(IntSlice a, int factor) {
  return EachInt([&](int i) { return a.v[i] * factor; });
}
template <int kWord>
HWY_INLINE ByteSlice BroadcastWord(ByteSlice a) {
  return EachByte([&](int i) { return a.v[i / 16 * 16 + 4 * kWord + i % 4]; });
}
template <int kLane>
HWY_INLINE FloatSlice BroadcastLane(FloatSlice a) {
  return EachFloat([&](int i) { return a.v[i / 4 * 4 + kLane]; });
}
template <int kLane>
HWY_INLINE IntSlice BroadcastLane(IntSlice a) {
  return EachInt([&](int i) { return a.v[i / 4 * 4 + kLane]; });
}
HWY_INLINE void Transpose(ByteSlice (&rows)[4]) {
  ByteSlice out[4];
  for (int k = 0; k < 4; ++k) {
    out[k] = EachByte([&](int i) { return rows[i / 4 % 4].v[i / 16 * 16 + 4 * k + i % 4]; });
  }
  std::memcpy(rows, out, sizeof(out));
}
HWY_INLINE void Transpose(FloatSlice (&rows)[4]) {
  FloatSlice out[4];
  for (int k = 0; k < 4; ++k) {
    out[k] = EachFloat([&](int i) { return rows[i % 4].v[i / 4 * 4 + k]; });
  }
  std::memcpy(rows, out, sizeof(out));
}
HWY_INLINE IntSlice SumsOfParts(IntSlice a, IntSlice b) {
  return EachInt([&](int i) {
    const int32_t* part = (i % 2 == 0 ? a : b).v + i / 4 * 4;
    return part[0] + part[1] + part[2] + part[3];
  });
}
HWY_INLINE void SplitHalves(Bytes64 low, Bytes64 high, Bytes64& first, Bytes64& second) {
  const auto half = [&](int which) {
    return EachByte(
        [&](int i) { return (i < 32 ? low : high).v[i % 32 / 16 * 32 + 16 * which + i % 16]; });
  };
  first = half(0);
  second = half(1);
}
template <int kHalf>
HWY_INLINE Floats16 InGroupOrder(Floats16 a) {
  return EachFloat([&](int i) { return a.v[8 * (i % 2) + i / 4 * 2 + kHalf]; });
}
template <bool kDotBytes, int kMostCode>
HWY_INLINE IntSlice AddDot(IntSlice sums, ByteSlice codes, ByteSlice x) {
  return EachInt([&](int i) {
    int sum = sums.v[i];
    for (int k = 4 * i; k < 4 * i + 4; ++k) sum += codes.v[k] * static_cast<int8_t>(x.v[k]);
    return sum;
  });
}

#else  // HWY_TARGET == HWY_SCALAR

constexpr size_t kSlices = kVectors;
constexpr size_t kSliceBytes = kByteLanes;
using ByteSlice = hn::Vec<D8>;
using IntSlice = hn::Vec<DI32>;
using FloatSlice = hn::Vec<DF>;

HWY_INLINE ByteSlice& SliceOf(Bytes64& whole, size_t n) { return whole.v[n]; }
HWY_INLINE FloatSlice& SliceOf(Floats16& whole, size_t n) { return whole.v[n]; }

HWY_INLINE ByteSlice LoadBytes(const void* p) {
  return hn::Load(D8(), static_cast<const uint8_t*>(p));
}
HWY_INLINE void StoreSlice(ByteSlice a, uint8_t* p) { hn::Store(a, D8(), p); }
HWY_INLINE IntSlice LoadInts(const int32_t* p) { return hn::Load(DI32(), p); }
HWY_INLINE FloatSlice LoadSlice(const float* p) { return hn::Load(DF(), p); }
HWY_INLINE void StoreSlice(FloatSlice a, float* p) { hn::Store(a, DF(), p); }
HWY_INLINE IntSlice NoInts() { return hn::Zero(DI32()); }
HWY_INLINE FloatSlice NoFloats() { return hn::Zero(DF()); }
HWY_INLINE IntSlice Add(IntSlice a, IntSlice b) { return hn::Add(a, b); }
HWY_INLINE FloatSlice Add(FloatSlice a, FloatSlice b) { return hn::Add(a, b); }
HWY_INLINE FloatSlice Mul(FloatSlice a, FloatSlice b) { return hn::Mul(a, b); }
HWY_INLINE IntSlice Times(IntSlice a, int factor) { return hn::Mul(a, hn::Set(DI32(), factor)); }
HWY_INLINE FloatSlice ToFloats(IntSlice a) { return hn::ConvertTo(DF(), a); }

// Word kWord of each part as all four words of it.
template <int kWord>
HWY_INLINE ByteSlice BroadcastWord(ByteSlice a) {
  return hn::BitCast(D8(), hn::Broadcast<kWord>(hn::BitCast(DI32(), a)));
}
template <int kLane>
HWY_INLINE FloatSlice BroadcastLane(FloatSlice a) {
  return hn::Broadcast<kLane>(a);
}
template <int kLane>
HWY_INLINE IntSlice BroadcastLane(IntSlice a) {
  return hn::Broadcast<kLane>(a);
}

// Word k of each part of row r becomes word r of the part of row k.
template <class D>
HWY_INLINE void TransposeWords(D d, hn::Vec<D> (&rows)[4]) {
  const hn::Repartition<uint64_t, D> d64;
  const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d, rows[0], rows[1]));
  const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d, rows[2], rows[3]));
  const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d, rows[0], rows[1]));
  const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d, rows[2], rows[3]));
  rows[0] = hn::BitCast(d, hn::InterleaveLower(d64, low01, low23));
  rows[1] = hn::BitCast(d, hn::InterleaveUpper(d64, low01, low23));
  rows[2] = hn::BitCast(d, hn::InterleaveLower(d64, high01, high23));
  rows[3] = hn::BitCast(d, hn::InterleaveUpper(d64, high01, high23));
}
HWY_INLINE void Transpose(FloatSlice (&rows)[4]) { TransposeWords(DF(), rows); }
HWY_INLINE void Transpose(ByteSlice (&rows)[4]) {
  IntSlice words[4];
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) words[r] = hn::BitCast(DI32(), rows[r]);
  TransposeWords(DI32(), words);
#pragma GCC unroll 4
  for (int r = 0; r < 4; ++r) rows[r] = hn::BitCast(D8(), words[r]);
}

// The sums of each part's four numbers: of `a` in even lanes of the part, of `b` in odd ones.
HWY_INLINE IntSlice SumsOfParts(IntSlice a, IntSlice b) {
  const DI32 d;
  const auto pairs = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  return hn::Add(pairs, hn::Shuffle1032(pairs));
}

// 64 codes and the 64 behind them, in order, as the first and the second 16 of each of four groups.
HWY_INLINE void SplitHalves(Bytes64 low, Bytes64 high, Bytes64& first, Bytes64& second) {
#if HWY_TARGET == HWY_AVX3
  const __m512i a = low.v[0].raw;
  const __m512i b = high.v[0].raw;
  first = {{hn::Vec512<uint8_t>{_mm512_shuffle_i32x4(a, b, 0x88)}}};
  second = {{hn::Vec512<uint8_t>{_mm512_shuffle_i32x4(a, b, 0xdd)}}};
#elif HWY_TARGET == HWY_AVX2
  first = {{hn::ConcatLowerLower(D8(), low.v[1], low.v[0]),
            hn::ConcatLowerLower(D8(), high.v[1], high.v[0])}};
  second = {{hn::ConcatUpperUpper(D8(), low.v[1], low.v[0]),
             hn::ConcatUpperUpper(D8(), high.v[1], high.v[0])}};
#else
  static_assert(kVectors == 4);
  first = {{low.v[0], low.v[2], high.v[0], high.v[2]}};
  second = {{low.v[1], low.v[3], high.v[1], high.v[3]}};
#endif
}

// Numbers of the 16 halves of groups, in order, as those of one half in the order of
// PackedPiece::scales.
template <int kHalf>
HWY_INLINE Floats16 InGroupOrder(Floats16 a) {
#if HWY_TARGET == HWY_AVX3
  constexpr int h = kHalf;
  const __m512i lanes = _mm512_setr_epi32(h, 8 + h, h, 8 + h, 2 + h, 10 + h, 2 + h, 10 + h, 4 + h,
                                          12 + h, 4 + h, 12 + h, 6 + h, 14 + h, 6 + h, 14 + h);
  return {{hn::Vec512<float>{_mm512_permutexvar_ps(lanes, a.v[0].raw)}}};
#elif HWY_TARGET == HWY_AVX2
  constexpr int h = kHalf;
  const auto of_two_groups = [&](__m256i lanes) HWY_ATTR {
    return hn::Vec256<float>{_mm256_blend_ps(_mm256_permutevar8x32_ps(a.v[0].raw, lanes),
                                             _mm256_permutevar8x32_ps(a.v[1].raw, lanes), 0xaa)};
  };
  return {
      {of_two_groups(_mm256_setr_epi32(h, h, h, h, 2 + h, 2 + h, 2 + h, 2 + h)),
       of_two_groups(_mm256_setr_epi32(4 + h, 4 + h, 4 + h, 4 + h, 6 + h, 6 + h, 6 + h, 6 + h))}};
#else
  static_assert(kVectors == 4);
  const DF d;
  return {
      {hn::InterleaveLower(d, hn::Broadcast<kHalf>(a.v[0]), hn::Broadcast<kHalf>(a.v[2])),
       hn::InterleaveLower(d, hn::Broadcast<2 + kHalf>(a.v[0]), hn::Broadcast<2 + kHalf>(a.v[2])),
       hn::InterleaveLower(d, hn::Broadcast<kHalf>(a.v[1]), hn::Broadcast<kHalf>(a.v[3])),
       hn::InterleaveLower(d, hn::Broadcast<2 + kHalf>(a.v[1]), hn::Broadcast<2 + kHalf>(a.v[3]))}};
#endif
}

// Sums of four products of bytes each, in 32 bits, by several instructions. Codes are at most 241.
HWY_INLINE IntSlice WidenedDot(ByteSlice codes, ByteSlice x) {
  const hn::Repartition<int16_t, D8> d16;
  const auto codes16 = hn::BitCast(D16(), codes);
  const auto x16 = hn::BitCast(d16, x);
  const auto even_codes = hn::BitCast(d16, hn::And(codes16, hn::Set(D16(), uint16_t{255})));
  const auto odd_codes = hn::BitCast(d16, hn::ShiftRight<8>(codes16));
  const auto even_x = hn::ShiftRight<8>(hn::ShiftLeft<8>(x16));
  const auto odd_x = hn::ShiftRight<8>(x16);
  return hn::Add(pmkvq::HWY_NAMESPACE::MulPairs(even_codes, even_x),
                 pmkvq::HWY_NAMESPACE::MulPairs(odd_codes, odd_x));
}

#endif  // HWY_TARGET == HWY_SCALAR

// Processors with an instruction for sums of two products of bytes in 16 bits, which add several of
// them where codes are small.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4
using PairSlice = hn::Vec<hn::Repartition<int16_t, D8> >;

HWY_INLINE PairSlice NoPairs() { return hn::Zero(hn::Repartition<int16_t, D8>()); }
HWY_INLINE PairSlice AddPairs(PairSlice sums, ByteSlice codes, ByteSlice x) {
#if HWY_TARGET == HWY_AVX3
  return hn::Add(sums, PairSlice{_mm512_maddubs_epi16(codes.raw, x.raw)});
#elif HWY_TARGET == HWY_AVX2
  return hn::Add(sums, PairSlice{_mm256_maddubs_epi16(codes.raw, x.raw)});
#else
  return hn::Add(sums, PairSlice{_mm_maddubs_epi16(codes.raw, x.raw)});
#endif
}
HWY_INLINE IntSlice AddWidened(IntSlice sums, PairSlice pairs) {
  const hn::Repartition<int16_t, D8> d16;
  return hn::Add(sums, pmkvq::HWY_NAMESPACE::MulPairs(pairs, hn::Set(d16, int16_t{1})));
}
#endif

// How many products of codes up to kMostCode fit into each number of pairs; 0: not one.
template <int kMostCode>
constexpr int kPairsThatFit = 32767 / (2 * 127 * kMostCode);

#if HWY_TARGET != HWY_SCALAR
// sums + (sums of four products of bytes each): of codes up to kMostCode, and of x. kDotBytes: the
// processor has an instruction for it (VNNI).
template <bool kDotBytes, int kMostCode>
HWY_INLINE IntSlice AddDot(IntSlice sums, ByteSlice codes, ByteSlice x) {
#if HWY_TARGET == HWY_AVX3
  if constexpr (kDotBytes) {
    // By name: Highway's target has no intrinsic for it.
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sums.raw) : "v"(codes.raw), "v"(x.raw));
    return sums;
  }
#elif HWY_TARGET == HWY_AVX2
  if constexpr (kDotBytes) {
    __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sums.raw) : "x"(codes.raw), "x"(x.raw));
    return sums;
  }
#endif
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4
  if constexpr (kPairsThatFit < kMostCode >> 0) {
    return AddWidened(sums, AddPairs(NoPairs(), codes, x));
  }
#endif
  return hn::Add(sums, WidenedDot(codes, x));
}
#endif  // HWY_TARGET != HWY_SCALAR

// The same of two times as many bytes.
template <bool kDotBytes, int kMostCode>
HWY_INLINE IntSlice TwoDots(ByteSlice codes, ByteSlice x, ByteSlice more_codes, ByteSlice more_x) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_SSE4
  if constexpr (!kDotBytes && kPairsThatFit<kMostCode> >= 2) {
    return AddWidened(NoInts(), AddPairs(AddPairs(NoPairs(), codes, x), more_codes, more_x));
  }
#endif
  return AddDot<kDotBytes, kMostCode>(AddDot<kDotBytes, kMostCode>(NoInts(), codes, x), more_codes,
                                      more_x);
}

}  // namespace
}  // namespace pmkvq::internal::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PMKVQ_KERNELS_GEMM_BLOCK_ORDER_INL_H_
