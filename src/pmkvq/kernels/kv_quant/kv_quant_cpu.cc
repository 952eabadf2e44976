#include <algorithm>

#include "pmkvq/base/check.h"
#include "pmkvq/kernels/kv_quant/kv_quant.h"
#include "pmkvq/kernels/kv_quant/kv_quant_common.h"

namespace pmkvq {

void QuantizeGroups(const GroupFormat& format, const float* x, int64_t num_groups, uint8_t* codes,
                    void* mins, void* ranges) {
  ref::QuantizeGroups(format, x, num_groups, codes, mins, ranges);
}

void DequantizeGroups(const GroupFormat& format, const uint8_t* codes, const void* mins,
                      const void* ranges, int64_t num_groups, float* out) {
  ref::DequantizeGroups(format, codes, mins, ranges, num_groups, out);
}

void HalvePackedCodes(int64_t group, int from_bits, const uint8_t* codes, int64_t num_groups,
                      uint8_t* out) {
  ref::HalvePackedCodes(group, from_bits, codes, num_groups, out);
}

void FakeQuantize(const FakeQuantOptions& options, const float* x, int64_t num_groups, float* out) {
  const int64_t group = options.group;
  if (options.bits == 16) {
    for (int64_t i = 0; i < num_groups * group; ++i) out[i] = ToFloat(ToBF16(x[i]));
    return;
  }
  PMKVQ_CHECK(options.bits == 8 || options.bits == 4 || options.bits == 2);
  PMKVQ_CHECK(group > 0);
  const float max_code = internal::MaxCode(options.bits);
  for (int64_t r = 0; r < num_groups; ++r, x += group, out += group) {
    const auto [lowest, highest] = std::minmax_element(x, x + group);
    const float min = *lowest;
    float step = (*highest - min) / max_code;
    if (options.reference_scale_clamp) step = std::max(step, 1e-5f);
    for (int64_t i = 0; i < group; ++i) {
      const float code =
          step > 0.0f ? static_cast<float>(internal::CodeOf(x[i], min, step, max_code)) : 0.0f;
      out[i] = code * step + min;
    }
  }
}

}  // namespace pmkvq
