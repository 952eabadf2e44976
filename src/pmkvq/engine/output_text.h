// The text of one request while its tokens are drawn: decoding, and stop strings across tokens.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/text/tokenizer.h"

namespace pmkvq {

// Length of the longest end of `text` that is a beginning of `stop`, the whole of it excepted.
size_t PossibleStart(std::string_view text, std::string_view stop);

// Finds the first of several stop strings in text that arrives in pieces: the one that is complete
// first, the longest of those that end together, however the text is cut. Text that may be the
// beginning of a stop string is held back until that is decided.
class StopMatcher {
 public:
  // `stops` must hold no empty string (check).
  explicit StopMatcher(std::vector<std::string> stops);

  // Text that is now known to lie before any stop string. "" after a match.
  std::string Push(std::string_view text);
  // What is held back: no more text will come. "" after a match.
  std::string Flush();
  bool matched() const { return matched_; }
  // The stop string that was found; "" before.
  const std::string& found() const { return found_; }

 private:
  std::vector<std::string> stops_;
  std::string held_;
  std::string found_;
  bool matched_ = false;
};

// Turns drawn tokens into text without special tokens, cut before the first stop string.
class OutputText {
 public:
  // `tokenizer` may be null: all text is then empty. `prompt_ids`: what the tokens go on from. The
  // space that SentencePiece puts in front of a text is dropped unless the prompt ends in text.
  // `stop_after`: text up to its first occurrence is not searched for stop strings; "": all is.
  OutputText(std::shared_ptr<const Tokenizer> tokenizer, std::vector<std::string> stops,
             const std::vector<int32_t>& prompt_ids, std::string stop_after = "");

  // Text that became complete with this token. Ids that the tokenizer does not know (padded rows
  // of the output head) add nothing.
  std::string Push(int32_t token);
  // The rest, once no more tokens will come.
  std::string Finish();
  bool stopped() const { return stops_.matched(); }
  const std::string& stop_string() const { return stops_.found(); }
  // Everything returned so far.
  const std::string& text() const { return text_; }

 private:
  std::string Add(std::string piece);
  // The part of new text that passes by the search for stop strings.
  size_t LengthBeforeSearch(std::string_view piece);

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::unique_ptr<StreamDecoder> decoder_;
  StopMatcher stops_;
  std::string stop_after_;  // Not found yet; "" behind it.
  std::string tail_;        // The end of the text so far that may begin it.
  std::string text_;
};

}  // namespace pmkvq
