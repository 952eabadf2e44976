#include "pmkvq/base/check.h"
#include "pmkvq/kernels/gemm/device_gemm.h"

namespace pmkvq {

struct DeviceGemm::State {};

DeviceGemm::DeviceGemm(DeviceId device, std::optional<int> /*choice*/) : device_(device) {
  internal::ThrowNoBackend(device, "products of matrices");
}

DeviceGemm::~DeviceGemm() = default;

void DeviceGemm::Launch(const Batched& /*product*/, Stream& /*stream*/) {
  PMKVQ_CHECK_MSG(false, "there is no such object");
}

void DeviceGemm::Warm(const Batched& /*product*/, Stream& /*stream*/) {
  PMKVQ_CHECK_MSG(false, "there is no such object");
}

}  // namespace pmkvq
