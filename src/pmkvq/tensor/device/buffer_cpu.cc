#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "pmkvq/base/error.h"
#include "pmkvq/tensor/device/buffer.h"

namespace pmkvq {

Buffer::Buffer(Device device, size_t num_bytes) : num_bytes_(num_bytes) {
  (void)device;
  if (num_bytes == 0) return;
  void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw IoError("memory", "cannot allocate " + std::to_string(num_bytes) +
                                " bytes: " + std::strerror(errno));
  }
  data_ = static_cast<std::byte*>(memory);
}

Buffer::~Buffer() {
  if (data_ != nullptr) munmap(data_, num_bytes_);
}

}  // namespace pmkvq
