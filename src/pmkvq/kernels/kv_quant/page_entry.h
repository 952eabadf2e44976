// An entry of a page table in a device's memory.
#pragma once

#include <cstdint>

namespace pmkvq {

// K and V of 128 tokens: where their codes and metadata begin, in units of 256 bytes.
struct PageEntry {
  uint32_t k = 0;
  uint32_t v = 0;
  uint32_t k_metadata = 0;  // Not read at 16 bits.
  uint32_t v_metadata = 0;

  friend bool operator==(const PageEntry&, const PageEntry&) = default;
};
struct PageBits {
  uint8_t k = 16;
  uint8_t v = 16;

  friend bool operator==(const PageBits&, const PageBits&) = default;
};

}  // namespace pmkvq
