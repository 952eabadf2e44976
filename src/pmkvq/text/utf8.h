// Code points of valid UTF-8 (io/utf8.h checks it). Internal to text/.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace pmkvq {

// The code point that starts at text[offset] of valid UTF-8; `*length` receives its bytes.
char32_t DecodeUtf8(std::string_view text, size_t offset, size_t* length);
// The code point that ends at text[end - 1] of valid UTF-8, end > 0.
char32_t DecodeUtf8Before(std::string_view text, size_t end, size_t* length);

// What stands for bytes that are no UTF-8.
inline constexpr char32_t kReplacementCharacter = 0xFFFD;

void AppendUtf8(char32_t code_point, std::string* text);

// Unicode White_Space, which \s matches in the regular expressions of Hugging Face tokenizers.
bool IsWhiteSpace(char32_t code_point);

}  // namespace pmkvq
