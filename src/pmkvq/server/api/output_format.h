// What an answer must look like: JSON, JSON of a schema, a tool call.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "pmkvq/engine/token_mask.h"
#include "pmkvq/io/json.h"
#include "pmkvq/server/api/body_fields.h"
#include "pmkvq/server/grammar/json_grammar.h"
#include "pmkvq/server/grammar/token_grammar.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq::server {

// Where an answer's text begins, and what ends it.
struct AnswerPlace {
  bool starts_in_reasoning = false;  // The prompt ends in an open <think>.
  bool may_reason = false;           // The answer may begin with <think>.
  std::vector<int32_t> end_ids;
};

// Refuses ignore_eos and min_tokens beside a field that says where the text ends.
void RefuseEndFields(BodyFields& body, const char* beside);

// Makes grammars of answers for one model. From any thread.
class OutputFormats {
 public:
  OutputFormats(std::shared_ptr<const Tokenizer> tokenizer, int64_t vocab_size)
      : tokenizer_(std::move(tokenizer)), vocab_size_(vocab_size) {}

  // White space, then the text of rule `start`; behind </think> where there is reasoning.
  std::shared_ptr<const OutputGrammar> Make(std::shared_ptr<JsonGrammar> grammar, int32_t start,
                                            const AnswerPlace& place) const;
  // Of the body's field response_format; null: any text. Throws RefusedRequest.
  std::shared_ptr<const OutputGrammar> OfResponseFormat(BodyFields& body,
                                                        const AnswerPlace& place) const;

 private:
  std::shared_ptr<const TokenTexts> Texts() const;

  std::shared_ptr<const Tokenizer> tokenizer_;
  int64_t vocab_size_;
  mutable std::mutex mutex_;
  mutable std::shared_ptr<const TokenTexts> texts_;  // Made for the first request that needs it.
};

// Adds a schema's rule; what the grammar refuses becomes RefusedRequest (400) about `field`.
int32_t AddSchema(JsonGrammar& grammar, const JsonValue& schema, const std::string& field);

}  // namespace pmkvq::server
