// Scalar oracle of group quantisation: the definition, one value at a time.
#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq {
namespace {

template <class T>
void QuantizeGroup(const GroupFormat& format, const float* x, uint8_t* packed, T* min, T* range) {
  const auto [lowest, highest] = std::minmax_element(x, x + format.group);
  const internal::StoredRange<T> stored = internal::RoundBounds<T>(*lowest, *highest);
  *min = stored.min;
  *range = stored.range;
  const float max_code = internal::MaxCode(format.bits);
  const float step = ToFloat(stored.range) / max_code;
  uint8_t codes[kMaxGroup] = {};
  for (int64_t i = 0; i < format.group && step > 0.0f; ++i) {
    codes[i] = static_cast<uint8_t>(internal::CodeOf(x[i], ToFloat(stored.min), step, max_code));
  }
  PackCodes(format.group, format.bits, codes, 1, packed);
}

}  // namespace

void UnpackCodes(int64_t group, int bits, const uint8_t* packed, int64_t num_groups,
                 uint8_t* codes) {
  internal::CheckPackable(group, bits);
  for (int64_t r = 0; r < num_groups; ++r) {
    for (int64_t i = 0; i < group; ++i) {
      codes[r * group + i] =
          internal::PackedCode(packed + r * PackedGroupBytes(group, bits), group, bits, i);
    }
  }
}

void PackCodes(int64_t group, int bits, const uint8_t* codes, int64_t num_groups, uint8_t* packed) {
  internal::CheckPackable(group, bits);
  const int64_t plane_bytes = PackedGroupBytes(group, bits);
  for (int64_t r = 0; r < num_groups; ++r) {
    for (int64_t j = 0; j < plane_bytes; ++j) {
      uint32_t byte = 0;
      for (int plane = 0; plane < 8 / bits; ++plane) {
        const uint32_t code = codes[r * group + j + plane * plane_bytes];
        byte |= code << (plane * bits);
      }
      packed[r * plane_bytes + j] = static_cast<uint8_t>(byte);
    }
  }
}

void HalveCodes16To8(const uint16_t* codes, int64_t count, uint8_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    out[i] = static_cast<uint8_t>(internal::HalveCode(codes[i], 8));
  }
}

namespace ref {

void QuantizeGroups(const GroupFormat& format, const float* x, int64_t num_groups, uint8_t* codes,
                    void* mins, void* ranges) {
  internal::CheckPackable(format.group, format.bits);
  internal::VisitFloatType(format.metadata, [&]<class T>(T) {
    for (int64_t r = 0; r < num_groups; ++r) {
      QuantizeGroup(format, x + r * format.group,
                    codes + r * PackedGroupBytes(format.group, format.bits),
                    static_cast<T*>(mins) + r, static_cast<T*>(ranges) + r);
    }
  });
}

void DequantizeGroups(const GroupFormat& format, const uint8_t* codes, const void* mins,
                      const void* ranges, int64_t num_groups, float* out) {
  internal::CheckPackable(format.group, format.bits);
  internal::VisitFloatType(format.metadata, [&]<class T>(T) {
    for (int64_t r = 0; r < num_groups; ++r) {
      const float min = ToFloat(static_cast<const T*>(mins)[r]);
      const float step = ToFloat(static_cast<const T*>(ranges)[r]) / internal::MaxCode(format.bits);
      const uint8_t* packed = codes + r * PackedGroupBytes(format.group, format.bits);
      for (int64_t i = 0; i < format.group; ++i) {
        const auto code =
            static_cast<float>(internal::PackedCode(packed, format.group, format.bits, i));
        out[r * format.group + i] = code * step + min;
      }
    }
  });
}

void HalvePackedCodes(int64_t group, int from_bits, const uint8_t* codes, int64_t num_groups,
                      uint8_t* out) {
  internal::CheckPackable(group, from_bits);
  const int bits = from_bits / 2;
  internal::CheckPackable(group, bits);
  uint8_t unpacked[kMaxGroup];
  for (int64_t r = 0; r < num_groups; ++r) {  // Output never runs ahead of input: in place works.
    UnpackCodes(group, from_bits, codes + r * PackedGroupBytes(group, from_bits), 1, unpacked);
    for (int64_t i = 0; i < group; ++i) {
      unpacked[i] = static_cast<uint8_t>(internal::HalveCode(unpacked[i], bits));
    }
    PackCodes(group, bits, unpacked, 1, out + r * PackedGroupBytes(group, bits));
  }
}

}  // namespace ref
}  // namespace pmkvq
