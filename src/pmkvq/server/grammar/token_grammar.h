// Which tokens may be drawn next, where the text follows a grammar.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/engine/token_mask.h"
#include "pmkvq/server/grammar/grammar.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq::server {

// The tokens of a vocabulary, in an order in which those with the same beginning are neighbours.
// Immutable.
class TokenTexts {
 public:
  TokenTexts(const Tokenizer& tokenizer, int64_t vocab_size);

  struct Token {
    std::string bytes;  // Not empty.
    int32_t id = 0;
    size_t shared = 0;  // Leading bytes that the token before has, too.
  };
  // Without special ones and those without bytes.
  const std::vector<Token>& tokens() const { return tokens_; }
  // "" for tokens that are not among them.
  std::string_view BytesOf(int32_t id) const {
    const int32_t place = places_[static_cast<size_t>(id)];
    return place < 0 ? std::string_view() : tokens_[static_cast<size_t>(place)].bytes;
  }
  int64_t vocab_size() const { return vocab_size_; }

 private:
  std::vector<Token> tokens_;    // By bytes.
  std::vector<int32_t> places_;  // In tokens_, by id; -1: not there.
  int64_t vocab_size_;
};

// What a request's text must look like. Immutable; shared by the request's samples.
class TokenGrammar : public OutputGrammar {
 public:
  struct Options {
    // The grammar holds behind this text: "</think>". "": from the first token on.
    std::string starts_behind;
    // A token that may be the first one, and leads to a text in front of the grammar's, as above:
    // "<think>" of models that decide by themselves whether to think. -1: none.
    int32_t opening_id = -1;
    std::vector<int32_t> end_ids;  // Of which one is drawn where the text may end.
  };
  // `start`: the grammar's rule for the whole text.
  TokenGrammar(std::shared_ptr<const Grammar> grammar, int32_t start,
               std::shared_ptr<const TokenTexts> texts, Options options);

  std::unique_ptr<TokenMask> Start() const override;

 private:
  class Mask;
  std::shared_ptr<const Grammar> grammar_;
  int32_t start_;
  std::shared_ptr<const TokenTexts> texts_;
  Options options_;
};

}  // namespace pmkvq::server
