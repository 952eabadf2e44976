// The formulas of docs/formats.md, one weight at a time: weight `i` of a block, rounded as gguf-py
// does it.
#include <cmath>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/base/float16.h"
#include "pmkvq/kernels/gemm/gemm.h"

namespace pmkvq::ref {
namespace {

int ByteAt(const std::byte* block, int64_t at) { return std::to_integer<int>(block[at]); }
int SignedAt(const std::byte* block, int64_t at) {
  return static_cast<int8_t>(std::to_integer<uint8_t>(block[at]));
}
int Bits(int value, int64_t shift, int mask) { return (value >> shift) & mask; }

template <class T>
T Load(const std::byte* place) {
  T value;
  std::memcpy(&value, place, sizeof(value));
  return value;
}
float Half(const std::byte* block, int64_t at) { return ToFloat(Load<F16>(block + at)); }

// Low nibbles of 16 bytes are the first 16 values, high ones the last.
int Nibble(const std::byte* codes, int64_t i) {
  return Bits(ByteAt(codes, i % 16), i < 16 ? 0 : 4, 15);
}

constexpr float kNonLinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
// Twice the values of E2M1; its negative zero is 0.
constexpr float kE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

float F32At(const std::byte* b, int64_t) { return Load<float>(b); }
float F16At(const std::byte* b, int64_t) { return Half(b, 0); }
float BF16At(const std::byte* b, int64_t) { return ToFloat(Load<BF16>(b)); }

float Q4_0At(const std::byte* b, int64_t i) {
  return Half(b, 0) * static_cast<float>(Nibble(b + 2, i) - 8);
}

float Q4_1At(const std::byte* b, int64_t i) {
  return Half(b, 0) * static_cast<float>(Nibble(b + 4, i)) + Half(b, 2);
}

float Q5_0At(const std::byte* b, int64_t i) {
  const int high = static_cast<int>(Load<uint32_t>(b + 2) >> i & 1u);
  return Half(b, 0) * static_cast<float>(Nibble(b + 6, i) + 16 * high - 16);
}

float Q5_1At(const std::byte* b, int64_t i) {
  const int high = static_cast<int>(Load<uint32_t>(b + 4) >> i & 1u);
  return Half(b, 0) * static_cast<float>(Nibble(b + 8, i) + 16 * high) + Half(b, 2);
}

float Q8At(const std::byte* b, int64_t i) {
  return ToFloat(Load<BF16>(b + 32)) * static_cast<float>(SignedAt(b, i));
}

float Q8_0At(const std::byte* b, int64_t i) {
  return Half(b, 0) * static_cast<float>(SignedAt(b + 2, i));
}

// 2 bits of value i.
int TwoBits(const std::byte* codes, int64_t i) {
  return Bits(ByteAt(codes, 32 * (i / 128) + i % 32), 2 * (i % 128 / 32), 3);
}

float Q2_KAt(const std::byte* b, int64_t i) {
  const int scale = ByteAt(b, i / 16);
  const float d = Half(b, 80) * static_cast<float>(scale & 15);
  const float m = Half(b, 82) * static_cast<float>(scale >> 4);
  return d * static_cast<float>(TwoBits(b + 16, i)) - m;
}

float Q3_KAt(const std::byte* b, int64_t i) {
  const std::byte* scales = b + 96;
  const int64_t g = i / 16;
  const int low = Bits(ByteAt(scales, g % 8), g / 8 * 4, 15);
  const int high = Bits(ByteAt(scales, 8 + g % 4), 2 * (g / 4), 3);
  const float d = Half(b, 108) * static_cast<float>(low + 16 * high - 32);
  const int mask = Bits(ByteAt(b, i % 32), i / 32, 1);
  return d * static_cast<float>(TwoBits(b + 32, i) - (mask != 0 ? 0 : 4));
}

// Scale and minimum of group j of Q4_K and Q5_K, 6 bits each.
int Scale6(const std::byte* s, int64_t j) {
  return j < 4 ? ByteAt(s, j) & 63 : (ByteAt(s, j + 4) & 15) + 16 * (ByteAt(s, j - 4) >> 6);
}
int Min6(const std::byte* s, int64_t j) {
  return j < 4 ? ByteAt(s, j + 4) & 63 : (ByteAt(s, j + 4) >> 4) + 16 * (ByteAt(s, j) >> 6);
}

float FromGroupOf32(const std::byte* b, int64_t j, int code) {
  const float d = Half(b, 0) * static_cast<float>(Scale6(b + 4, j));
  const float m = Half(b, 2) * static_cast<float>(Min6(b + 4, j));
  return d * static_cast<float>(code) - m;
}

float Q4_KAt(const std::byte* b, int64_t i) {
  const int64_t j = i / 32;
  return FromGroupOf32(b, j, Bits(ByteAt(b + 16, 32 * (i / 64) + i % 32), 4 * (j % 2), 15));
}

float Q5_KAt(const std::byte* b, int64_t i) {
  const int64_t j = i / 32;
  const int low = Bits(ByteAt(b + 48, 32 * (i / 64) + i % 32), 4 * (j % 2), 15);
  return FromGroupOf32(b, j, low + 16 * Bits(ByteAt(b + 16, i % 32), j, 1));
}

float Q6_KAt(const std::byte* b, int64_t i) {
  const int64_t n = i / 128;
  const int64_t r = i % 128;
  const int low = Bits(ByteAt(b, 64 * n + r % 64), 4 * (r / 64), 15);
  const int high = Bits(ByteAt(b + 128, 32 * n + r % 32), 2 * (r / 32), 3);
  const float d = Half(b, 208) * static_cast<float>(SignedAt(b + 192, i / 16));
  return d * static_cast<float>(low + 16 * high - 32);
}

float IQ4_NLAt(const std::byte* b, int64_t i) { return Half(b, 0) * kNonLinear[Nibble(b + 2, i)]; }

float IQ4_XSAt(const std::byte* b, int64_t i) {
  const int64_t j = i / 32;
  const int low = Bits(ByteAt(b + 4, j / 2), 4 * (j % 2), 15);
  const int high = Bits(Load<uint16_t>(b + 2), 2 * j, 3);
  const float d = Half(b, 0) * static_cast<float>(low + 16 * high - 32);
  return d * kNonLinear[Nibble(b + 8 + 16 * j, i % 32)];
}

float MXFP4At(const std::byte* b, int64_t i) {
  return std::ldexp(1.0f, ByteAt(b, 0) - 128) * kE2M1[Nibble(b + 1, i)];
}

}  // namespace

double WeightAt(const WeightView& weight, int64_t row, int64_t col) {
  constexpr float (*kFormats[])(const std::byte*, int64_t) = {
#define PMKVQ_ROW(id, name, block_values, block_bytes) id##At,
      PMKVQ_WEIGHT_FORMATS(PMKVQ_ROW)
#undef PMKVQ_ROW
  };
  PMKVQ_CHECK(row >= 0 && row < weight.rows && col >= 0 && col < weight.cols);
  const int64_t block_values = LayoutOf(weight.format).block_values;
  const std::byte* begin =
      weight.data + weight.StoredRow(row) * RowBytes(weight.format, weight.cols);
  const std::byte* block = begin + BytesBefore(weight.format, col - col % block_values);
  return static_cast<double>(
      kFormats[static_cast<size_t>(weight.format)](block, col % block_values));
}

}  // namespace pmkvq::ref
