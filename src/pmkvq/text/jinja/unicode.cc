#include "pmkvq/text/jinja/unicode.h"

#include <utf8proc.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>

#include "pmkvq/text/utf8.h"

namespace pmkvq::jinja {
namespace {

utf8proc_category_t CategoryOf(char32_t c) {
  return utf8proc_category(static_cast<utf8proc_int32_t>(c));
}

std::string Encoded(utf8proc_int32_t c) {
  std::string text;
  AppendUtf8(static_cast<char32_t>(c), &text);
  return text;
}

// Characters whose upper case is several characters (SpecialCasing.txt, those without conditions).
// Their title case is the first one in upper case and the rest in lower case.
constexpr std::array<std::pair<char32_t, std::u32string_view>, 12> kUpperOfSeveral = {{
    {0x00DF, U"SS"},
    {0x0149, U"\u02BCN"},
    {0x01F0, U"J\u030C"},
    {0x0390, U"\u0399\u0308\u0301"},
    {0x03B0, U"\u03A5\u0308\u0301"},
    {0x0587, U"\u0535\u0552"},
    {0x1E96, U"H\u0331"},
    {0x1E97, U"T\u0308"},
    {0x1E98, U"W\u030A"},
    {0x1E99, U"Y\u030A"},
    {0x1E9A, U"A\u02BE"},
    {0x1FB6, U"\u0391\u0342"},
}};
constexpr std::array<std::pair<char32_t, std::u32string_view>, 7> kUpperOfLigature = {{
    {0xFB00, U"FF"},
    {0xFB01, U"FI"},
    {0xFB02, U"FL"},
    {0xFB03, U"FFI"},
    {0xFB04, U"FFL"},
    {0xFB05, U"ST"},
    {0xFB06, U"ST"},
}};

std::u32string_view UpperOfSeveral(char32_t c) {
  for (const auto& [from, to] : kUpperOfSeveral) {
    if (from == c) return to;
  }
  for (const auto& [from, to] : kUpperOfLigature) {
    if (from == c) return to;
  }
  return {};
}

}  // namespace

size_t CharacterBytes(std::string_view text, size_t offset) {
  const auto byte = static_cast<unsigned char>(text[offset]);
  const size_t length = byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
  return std::min(length, text.size() - offset);
}

int64_t CountCharacters(std::string_view text) {
  return std::count_if(text.begin(), text.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

size_t OffsetOfCharacter(std::string_view text, int64_t index) {
  size_t offset = 0;
  for (int64_t i = 0; i < index && offset < text.size(); ++i) {
    offset += CharacterBytes(text, offset);
  }
  return offset;
}

bool IsPythonSpace(char32_t c) { return IsWhiteSpace(c) || (c >= 0x1C && c <= 0x1F); }

size_t LeadingSpace(std::string_view text) {
  size_t done = 0;
  size_t length = 0;
  while (done < text.size() && IsPythonSpace(DecodeUtf8(text, done, &length))) done += length;
  return done;
}

size_t TrailingSpace(std::string_view text) {
  size_t end = text.size();
  size_t length = 0;
  while (end > 0 && IsPythonSpace(DecodeUtf8Before(text, end, &length))) end -= length;
  return text.size() - end;
}

bool IsLineBreak(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

bool IsAlpha(char32_t c) {
  const utf8proc_category_t category = CategoryOf(c);
  return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

bool IsDecimal(char32_t c) { return CategoryOf(c) == UTF8PROC_CATEGORY_ND; }

bool IsDigit(char32_t c) {
  return IsDecimal(c) || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) ||
         (c >= 0x2460 && c <= 0x2468);
}

bool IsNumeric(char32_t c) {
  const utf8proc_category_t category = CategoryOf(c);
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
         category == UTF8PROC_CATEGORY_NO;
}

bool IsUpper(char32_t c) { return utf8proc_isupper(static_cast<utf8proc_int32_t>(c)) != 0; }
bool IsLower(char32_t c) { return utf8proc_islower(static_cast<utf8proc_int32_t>(c)) != 0; }
bool IsCased(char32_t c) {
  return IsUpper(c) || IsLower(c) || CategoryOf(c) == UTF8PROC_CATEGORY_LT;
}

bool IsPrintable(char32_t c) {
  if (c == ' ') return true;
  switch (CategoryOf(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

std::string UpperCase(char32_t c) {
  std::string text;
  for (const char32_t upper : UpperOfSeveral(c)) AppendUtf8(upper, &text);
  return text.empty() ? Encoded(utf8proc_toupper(static_cast<utf8proc_int32_t>(c))) : text;
}

std::string LowerCase(char32_t c) {
  if (c == 0x130) return "i\u0307";
  return Encoded(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}

std::string TitleCase(char32_t c) {
  const std::u32string_view several = UpperOfSeveral(c);
  if (several.empty()) return Encoded(utf8proc_totitle(static_cast<utf8proc_int32_t>(c)));
  std::string text = Encoded(static_cast<utf8proc_int32_t>(several.front()));
  for (const char32_t rest : several.substr(1)) text += LowerCase(rest);
  return text;
}

std::string CaseFold(std::string_view text) {
  utf8proc_uint8_t* folded = nullptr;
  const utf8proc_ssize_t size =
      utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                   static_cast<utf8proc_ssize_t>(text.size()), &folded, UTF8PROC_CASEFOLD);
  if (size < 0) return std::string(text);
  std::string result(reinterpret_cast<const char*>(folded), static_cast<size_t>(size));
  std::free(folded);
  return result;
}

std::string OneLine(std::string_view text, int64_t max_characters) {
  std::string line(text.substr(0, OffsetOfCharacter(text, max_characters)));
  std::replace_if(
      line.begin(), line.end(), [](char c) { return static_cast<unsigned char>(c) < 0x20; }, ' ');
  return line;
}

}  // namespace pmkvq::jinja
