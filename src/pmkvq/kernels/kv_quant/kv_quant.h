// Group quantisation of keys and values, and halving of packed codes.
//
// A group is G values of one token and one head (G = min(128, head_dim), a multiple of 8), or, of
// keys per channel, the G = 128 tokens of one channel. At width b in {8, 4, 2} a group is G codes
// of b bits plus `min` and `range`:
//
//   step = range / (2^b - 1)              value = code * step + min        (eq. 1 and 2)
//   code = clamp(round_half_even((x - min) / step), 0, 2^b - 1)
//
// (min, range) do not depend on b, so halving a width never rewrites them. Both are rounded to the
// stored type first (min down, then max - stored min up), and codes are
// computed against the stored values by true division. A constant group has range 0, codes 0.
// Both saturate at the largest finite value of the stored type: a group that spans more than 65504
// with F16 metadata keeps its low end, and values above min + 65504 take the largest code. Values
// must be finite.
//
// Halving 2b -> b is the equivalent right shift of the paper (eq. 3),
//   q' = ((2^2b - 2^b + 1) * (q + 2^(b-1))) >> 3b  =  round(q / (2^b + 1)),
// so 16 -> 8 -> 4 -> 2 equals rounding straight to 2 bits, but for values within a float's rounding
// of a tie between two codes, which may take the other one (1 of 1e8 normal ones).
//
// Packed layout of one group (docs/formats.md): G * b / 8 bytes in 8 / b planes. Byte j holds the
// codes of dims j, j + G*b/8, j + 2*G*b/8, ... from the lowest bits up. At 8 bits byte j is dim j.
//
// Threads: all functions are pure on their arguments. Errors: caller bugs only.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pmkvq/tensor/dtype.h"

namespace pmkvq {

inline constexpr int64_t kMaxGroup = 128;

constexpr int64_t PackedGroupBytes(int64_t group, int bits) { return group * bits / 8; }

// Where the groups of a page lie: group r has codes at codes + r * PackedGroupBytes(group, bits),
// min and range at mins[r], ranges[r], both of type `metadata` (kF16, kBF16 or kF32).
struct GroupFormat {
  int64_t group = 128;  // G, values per group
  int bits = 8;         // 8, 4 or 2
  DType metadata = DType::kF16;
};

// Quantises `num_groups` groups, x [num_groups, G].
void QuantizeGroups(const GroupFormat& format, const float* x, int64_t num_groups, uint8_t* codes,
                    void* mins, void* ranges);

// The same for values that are stored as `format.metadata`, x [num_groups, G] of that type: codes
// and bounds are those of QuantizeGroups on these values as floats. The first halving of a page.
void QuantizeStoredGroups(const GroupFormat& format, const void* x, int64_t num_groups,
                          uint8_t* codes, void* mins, void* ranges);

// The values of packed groups, out [num_groups, G].
void DequantizeGroups(const GroupFormat& format, const uint8_t* codes, const void* mins,
                      const void* ranges, int64_t num_groups, float* out);

// Halves packed codes of `from_bits` (8 or 4) to from_bits / 2. `out` has half the bytes of
// `codes` and may be the same address (in place) but must not otherwise overlap.
void HalvePackedCodes(int64_t group, int from_bits, const uint8_t* codes, int64_t num_groups,
                      uint8_t* out);

// 16-bit integer codes to 8 bits, the first halving of the paper's integer cache. Our cache keeps
// plain floats at 16 bits; this exists for the reference's goldens.
void HalveCodes16To8(const uint16_t* codes, int64_t count, uint8_t* out);

// Q_b of calibration (eq. 1): each group quantised at `bits` (16, 8, 4, 2) with float (min, step)
// and given back as floats. At 16 the values come back rounded to bfloat16, as in the reference
// (nearly all of the error is that rounding). `reference_scale_clamp`: steps outside of
// [1e-5, 1e5] are moved to its ends, as the reference does.
// out [num_groups, G] may equal x.
struct FakeQuantOptions {
  int64_t group = 128;
  int bits = 4;
  bool reference_scale_clamp = false;
};
void FakeQuantize(const FakeQuantOptions& options, const float* x, int64_t num_groups, float* out);

// Unpacks to one byte per code, in order of dims: codes [num_groups, G].
void UnpackCodes(int64_t group, int bits, const uint8_t* packed, int64_t num_groups,
                 uint8_t* codes);
// The inverse of UnpackCodes.
void PackCodes(int64_t group, int bits, const uint8_t* codes, int64_t num_groups, uint8_t* packed);

// Scalar oracles with the same contracts, in kv_quant_ref.cc.
namespace ref {
void QuantizeGroups(const GroupFormat& format, const float* x, int64_t num_groups, uint8_t* codes,
                    void* mins, void* ranges);
void DequantizeGroups(const GroupFormat& format, const uint8_t* codes, const void* mins,
                      const void* ranges, int64_t num_groups, float* out);
void HalvePackedCodes(int64_t group, int from_bits, const uint8_t* codes, int64_t num_groups,
                      uint8_t* out);
}  // namespace ref

}  // namespace pmkvq
