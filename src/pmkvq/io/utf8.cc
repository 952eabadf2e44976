#include "pmkvq/io/utf8.h"

#include <fmt/format.h>

#include "pmkvq/base/error.h"

namespace pmkvq {

Utf8Step ScanUtf8(std::string_view text, size_t offset) {
  const auto byte_at = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte_at(offset);
  if (lead < 0x80) return {Utf8Kind::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Kind::kInvalid, 1};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  // The second byte carries the limits against overlong forms, surrogates and too large values.
  const unsigned char low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  const unsigned char high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < length; ++i) {
    if (offset + i == text.size()) return {Utf8Kind::kIncomplete, i};
    const unsigned char byte = byte_at(offset + i);
    const bool fits = i == 1 ? byte >= low && byte <= high : (byte & 0xC0) == 0x80;
    if (!fits) return {Utf8Kind::kInvalid, i};
  }
  return {Utf8Kind::kValid, length};
}

size_t ValidUtf8Prefix(std::string_view text) {
  size_t position = 0;
  while (position < text.size()) {
    const Utf8Step step = ScanUtf8(text, position);
    if (step.kind != Utf8Kind::kValid) break;
    position += step.length;
  }
  return position;
}

void CheckUtf8(std::string_view text, const std::string& where) {
  const size_t valid = ValidUtf8Prefix(text);
  if (valid == text.size()) return;
  throw InvalidInput(where, fmt::format("byte {}: found 0x{:02x}, expected UTF-8 text", valid,
                                        static_cast<unsigned char>(text[valid])));
}

}  // namespace pmkvq
