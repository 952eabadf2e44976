#include "pmkvq/base/check.h"
#include "pmkvq/tensor/device/buffer.h"

namespace pmkvq::internal {

std::byte* AllocateCudaMemory(DeviceId device, size_t num_bytes) {
  ThrowNoBackend(device, "memory of " + std::to_string(num_bytes) + " bytes");
}

void FreeCudaMemory(DeviceId /*device*/, std::byte* /*data*/) {
  PMKVQ_CHECK_MSG(false, "there is no memory of this device");
}

}  // namespace pmkvq::internal
