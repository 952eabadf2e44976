#include "pmkvq/kernels/gemm/device_codes.h"

#include <fmt/format.h>

#include "pmkvq/base/check.h"
#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

void CheckWeight(const DeviceCodes& w, const char* what, DeviceId device) {
  PMKVQ_CHECK(HasDeviceCodes(w.format));
  PMKVQ_CHECK(w.n > 0 && w.k > 0 && w.n <= INT32_MAX && w.k <= INT32_MAX);
  if (w.k % 8 == 0) return;
  throw Unsupported(NameOf(device), fmt::format("{}: found {} inputs, expected a multiple of 8; "
                                                "use --device cpu",
                                                what, w.k));
}

bool IsAligned(const void* p) { return p != nullptr && reinterpret_cast<uintptr_t>(p) % 16 == 0; }

}  // namespace

void MultiplyCodes(const DeviceCodesProduct& product, Stream& stream) {
  CheckWeight(product.w, "product with quantised weights", stream.device());
  PMKVQ_CHECK(product.rows > 0 && product.rows <= kDecodeRows);
  PMKVQ_CHECK(product.x.type == DType::kF16 && product.x.parts == 2);
  PMKVQ_CHECK(product.x.part_rows >= product.rows && product.y_stride >= product.w.n);
  PMKVQ_CHECK(IsAligned(product.x.data) && IsAligned(product.w.data) && product.y != nullptr);
  internal::MultiplyCodesCuda(product, stream);
}

void ExpandCodes(const DeviceCodes& w, DType type, std::byte* out, Stream& stream) {
  CheckWeight(w, "expanding quantised weights", stream.device());
  PMKVQ_CHECK(IsFloat16Or32(type) && IsAligned(w.data) && IsAligned(out));
  internal::ExpandCodesCuda(w, type, out, stream);
}

}  // namespace pmkvq
