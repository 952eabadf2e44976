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

class PreTokenizer {
 public:
  // None: a text is one piece.
  PreTokenizer() = default;
  // The "pre_tokenizer" of a tokenizer.json. `byte_level`: ByteLevel, alone or at the end of a
  // Sequence of Split and Digits. Otherwise: null, Metaspace, Split, Digits, or a Sequence of
  // those. Throws Unsupported naming anything else.
  PreTokenizer(const JsonValue& json, bool byte_level);
  // Isolated matches of each pattern in turn. `where` names them in errors.
  PreTokenizer(const std::vector<std::string_view>& patterns, const std::string& where);

  // ByteLevel's own pattern, which is GPT-2's.
  static const std::string_view kGpt2Pattern;

  // `text`: valid UTF-8 that outlives the result. `at_start`: nothing precedes it in the input. The
  // pieces are not empty.
  Pieces Split(std::string_view text, bool at_start) const;

 private:
  // Where Metaspace puts a space mark in front of a piece.
  enum class Prefix { kNever, kFirst, kAlways };

  struct Stage {
    bool is_metaspace = false;
    // A Split, with its pattern; a Metaspace has one where it cuts.
    std::vector<Regex> regex;
    SplitBehavior behavior = SplitBehavior::kIsolated;
    bool invert = false;
    // Metaspace.
    std::string mark;
    Prefix prefix = Prefix::kNever;
  };

  void Add(const JsonValue& json, bool byte_level);
  void AddStage(const JsonValue& json, Stage stage);
  void AddSplit(const JsonValue& json);
  void AddDigits(const JsonValue& json);
  void AddMetaspace(const JsonValue& json);
  void AddByteLevel(const JsonValue& json);
  static void Mark(const Stage& stage, std::string_view start, Pieces* pieces);

  std::vector<Stage> stages_;            // Before the space of add_prefix_space, ...
  std::vector<Stage> byte_level_regex_;  // ... and after it: none or one.
  bool add_prefix_space_ = false;
  bool has_byte_level_ = false;
};

}  // namespace pmkvq
