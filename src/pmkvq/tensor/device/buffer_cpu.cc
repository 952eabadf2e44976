// The CPU's memory: reserved from the system at once, given by it page by page.
#include <sys/mman.h>

#include <cerrno>
#include <cstring>

#include "pmkvq/base/error.h"
#include "pmkvq/tensor/device/buffer.h"

namespace pmkvq::internal {

std::byte* AllocateCpuMemory(size_t num_bytes) {
  void* memory = mmap(nullptr, num_bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    throw IoError("memory", "cannot allocate " + std::to_string(num_bytes) +
                                " bytes: " + std::strerror(errno));
  }
  return static_cast<std::byte*>(memory);
}

void FreeCpuMemory(std::byte* data, size_t num_bytes) { munmap(data, num_bytes); }

}  // namespace pmkvq::internal
