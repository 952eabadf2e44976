// Raw memory of a device. The CPU is the only device so far; another one adds
// an enumerator here and a buffer_<device>.cc.
#pragma once

#include <cstddef>

namespace pmkvq {

enum class Device { kCpu };

// Owns `num_bytes` of device memory, allocated once, aligned to 64 bytes, not initialised.
// On the CPU the memory is reserved from the system page by page as it is first written, so
// resident memory grows with use up to num_bytes and never beyond.
class Buffer {
 public:
  // Throws IoError when the system refuses the memory.
  Buffer(Device device, size_t num_bytes);
  ~Buffer();
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  std::byte* data() const { return data_; }
  size_t num_bytes() const { return num_bytes_; }

 private:
  std::byte* data_ = nullptr;
  size_t num_bytes_ = 0;
};

}  // namespace pmkvq
