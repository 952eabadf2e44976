// Bodies of requests as plain data. No HTTP, no engine thread: text, ids and fields only.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "pmkvq/engine/engine.h"
#include "pmkvq/server/api/generation_fields.h"
#include "pmkvq/server/api/output_format.h"
#include "pmkvq/server/api/tool_calls.h"
#include "pmkvq/text/chat_template.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq::server {

// Special tokens of a tokenizer that calls are written with.
std::vector<std::pair<int32_t, std::string>> ToolTokens(const Tokenizer& tokenizer);

// What requests are read with; immutable, shared by all threads.
struct ApiContext {
  std::vector<std::string> model_names;  // The first one is the name in replies.
  std::shared_ptr<const Tokenizer> tokenizer;
  ChatTemplate chat_template;
  bool parses_reasoning = false;  // Text before </think> is reasoning.
  SamplingDefaults defaults;
  int64_t vocab_size = 0;
  std::vector<int32_t> eos_ids;
  std::shared_ptr<const OutputFormats> formats;
  ToolFormat tool_format = ToolFormat::kNone;
  // Special tokens that calls are written with: they are in no text, but calls are read with them.
  std::vector<std::pair<int32_t, std::string>> tool_tokens;
  int64_t max_len = 0;  // Prompt and output together.
  bool strict = false;  // Unknown fields are refused.
  PoolFields pool;
  bool keeps_prompt_texts = false;  // For the log.
};

// A prompt as "echo" gives it back.
struct EchoedPrompt {
  std::string text;
  size_t num_added = 0;  // Tokens in front of those of the text: BOS.
};

// A completion of either kind, ready for the engine: `prompts` times n choices.
struct CompletionRequest {
  bool is_chat = false;
  bool is_response = false;  // A chat's request by way of /v1/responses.
  GenerationFields fields;
  std::vector<std::vector<int32_t>> prompts;     // Not empty.
  int64_t num_logprobs = -1;                     // -1: none.
  int64_t num_prompt_logprobs = -1;              // The field prompt_logprobs; -1: none.
  std::vector<EchoedPrompt> echo;                // One of each prompt; empty without "echo".
  bool starts_in_reasoning = false;              // The prompt ends in an open <think>.
  std::shared_ptr<const OutputGrammar> grammar;  // Of the answer; null: any text.
  ToolFormat tool_format = ToolFormat::kNone;    // Of calls in the answer; kNone: none are read.
  std::string answer_begin;                      // What the prompt ends in, and belongs to a call.
  std::vector<std::string> unknown_fields;
  std::vector<std::string> prompt_texts;  // For the log, where that has content; else empty.

  // max_tokens is 0: the prompts only. The engine draws one token, which is in no reply.
  bool is_prompt_only() const { return fields.max_tokens == 0; }
  // The engine's request for a prompt, without its seed.
  Request EngineRequest(size_t prompt) const;
};

// The body of POST /v1/chat/completions and /v1/completions. They throw RefusedRequest.
CompletionRequest ReadChatRequest(std::string_view body, const ApiContext& context);
CompletionRequest ReadTextRequest(std::string_view body, const ApiContext& context);

// The ids for POST /tokenize, and whether pieces are wanted too.
struct TokenizeRequest {
  std::vector<int32_t> ids;
  bool with_pieces = false;
};
TokenizeRequest ReadTokenizeRequest(std::string_view body, const ApiContext& context);
// The text for POST /detokenize.
std::string ReadDetokenizeRequest(std::string_view body, const ApiContext& context);
// The prompt for POST /apply-template.
MarkedText ReadTemplateRequest(std::string_view body, const ApiContext& context);

}  // namespace pmkvq::server
