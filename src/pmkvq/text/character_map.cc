#include "pmkvq/text/character_map.h"

#include <fmt/format.h>

#include "pmkvq/base/error.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/utf8.h"

namespace pmkvq {
namespace {

uint32_t WordAt(std::string_view bytes, size_t at) {
  uint32_t word = 0;
  for (size_t i = 0; i < 4; ++i) {
    word |= uint32_t{static_cast<unsigned char>(bytes[at + i])} << 8 * i;
  }
  return word;
}

// The fields of a unit of the trie.
uint32_t LabelOf(uint32_t unit) { return unit & ((uint32_t{1} << 31) | 0xff); }
uint32_t OffsetOf(uint32_t unit) { return unit >> 10 << ((unit & (1u << 9)) >> 6); }
bool HasLeaf(uint32_t unit) { return (unit >> 8 & 1) != 0; }
uint32_t ValueOf(uint32_t unit) { return unit & ((uint32_t{1} << 31) - 1); }

bool IsInsideCharacter(std::string_view text, size_t at) {
  return at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80;
}

}  // namespace

CharacterMap::CharacterMap(std::string_view bytes, const std::string& where) : where_(where) {
  const size_t trie_size = bytes.size() < 4 ? 0 : WordAt(bytes, 0);
  if (trie_size == 0 || trie_size % 4 != 0 || trie_size > bytes.size() - 4) {
    throw InvalidInput(where_, fmt::format("found a trie of {} bytes in {}, expected whole words "
                                           "that lie inside",
                                           trie_size, bytes.size()));
  }
  units_.reserve(trie_size / 4);
  for (size_t at = 4; at < 4 + trie_size; at += 4) units_.push_back(WordAt(bytes, at));
  replacements_ = bytes.substr(4 + trie_size);
  const size_t valid = ValidUtf8Prefix(replacements_);
  if (valid != replacements_.size()) {
    throw InvalidInput(where_, fmt::format("byte {} of the replacements: expected UTF-8", valid));
  }
}

CharacterMap::Match CharacterMap::LongestAt(std::string_view text, size_t at) const {
  Match match;
  size_t node = OffsetOf(units_[0]);
  for (size_t i = at; i < text.size(); ++i) {
    const auto byte = static_cast<unsigned char>(text[i]);
    node ^= byte;
    if (node >= units_.size() || LabelOf(units_[node]) != byte) break;
    const uint32_t unit = units_[node];
    node ^= OffsetOf(unit);
    if (!HasLeaf(unit)) continue;
    if (node >= units_.size()) break;
    if (!IsInsideCharacter(text, i + 1)) match = {i + 1 - at, ValueOf(units_[node])};
  }
  return match;
}

std::string_view CharacterMap::ReplacementAt(uint32_t place) const {
  const std::string_view all = replacements_;
  const size_t end = place < all.size() ? all.find('\0', place) : std::string_view::npos;
  if (end == std::string_view::npos || IsInsideCharacter(all, place)) {
    throw InvalidInput(where_, fmt::format("found a replacement at byte {}, expected the beginning "
                                           "of one of {} bytes",
                                           place, all.size()));
  }
  return all.substr(place, end - place);
}

std::string CharacterMap::Apply(std::string_view text, const AddedTokenMatcher& kept,
                                size_t max_bytes) const {
  std::string result;
  result.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    size_t length = kept.LengthAt(text, at);
    const Match match = length == 0 ? LongestAt(text, at) : Match{};
    if (match.length > 0) {
      result += ReplacementAt(match.place);
      at += match.length;
    } else {
      if (length == 0) DecodeUtf8(text, at, &length);
      result += text.substr(at, length);
      at += length;
    }
    if (result.size() > max_bytes) {
      throw InvalidInput(where_, fmt::format("a text grew beyond {} bytes, expected replacements "
                                             "that are not much longer",
                                             max_bytes));
    }
  }
  return result;
}

}  // namespace pmkvq
