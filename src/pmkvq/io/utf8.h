// UTF-8 validity of bytes from outside. Valid is what table 3-7 of the Unicode standard lists: no
// overlong forms, no surrogates, nothing above U+10FFFF.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pmkvq {

enum class Utf8Kind {
  kValid,       // A whole character.
  kIncomplete,  // The text ends inside a character that is well-formed so far.
  kInvalid,     // Not UTF-8.
};

struct Utf8Step {
  Utf8Kind kind;
  // Bytes of the character, or of the longest well-formed beginning of one (at least 1): what
  // Unicode recommends to replace by a single U+FFFD.
  size_t length;
};

// What starts at text[offset]; offset < text.size().
Utf8Step ScanUtf8(std::string_view text, size_t offset);

// Length in bytes of the longest prefix of `text` that is whole, valid UTF-8. text.size() when all
// is valid.
size_t ValidUtf8Prefix(std::string_view text);

// Throws InvalidInput naming `where`, the first byte that is not UTF-8 and its offset.
void CheckUtf8(std::string_view text, const std::string& where);

}  // namespace pmkvq
