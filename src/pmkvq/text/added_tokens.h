// Tokens that are cut out of the text before anything else. Internal to text/.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pmkvq/text/marked_text.h"

namespace pmkvq {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool normalized = false;   // Looked for in the normalised text, not in the text as given.
  bool single_word = false;  // Counts only where no word character touches it.
  bool lstrip = false;       // Takes white space before it with it.
  bool rstrip = false;       // Takes white space after it with it.
};

// Special, or of a form that only chat templates use: DeepSeek's tokenizers list <｜User｜> and
// <｜Assistant｜> among the tokens that are not special.
bool IsControlToken(const AddedToken& token);

// A stretch of text, or an added token when id >= 0.
struct Segment {
  std::string_view text;
  int32_t id;
};

// Finds a set of added tokens in one pass: leftmost first, the longest of those that start there.
class AddedTokenMatcher {
 public:
  // `token.content` must not be empty; a second token of the same content is a caller bug.
  void Add(const AddedToken& token);

  // Bytes of the longest token that starts at text[offset]; 0 for none.
  size_t LengthAt(std::string_view text, size_t offset) const;

  // Segments of `text` (valid UTF-8) in order, without empty stretches. With `parse_special` off,
  // control tokens are found but left as text (and hide other tokens inside them).
  std::vector<Segment> Split(std::string_view text, bool parse_special) const;
  // The same with control tokens parsed outside of `literal` only (as MarkedText::input): a control
  // token that has one byte in there is text.
  std::vector<Segment> Split(std::string_view text, const std::vector<ByteRange>& literal) const;

 private:
  static constexpr int32_t kNone = -1;

  // Index into tokens_ of the longest token that starts at text[offset] and lies inside of `text`,
  // or kNone.
  int32_t LongestAt(std::string_view text, size_t offset) const;

  std::vector<AddedToken> tokens_;
  // A trie over bytes: (node << 8 | byte) -> node; node 0 is the root.
  std::unordered_map<uint64_t, uint32_t> edges_;
  std::vector<int32_t> token_of_node_ = {kNone};
  bool starts_[256] = {};  // Bytes that some token starts with.
};

}  // namespace pmkvq
