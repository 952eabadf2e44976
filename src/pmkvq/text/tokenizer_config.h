// The part of tokenizer_config.json about tokens: at both ends of a text, and flags of added ones.
// Internal to text/.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/added_tokens.h"

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

// A token that tokenizer_config.json describes. `token.id` is -1 where it has a role only, as
// "bos_token".
struct ConfigToken {
  AddedToken token;
  JsonValue json;          // For errors.
  bool has_flags = false;  // An object; a string names a special token and nothing else.
};

// The entries of "added_tokens_decoder", the tokens with roles (bos_token, eos_token, unk_token,
// sep_token, pad_token, cls_token, mask_token, additional_special_tokens), and of
// added_tokens.json, each content once: the first of these counts. None without the files. As in
// transformers, their flags replace those of tokenizer.json. Throws InvalidInput for values of the
// wrong type.
std::vector<ConfigToken> ReadConfigTokens(const std::string& folder);

// Content and flags of an object; what is absent is as transformers assumes it. No id.
AddedToken ParseTokenFlags(const JsonValue& json);

// Gives `token` the flags that the entry of the same content has.
void ApplyConfig(const std::vector<ConfigToken>& tokens, AddedToken* token);

}  // namespace pmkvq
