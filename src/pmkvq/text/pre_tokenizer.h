// Cuts text into the pieces inside which byte pairs are merged. Internal to text/.
#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/regex.h"

namespace pmkvq {

// What becomes of the matches of a Split's pattern.
enum class SplitBehavior {
  kIsolated,            // Each match is one piece.
  kRemoved,             // Matches are dropped.
  kMergedWithPrevious,  // A match is the end of the piece before it.
  kMergedWithNext,      // A match is the beginning of the piece after it.
  kContiguous,          // Matches that touch are one piece.
};

// The pieces that `text` is cut into. `matches` (in order, not overlapping) are the matches of the
// pattern; with `invert`, the parts between them count as matches. May hold empty spans.
std::vector<Span> ApplySplit(std::string_view text, const std::vector<Span>& matches,
                             SplitBehavior behavior, bool invert);

// Pieces of one text. `views` point into that text or into `storage`.
struct Pieces {
  std::vector<std::string_view> views;
  std::deque<std::string> storage;
};

// The "pre_tokenizer" of a tokenizer.json: ByteLevel, alone or at the end of a Sequence of Splits.
class PreTokenizer {
 public:
  // Throws Unsupported naming anything else.
  explicit PreTokenizer(const JsonValue& json);

  // `text`: valid UTF-8 that outlives the result. The pieces are not empty.
  Pieces Split(std::string_view text) const;

 private:
  struct SplitStage {
    Regex regex;
    SplitBehavior behavior;
    bool invert;
  };

  void Add(const JsonValue& json);
  void AddSplit(const JsonValue& json);
  void AddByteLevel(const JsonValue& json);

  std::vector<SplitStage> stages_;            // Before the space of add_prefix_space, ...
  std::vector<SplitStage> byte_level_regex_;  // ... and after it: none or one.
  bool add_prefix_space_ = false;
  bool has_byte_level_ = false;
};

}  // namespace pmkvq
