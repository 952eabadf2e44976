#include "pmkvq/text/byte_alphabet.h"

#include <array>
#include <cstdint>

#include "pmkvq/text/utf8.h"

namespace pmkvq {
namespace {

constexpr size_t kNumCharacters = 0x100 + 68;
constexpr int16_t kNoByte = -1;

struct Alphabet {
  std::array<char32_t, 256> character_of{};
  std::array<int16_t, kNumCharacters> byte_of{};
};

constexpr bool IsPrintableLatin1(uint32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

constexpr Alphabet MakeAlphabet() {
  Alphabet alphabet;
  for (int16_t& byte : alphabet.byte_of) byte = kNoByte;
  char32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const char32_t character = IsPrintableLatin1(byte) ? static_cast<char32_t>(byte) : next++;
    alphabet.character_of[byte] = character;
    alphabet.byte_of[character] = static_cast<int16_t>(byte);
  }
  return alphabet;
}

constexpr Alphabet kAlphabet = MakeAlphabet();

}  // namespace

std::string BytesToAlphabet(std::string_view bytes) {
  std::string text;
  for (const char byte : bytes) {
    AppendUtf8(kAlphabet.character_of[static_cast<unsigned char>(byte)], &text);
  }
  return text;
}

bool AppendAlphabetBytes(std::string_view text, std::string* bytes) {
  const size_t before = bytes->size();
  for (size_t offset = 0; offset < text.size();) {
    size_t length = 0;
    const char32_t character = DecodeUtf8(text, offset, &length);
    if (character >= kNumCharacters || kAlphabet.byte_of[character] == kNoByte) {
      bytes->resize(before);
      return false;
    }
    bytes->push_back(static_cast<char>(kAlphabet.byte_of[character]));
    offset += length;
  }
  return true;
}

}  // namespace pmkvq
