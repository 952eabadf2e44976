// What a hostile file may cost to read: 4 times its size plus 16 MiB (io/limits.h). Include in one
// file of a test program.
#pragma once

#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "pmkvq/base/error.h"
#include "support/allocation_peak.h"

namespace pmkvq::testing_support {

// Runs `read`, which may throw an Error, on a file of `file_bytes` bytes, `mapped_bytes` of which
// are mapped, not allocated.
template <class Read>
void ExpectBounded(const std::string& what, size_t file_bytes, size_t mapped_bytes, Read read) {
  const size_t peak = PeakBytesOf([&] {
                        try {
                          read();
                        } catch (const Error&) {
                          // Refusing is as good as reading.
                        }
                      }) +
                      mapped_bytes;
  const size_t bound = 4 * file_bytes + (size_t{16} << 20);
  EXPECT_LE(peak, bound) << what << ": " << file_bytes << " bytes of file";
  if (std::getenv("PMKVQ_SHOW_PEAKS") != nullptr) {
    std::printf("%-40s file %9zu peak %10zu of %10zu\n", what.c_str(), file_bytes, peak, bound);
  }
}

// `piece` again and again, commas between, up to `bytes`.
inline std::string Repeat(const std::string& piece, size_t bytes) {
  std::string text;
  text.reserve(bytes + piece.size() + 1);
  while (text.size() < bytes) {
    if (!text.empty()) text += ',';
    text += piece;
  }
  return text;
}

// Members "key": `value` with keys that differ, up to `bytes`.
inline std::string Members(const std::string& value, size_t bytes) {
  std::string text;
  text.reserve(bytes + value.size() + 16);
  for (size_t i = 0; text.size() < bytes; ++i) {
    if (!text.empty()) text += ',';
    std::string key;  // Short: 6 bits a character.
    for (size_t rest = i;; rest /= 64) {
      key += static_cast<char>('0' + rest % 64 == '\\' ? 'z' : '0' + rest % 64);
      if (rest < 64) break;
    }
    text += '"' + key + "\":" + value;
  }
  return text;
}

}  // namespace pmkvq::testing_support
