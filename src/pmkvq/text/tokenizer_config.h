// The part of tokenizer_config.json about tokens at both ends of a text. Internal to text/.
#pragma once

#include <optional>
#include <string>

#include "pmkvq/io/json.h"

namespace pmkvq {

// Tokens that the tokenizer class of transformers puts around a text, in place of those of the
// post_processor of tokenizer.json. Empty: none.
struct TextEnds {
  std::string bos;
  std::string eos;
  // Where the texts come from, for errors; nothing: the default of the class, which counts only
  // when the vocabulary has the token.
  std::optional<JsonValue> bos_value;
  std::optional<JsonValue> eos_value;
};

// Reads `folder`/tokenizer_config.json. Nothing when there is no such file, or when its class
// leaves the post_processor alone.
//
// LlamaTokenizer, CodeLlamaTokenizer, GemmaTokenizer, CohereTokenizer and GPTNeoXTokenizer (with
// and without "Fast") replace it, as in transformers 4: add_bos_token (absent: true; GPTNeoX false)
// and add_eos_token (absent: false) decide, bos_token and eos_token (a string or an object with
// "content"; absent: the default of the class) name the tokens. transformers 5 ignores both keys
// where tokenizer.json is there; the models were trained and evaluated with version 4. Without
// tokenizer_class, model_type "llama" or "mistral" of config.json stands for LlamaTokenizer.
// Throws InvalidInput for values of the wrong type, and for add_bos_token: true with a null token.
std::optional<TextEnds> ReadTextEnds(const std::string& folder);

}  // namespace pmkvq
