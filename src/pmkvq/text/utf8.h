// UTF-8 at the level of single characters. Internal to text/.
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

// What starts at text[offset]; offset < text.size(). Follows table 3-7 of the Unicode standard:
// overlong forms, surrogates and values above U+10FFFF are invalid.
Utf8Step ScanUtf8(std::string_view text, size_t offset);

// The code point that starts at text[offset] of valid UTF-8; `*length` receives its bytes.
char32_t DecodeUtf8(std::string_view text, size_t offset, size_t* length);
// The code point that ends at text[end - 1] of valid UTF-8, end > 0.
char32_t DecodeUtf8Before(std::string_view text, size_t end, size_t* length);

void AppendUtf8(char32_t code_point, std::string* text);

// Unicode White_Space: what \s matches in the regular expressions of Hugging Face tokenizers.
bool IsWhiteSpace(char32_t code_point);

}  // namespace pmkvq
