// Counts what a test program allocates by operator new, and the bytes that it holds. Include in one
// file of the program: this header defines the global operators.
#pragma once

#include <malloc.h>

#include <atomic>
#include <cstddef>
#include <cstdlib>
#include <new>

namespace pmkvq::testing_support {

inline std::atomic<size_t> allocated_bytes{0};
inline std::atomic<size_t> peak_allocated_bytes{0};
inline std::atomic<size_t> num_allocations{0};

// Null where there is no memory.
inline void* TryCountedAllocate(size_t size, size_t alignment) noexcept {
  void* memory =
      alignment <= alignof(std::max_align_t)
          ? std::malloc(size == 0 ? 1 : size)
          : std::aligned_alloc(alignment, (size + alignment - 1) / alignment * alignment);
  if (memory == nullptr) return nullptr;
  ++num_allocations;
  const size_t now = allocated_bytes += malloc_usable_size(memory);
  size_t peak = peak_allocated_bytes;
  while (now > peak && !peak_allocated_bytes.compare_exchange_weak(peak, now)) {
  }
  return memory;
}

inline void* CountedAllocate(size_t size, size_t alignment) {
  void* const memory = TryCountedAllocate(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

inline void CountedFree(void* memory) {
  if (memory != nullptr) allocated_bytes -= malloc_usable_size(memory);
  std::free(memory);
}

// Most bytes that `action` held at a time, beyond what was held before. Exceptions pass.
template <class Action>
size_t PeakBytesOf(Action action) {
  const size_t before = allocated_bytes;
  peak_allocated_bytes = before;
  action();
  return peak_allocated_bytes - before;
}

}  // namespace pmkvq::testing_support

void* operator new(size_t size) { return pmkvq::testing_support::CountedAllocate(size, 1); }
void* operator new(size_t size, std::align_val_t alignment) {
  return pmkvq::testing_support::CountedAllocate(size, static_cast<size_t>(alignment));
}
// std::stable_sort allocates so.
void* operator new(size_t size, const std::nothrow_t&) noexcept {
  return pmkvq::testing_support::TryCountedAllocate(size, 1);
}
void* operator new(size_t size, std::align_val_t alignment, const std::nothrow_t&) noexcept {
  return pmkvq::testing_support::TryCountedAllocate(size, static_cast<size_t>(alignment));
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  pmkvq::testing_support::CountedFree(memory);
}
void operator delete(void* memory) noexcept { pmkvq::testing_support::CountedFree(memory); }
void operator delete(void* memory, size_t) noexcept { pmkvq::testing_support::CountedFree(memory); }
void operator delete(void* memory, std::align_val_t) noexcept {
  pmkvq::testing_support::CountedFree(memory);
}
void operator delete(void* memory, size_t, std::align_val_t) noexcept {
  pmkvq::testing_support::CountedFree(memory);
}
