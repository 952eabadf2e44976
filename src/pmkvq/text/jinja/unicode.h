// Python's view of the characters of strings. Internal to text/jinja. Texts are valid UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pmkvq::jinja {

// Bytes of the character at text[offset].
size_t CharacterBytes(std::string_view text, size_t offset);
int64_t CountCharacters(std::string_view text);
// Byte offset of character `index`; text.size() for an index at the end or beyond.
size_t OffsetOfCharacter(std::string_view text, int64_t index);

// str.isspace() of one character; and how many bytes of white space a text begins and ends with.
bool IsPythonSpace(char32_t c);
size_t LeadingSpace(std::string_view text);
size_t TrailingSpace(std::string_view text);
// Where str.splitlines() ends a line.
bool IsLineBreak(char32_t c);

bool IsAlpha(char32_t c);
bool IsDecimal(char32_t c);  // str.isdecimal()
bool IsDigit(char32_t c);    // str.isdigit(): also superscripts
bool IsNumeric(char32_t c);  // str.isnumeric(): also fractions, Roman numerals, ...
bool IsUpper(char32_t c);
bool IsLower(char32_t c);
bool IsCased(char32_t c);
bool IsPrintable(char32_t c);

// Full case mapping, which may give several characters. Mappings that depend on neighbouring
// characters are left out.
std::string UpperCase(char32_t c);
std::string LowerCase(char32_t c);
std::string TitleCase(char32_t c);
std::string CaseFold(std::string_view text);

// For messages, which quote templates and messages of users: at most `max_characters` of the text,
// control characters (line breaks) as blanks.
std::string OneLine(std::string_view text, int64_t max_characters = 1000);

}  // namespace pmkvq::jinja
