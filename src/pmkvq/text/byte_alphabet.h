// GPT-2's alphabet: each of the 256 bytes has a printable character, so that token strings in a
// tokenizer.json are readable text. Printable Latin-1 bytes stand for themselves; the other 68 are
// U+0100, U+0101, ... in byte order (a space is U+0120). Internal to text/.
#pragma once

#include <string>
#include <string_view>

namespace pmkvq {

// Bytes as characters of the alphabet, in UTF-8.
std::string BytesToAlphabet(std::string_view bytes);
// Appends the bytes that `text` (valid UTF-8) spells. False, and nothing appended, when a character
// is not in the alphabet.
[[nodiscard]] bool AppendAlphabetBytes(std::string_view text, std::string* bytes);

}  // namespace pmkvq
