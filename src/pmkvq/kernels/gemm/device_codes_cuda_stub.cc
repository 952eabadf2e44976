#include "pmkvq/kernels/gemm/device_codes.h"

namespace pmkvq::internal {

void MultiplyCodesCuda(const DeviceCodesProduct& /*product*/, Stream& stream) {
  ThrowNoBackend(stream.device(), "a product with quantised weights");
}

void ExpandCodesCuda(const DeviceCodes& /*w*/, DType /*type*/, std::byte* /*out*/, Stream& stream) {
  ThrowNoBackend(stream.device(), "expanding quantised weights");
}

}  // namespace pmkvq::internal
