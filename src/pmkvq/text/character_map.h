// The character map of a SentencePiece model (normalizer_spec.precompiled_charsmap): strings and
// what each becomes. Internal to text/.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/text/added_tokens.h"

namespace pmkvq {

// The bytes of a map are a size (32 bits), a double-array trie of that many bytes (Darts: one word
// of 32 bits a unit), and the replacements, each ending in NUL; a trie's value is the place of one.
class CharacterMap {
 public:
  // Throws InvalidInput naming `where` for what is no such map.
  CharacterMap(std::string_view bytes, const std::string& where);

  // `text` (valid UTF-8) with every longest match replaced, from left to right; tokens of `kept`
  // stay as they are. Throws InvalidInput for a result of more than `max_bytes`.
  std::string Apply(std::string_view text, const AddedTokenMatcher& kept, size_t max_bytes) const;

 private:
  struct Match {
    size_t length = 0;  // 0: none.
    uint32_t place = 0;
  };
  Match LongestAt(std::string_view text, size_t at) const;
  std::string_view ReplacementAt(uint32_t place) const;

  std::string where_;
  std::vector<uint32_t> units_;
  std::string replacements_;
};

}  // namespace pmkvq
