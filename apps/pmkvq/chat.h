// The chat loop of `pmkvq run`.
#pragma once

#include <string>
#include <vector>

#include "pmkvq/engine/engine.h"
#include "pmkvq/text/chat_template.h"
#include "prompt_cache.h"
#include "stats_file.h"

namespace pmkvq::cli {

struct ChatOptions {
  std::string system;  // "": no system turn.
  ChatTemplate chat_template;
  // What each answer starts from: sampling, max_tokens, stop, ignore_eos. seed: of the first
  // answer.
  Request request;
  std::string budget_remedy;  // RunOutput::budget_remedy
  PromptCache prompt_cache;   // Read at the start, with the conversation; written at the end.
};

// Reads messages and slash commands until /quit, Ctrl-D, or Ctrl-C at an empty prompt; Ctrl-C
// during an answer ends that answer only. An error that belongs to a message (it does not fit the
// budget) is shown and drops the message. `stats` may be null. Throws Cancelled for Ctrl-C at the
// prompt and for SIGTERM.
void Chat(const ChatOptions& options, Engine& engine, const Tokenizer& tokenizer, StatsFile* stats);

}  // namespace pmkvq::cli
