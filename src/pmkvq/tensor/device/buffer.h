// Raw memory of a device.
#pragma once

#include <cstddef>

#include "pmkvq/tensor/device/device.h"

namespace pmkvq {

// Memory of a device that somebody else owns. The host reads and writes it where the device is the
// CPU; elsewhere `data` is an address of the device, which only ops of that device use.
struct DeviceBytes {
  DeviceId device;
  std::byte* data = nullptr;
  size_t num_bytes = 0;
};

// Owns `num_bytes` of device memory, allocated once, aligned to 64 bytes, not initialised.
// On the CPU the memory is reserved from the system page by page as it is first written, so
// resident memory grows with use up to num_bytes and never beyond. On CUDA all of it is taken at
// once.
class Buffer {
 public:
  // Throws IoError when the system refuses the memory, DeviceError when a device does (bytes asked
  // and free), Unsupported when the program has no code for the device.
  Buffer(DeviceId device, size_t num_bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  DeviceId device() const { return memory_.device; }
  std::byte* data() const { return memory_.data; }
  size_t num_bytes() const { return memory_.num_bytes; }
  DeviceBytes view() const { return memory_; }

 private:
  DeviceBytes memory_;
};

namespace internal {
// One pair per backend. `num_bytes` is not 0.
std::byte* AllocateCpuMemory(size_t num_bytes);
void FreeCpuMemory(std::byte* data, size_t num_bytes);
std::byte* AllocateCudaMemory(DeviceId device, size_t num_bytes);
void FreeCudaMemory(DeviceId device, std::byte* data);
}  // namespace internal

}  // namespace pmkvq
