// What is done to a text before it is cut. Internal to text/.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/character_map.h"

namespace pmkvq {

// `text` (valid UTF-8) in Unicode normalisation form C. O(n log n) for every text.
std::string Nfc(std::string_view text);

// Steps, each on the result of the one before.
class Normalizer {
 public:
  // None.
  Normalizer() = default;
  // The "normalizer" of a tokenizer.json: null, NFC, Prepend, Replace of a string, or a Sequence of
  // those. `json` may be a null value. Throws Unsupported naming any other type.
  explicit Normalizer(const JsonValue& json);

  // More steps.
  void AddNfc() { steps_.push_back({Kind::kNfc, {}, {}}); }
  // Puts `prefix` in front of a text that is not empty.
  void AddPrefix(std::string_view prefix) {
    steps_.push_back({Kind::kPrefix, {}, std::string(prefix)});
  }
  void AddReplace(std::string_view from, std::string_view to) {
    steps_.push_back({Kind::kReplace, std::string(from), std::string(to)});
  }
  // Replaces characters by `map`, but for those of the tokens `kept`.
  void AddCharacterMap(CharacterMap map, AddedTokenMatcher kept) {
    map_ = std::make_shared<const Map>(Map{std::move(map), std::move(kept)});
    steps_.push_back({Kind::kMap, {}, {}});
  }
  // Makes one space of several, and none of those at both ends.
  void AddTrimSpaces() { steps_.push_back({Kind::kTrimSpaces, {}, {}}); }
  // Drops every `end` at the end of a text.
  void AddTrimEnd(std::string_view end) {
    steps_.push_back({Kind::kTrimEnd, std::string(end), {}});
  }

  // `is_first`: whether the text has a beginning; the later parts of one that is cut have none.
  // Throws InvalidInput where the text grows to more than 64 times its size.
  std::string Normalize(std::string_view text, bool is_first = true) const;

 private:
  enum class Kind { kNfc, kPrefix, kReplace, kTrimSpaces, kTrimEnd, kMap };
  struct Step {
    Kind kind;
    std::string from;
    std::string to;
  };

  void Add(const JsonValue& json);
  struct Map {
    CharacterMap map;
    AddedTokenMatcher kept;
  };
  std::vector<Step> steps_;
  std::shared_ptr<const Map> map_;
};

// `text` with every `from` (not empty) replaced by `to`. Throws InvalidInput for a result of more
// than `max_bytes`: replacements of a hostile file can double a text again and again.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to,
                       size_t max_bytes);

}  // namespace pmkvq
