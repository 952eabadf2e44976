#include "pmkvq/tensor/device/buffer.h"

namespace pmkvq {

Buffer::Buffer(DeviceId device, size_t num_bytes) : memory_{device, nullptr, num_bytes} {
  if (num_bytes == 0) return;
  memory_.data = device.device == Device::kCpu ? internal::AllocateCpuMemory(num_bytes)
                                               : internal::AllocateCudaMemory(device, num_bytes);
}

Buffer::~Buffer() {
  if (memory_.data == nullptr) return;
  if (memory_.device.device == Device::kCpu) {
    internal::FreeCpuMemory(memory_.data, memory_.num_bytes);
  } else {
    internal::FreeCudaMemory(memory_.device, memory_.data);
  }
}

}  // namespace pmkvq
