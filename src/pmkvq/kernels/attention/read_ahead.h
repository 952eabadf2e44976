// Memory that is read soon, asked for between computations.
//
// Attention reads a slice of a page for each KV head. The processor sees a slice's stream only
// after a few lines of it have been read, and forgets it at the next slice. Asked for line by line
// while the slice before it is multiplied, a slice is there when its turn comes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace pmkvq::internal {

struct ReadAhead {
  static constexpr int64_t kLineBytes = 64;
  static constexpr int64_t Lines(int64_t num_bytes) {
    return (num_bytes + kLineBytes - 1) / kLineBytes;
  }
  const std::byte* data = nullptr;
  int64_t num_bytes = 0;
  int64_t asked = 0;  // Bytes from `data` on.
  // Asks for the next `lines` lines, as far as there are any.
  void Next(int64_t lines) {
    for (int64_t i = 0; i < lines && asked < num_bytes; ++i, asked += kLineBytes) {
      __builtin_prefetch(data + asked);
    }
  }
};

}  // namespace pmkvq::internal
