// The safetensors header parser. Input: two bytes with the size of the data, then the JSON text.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string_view>

#include "pmkvq/base/error.h"
#include "pmkvq/io/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size < 2) return 0;
  const uint64_t data_bytes = static_cast<uint64_t>(data[0]) | static_cast<uint64_t>(data[1]) << 8;
  const std::string_view text(reinterpret_cast<const char*>(data) + 2, size - 2);
  try {
    const pmkvq::SafetensorsHeader header =
        pmkvq::ParseSafetensorsHeader("fuzz", text, nullptr, data_bytes);
    // What was accepted must lie inside the data, which begin at null.
    for (const auto& [name, view] : header.tensors) {
      const auto begin = reinterpret_cast<uintptr_t>(view.data);
      if (begin > data_bytes || view.num_bytes() > data_bytes - begin) std::abort();
    }
  } catch (const pmkvq::Error&) {
  }
  return 0;
}
