// GPT-2's alphabet: each of the 256 bytes has a printable character, so that token strings in a
// tokenizer.json are readable text. Printable Latin-1 bytes stand for themselves; the other 68 are
// U+0100, U+0101, ... in byte order (a space is U+0120). Internal to text/.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace pmkvq {

// Bytes as characters of the alphabet, in UTF-8.
std::string BytesToAlphabet(std::string_view bytes);
// The bytes that `text` (valid UTF-8) spells; nothing when a character is not in the alphabet.
std::optional<std::string> AlphabetToBytes(std::string_view text);

}  // namespace pmkvq
