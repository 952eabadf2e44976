// The tokenizer and the chat template that a GGUF file holds in its metadata.
#pragma once

#include <memory>
#include <string>

#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/text/vocabulary_data.h"

namespace pmkvq {

// What tokenizer.ggml.* says, as plain data that points into `file`; nothing is checked that
// Tokenizer::FromData checks. Throws InvalidInput naming the key for missing arrays and values of
// wrong types, Unsupported for models other than gpt2 and llama.
TokenizerData GgufTokenizerData(const GgufSet& file);

// The template of that name (tokenizer.chat_template.NAME; empty: the default one), or "".
std::string GgufChatTemplate(const GgufSet& file, const std::string& name);

// The text of the token whose id is tokenizer.ggml.ROLE_token_id ("bos", "eos", "unknown",
// "padding"), or "" where the file names none, or none of the vocabulary.
std::string GgufSpecialToken(const GgufSet& file, const std::string& role);

}  // namespace pmkvq
