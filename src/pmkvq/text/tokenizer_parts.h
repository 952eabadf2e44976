// What a tokenizer is made of, and the loaders that put it together. Internal to text/.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/added_tokens.h"
#include "pmkvq/text/marked_text.h"
#include "pmkvq/text/normalizer.h"
#include "pmkvq/text/piece_text.h"
#include "pmkvq/text/pre_tokenizer.h"
#include "pmkvq/text/subword_model.h"
#include "pmkvq/text/tokenizer_config.h"
#include "pmkvq/text/vocabulary.h"
#include "pmkvq/text/vocabulary_data.h"

namespace pmkvq {

// Not copied: the model points to the vocabulary.
struct TokenizerParts {
  // Throws InvalidInput: `field` of the token ("id" or "content") is not as expected.
  using FailToken = std::function<void(const char* field, const std::string& expected)>;

  TokenizerParts(std::string source_name, Vocabulary the_vocabulary)
      : source(std::move(source_name)), vocabulary(std::move(the_vocabulary)) {}
  TokenizerParts(const TokenizerParts&) = delete;
  TokenizerParts& operator=(const TokenizerParts&) = delete;

  // An added token with its flags. Every part but `ends` is there already.
  void Add(AddedToken token, const FailToken& fail);
  // A token that is looked for in normalised text and is written as it stands there.
  void AddInNormalizedText(const AddedToken& token);
  // Tokens of tokenizer_config.json that the tokenizer does not have so far.
  void AddFromConfig(const std::vector<ConfigToken>& tokens);
  // Replaces the tokens around a text.
  void SetEnds(const TextEnds& given);

  // Ids of a text; control tokens with a byte in `literal` stay text.
  std::vector<int32_t> Encode(std::string_view text, const std::vector<ByteRange>& literal) const;

  std::string source;  // For errors.
  Vocabulary vocabulary;
  std::unique_ptr<SubwordModel> model;
  Normalizer normalizer;
  PreTokenizer pre_tokenizer;
  std::optional<PieceText> pieces;  // Nothing: byte-level, where tokens are bytes.
  // Pieces: no merge reaches across the beginning of a word (WordEnd).
  bool merges_stay_in_words = false;
  std::vector<int32_t> prefix;  // Before a text, ...
  std::vector<int32_t> suffix;  // ... and behind it.

 private:
  std::vector<ByteRange> NormalizedRanges(std::string_view text, const std::string& normalized,
                                          const std::vector<ByteRange>& ranges) const;
  void EncodePieces(std::string_view text, bool at_start, std::vector<int32_t>* ids) const;

  std::unordered_set<std::string> contents_;             // Of added tokens.
  std::unordered_set<std::string> normalized_contents_;  // Of those in normalised text.
  AddedTokenMatcher raw_matcher_;                        // Searches the text as given.
  AddedTokenMatcher normalized_matcher_;  // Searches the parts between, after normalisation.
};

// Of a tokenizer.json. `config`: tokens of tokenizer_config.json, whose flags count.
std::unique_ptr<TokenizerParts> PartsOfJson(const JsonValue& root,
                                            const std::vector<ConfigToken>& config);
// Of plain data; `source` names it in errors.
std::unique_ptr<TokenizerParts> PartsOfData(const TokenizerData& data, const std::string& source,
                                            const std::vector<ConfigToken>& config);

}  // namespace pmkvq
