#include "pmkvq/kernels/gemm/device_gemm_q8.h"

namespace pmkvq::internal {

void MultiplyQ8Cuda(const DeviceQ8Product& /*product*/, Stream& stream) {
  ThrowNoBackend(stream.device(), "a product with q8 weights");
}

void ExpandQ8Cuda(const std::byte* /*w*/, int64_t /*n*/, int64_t /*k*/, DType /*type*/,
                  std::byte* /*out*/, Stream& stream) {
  ThrowNoBackend(stream.device(), "expanding q8 weights");
}

}  // namespace pmkvq::internal
