#include "pmkvq/io/gguf/block_decode.h"

#include <bit>
#include <cstring>

#include "pmkvq/base/check.h"
#include "pmkvq/base/float16.h"

namespace pmkvq {
namespace {

// Every function decodes one block. Loops run over values that lie in a row and share a scale,
// which the compiler turns into vectors.

const uint8_t* Bytes(const std::byte* block) { return reinterpret_cast<const uint8_t*>(block); }

template <class T>
T Load(const void* place) {
  T value;
  std::memcpy(&value, place, sizeof(value));
  return value;
}
float Half(const std::byte* place) { return ToFloat(Load<F16>(place)); }

// out[i] = scale * (codes of 4 bits + offset) of 16 bytes, low nibbles first.
void Nibbles(const uint8_t* codes, float scale, int offset, float* out) {
  for (int i = 0; i < 16; ++i) out[i] = scale * static_cast<float>((codes[i] & 15) + offset);
  for (int i = 0; i < 16; ++i) out[16 + i] = scale * static_cast<float>((codes[i] >> 4) + offset);
}

void NibblesOfTable(const uint8_t* codes, float scale, const float (&table)[16], float* out) {
  float scaled[16];
  for (int i = 0; i < 16; ++i) scaled[i] = scale * table[i];
  for (int i = 0; i < 16; ++i) {
    out[i] = scaled[codes[i] & 15];
    out[16 + i] = scaled[codes[i] >> 4];
  }
}

// Codes of 5 bits: nibbles and a word of high bits.
void FiveBits(const uint8_t* codes, uint32_t high, int (&out)[32]) {
  for (uint32_t i = 0; i < 16; ++i) {
    out[i] = static_cast<int>((codes[i] & 15u) | (high >> i & 1u) << 4);
    out[16 + i] = static_cast<int>((codes[i] >> 4) | (high >> (16 + i) & 1u) << 4);
  }
}

constexpr float kNonLinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
// Twice the values of E2M1; its negative zero is 0.
constexpr float kE2M1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

void Decode_F32(const std::byte* b, float* out) { *out = Load<float>(b); }
void Decode_F16(const std::byte* b, float* out) { *out = Half(b); }
void Decode_BF16(const std::byte* b, float* out) { *out = ToFloat(Load<BF16>(b)); }

void Decode_Q4_0(const std::byte* b, float* out) { Nibbles(Bytes(b + 2), Half(b), -8, out); }

void Decode_Q4_1(const std::byte* b, float* out) {
  Nibbles(Bytes(b + 4), Half(b), 0, out);
  const float minimum = Half(b + 2);
  for (int i = 0; i < 32; ++i) out[i] += minimum;
}

void Decode_Q5_0(const std::byte* b, float* out) {
  int codes[32];
  FiveBits(Bytes(b + 6), Load<uint32_t>(b + 2), codes);
  const float scale = Half(b);
  for (int i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(codes[i] - 16);
}

void Decode_Q5_1(const std::byte* b, float* out) {
  int codes[32];
  FiveBits(Bytes(b + 8), Load<uint32_t>(b + 4), codes);
  const float scale = Half(b);
  const float minimum = Half(b + 2);
  for (int i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(codes[i]) + minimum;
}

void Decode_Q8_0(const std::byte* b, float* out) {
  const float scale = Half(b);
  const auto* codes = reinterpret_cast<const int8_t*>(b + 2);
  for (int i = 0; i < 32; ++i) out[i] = scale * static_cast<float>(codes[i]);
}

void Decode_Q2_K(const std::byte* b, float* out) {
  const uint8_t* scales = Bytes(b);
  const float d = Half(b + 80);
  const float dmin = Half(b + 82);
  for (int group = 0; group < 16; ++group, out += 16) {
    const uint8_t* codes = Bytes(b + 16) + 32 * (group / 8) + 16 * (group % 2);
    const int shift = group % 8 / 2 * 2;
    const float scale = d * static_cast<float>(scales[group] & 15);
    const float minimum = dmin * static_cast<float>(scales[group] >> 4);
    for (int i = 0; i < 16; ++i) {
      out[i] = scale * static_cast<float>(codes[i] >> shift & 3) - minimum;
    }
  }
}

void Decode_Q3_K(const std::byte* b, float* out) {
  const uint8_t* scales = Bytes(b + 96);
  const float d = Half(b + 108);
  for (int group = 0; group < 16; ++group, out += 16) {
    const uint8_t* mask = Bytes(b) + 16 * (group % 2);
    const uint8_t* codes = Bytes(b + 32) + 32 * (group / 8) + 16 * (group % 2);
    const int shift = group % 8 / 2 * 2;
    const int bit = group / 2;
    const int low = scales[group % 8] >> (group / 8 * 4) & 15;
    const int high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
    const float scale = d * static_cast<float>((low | high << 4) - 32);
    for (int i = 0; i < 16; ++i) {
      const int code = (codes[i] >> shift & 3) | (mask[i] >> bit & 1) << 2;
      out[i] = scale * static_cast<float>(code - 4);
    }
  }
}

// The 8 scales and minima of Q4_K and Q5_K: 6 bits each in 12 bytes.
struct GroupScales {
  float scale[8];
  float minimum[8];

  explicit GroupScales(const std::byte* b) {
    const float d = Half(b);
    const float dmin = Half(b + 2);
    const uint8_t* s = Bytes(b + 4);
    for (int j = 0; j < 4; ++j) {
      scale[j] = d * static_cast<float>(s[j] & 63);
      minimum[j] = dmin * static_cast<float>(s[j + 4] & 63);
      scale[j + 4] = d * static_cast<float>((s[j + 8] & 15) | s[j] >> 6 << 4);
      minimum[j + 4] = dmin * static_cast<float>(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
    }
  }
};

void Decode_Q4_K(const std::byte* b, float* out) {
  const GroupScales groups(b);
  for (int j = 0; j < 8; ++j, out += 32) {
    const uint8_t* codes = Bytes(b + 16) + 32 * (j / 2);
    const int shift = 4 * (j % 2);
    const float scale = groups.scale[j];
    const float minimum = groups.minimum[j];
    for (int i = 0; i < 32; ++i) {
      out[i] = scale * static_cast<float>(codes[i] >> shift & 15) - minimum;
    }
  }
}

void Decode_Q5_K(const std::byte* b, float* out) {
  const GroupScales groups(b);
  const uint8_t* high = Bytes(b + 16);
  for (int j = 0; j < 8; ++j, out += 32) {
    const uint8_t* codes = Bytes(b + 48) + 32 * (j / 2);
    const int shift = 4 * (j % 2);
    const float scale = groups.scale[j];
    const float minimum = groups.minimum[j];
    for (int i = 0; i < 32; ++i) {
      const int code = (codes[i] >> shift & 15) | (high[i] >> j & 1) << 4;
      out[i] = scale * static_cast<float>(code) - minimum;
    }
  }
}

void Decode_Q6_K(const std::byte* b, float* out) {
  const auto* scales = reinterpret_cast<const int8_t*>(b + 192);
  const float d = Half(b + 208);
  for (int group = 0; group < 16; ++group, out += 16) {
    const int part = group % 8;  // Of the half.
    const uint8_t* codes = Bytes(b) + 64 * (group / 8) + 16 * (part % 4);
    const uint8_t* high = Bytes(b + 128) + 32 * (group / 8) + 16 * (part % 2);
    const int shift = part / 4 * 4;
    const int high_shift = part / 2 * 2;
    const float scale = d * static_cast<float>(scales[group]);
    for (int i = 0; i < 16; ++i) {
      const int code = (codes[i] >> shift & 15) | (high[i] >> high_shift & 3) << 4;
      out[i] = scale * static_cast<float>(code - 32);
    }
  }
}

void Decode_IQ4_NL(const std::byte* b, float* out) {
  NibblesOfTable(Bytes(b + 2), Half(b), kNonLinear, out);
}

void Decode_IQ4_XS(const std::byte* b, float* out) {
  const float d = Half(b);
  const auto high = Load<uint16_t>(b + 2);
  const uint8_t* low = Bytes(b + 4);
  for (int j = 0; j < 8; ++j, out += 32) {
    const int scale = (low[j / 2] >> (4 * (j % 2)) & 15) | (high >> (2 * j) & 3) << 4;
    NibblesOfTable(Bytes(b + 8) + 16 * j, d * static_cast<float>(scale - 32), kNonLinear, out);
  }
}

void Decode_MXFP4(const std::byte* b, float* out) {
  const uint32_t exponent = Bytes(b)[0];
  // 2^(e - 128); the two lowest are subnormal.
  const uint32_t bits = exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23;
  NibblesOfTable(Bytes(b + 1), std::bit_cast<float>(bits), kE2M1, out);
}

template <int64_t kValues, int64_t kBytes, void (*kDecode)(const std::byte*, float*)>
void Run(const std::byte* data, int64_t num_blocks, float* out) {
  for (int64_t i = 0; i < num_blocks; ++i) kDecode(data + i * kBytes, out + i * kValues);
}

}  // namespace

void DecodeBlocks(GgufTensorType type, const std::byte* data, int64_t num_values, float* out) {
  constexpr void (*kDecoders[])(const std::byte*, int64_t, float*) = {
#define PMKVQ_ROW(id, name, code, block_values, block_bytes) \
  Run<block_values, block_bytes, Decode_##id>,
      PMKVQ_GGUF_TENSOR_TYPES(PMKVQ_ROW)
#undef PMKVQ_ROW
  };
  const GgufTensorLayout& layout = LayoutOf(type);
  PMKVQ_CHECK(num_values >= 0 && num_values % layout.block_values == 0);
  kDecoders[static_cast<size_t>(type)](data, num_values / layout.block_values, out);
}

}  // namespace pmkvq
