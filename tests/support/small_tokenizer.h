// The text of a small, valid tokenizer.json, of which a test replaces the parts it is about.
#pragma once

#include <string>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/byte_alphabet.h"

namespace pmkvq::testing_support {

// Tokens 0 .. 255 are the bytes. All other parts are JSON texts.
struct SmallTokenizer {
  std::vector<std::string> tokens;  // Ids from 256 on, in the byte alphabet.
  std::string merges = "[]";
  std::string model_fields;  // More members of "model", each with a comma after it.
  std::string added_tokens = "[]";
  std::string normalizer = R"({"type":"NFC"})";
  std::string pre_tokenizer =
      R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":false,"use_regex":true})";
  std::string post_processor = "null";
  std::string decoder = R"({"type":"ByteLevel"})";

  std::string Json() const {
    JsonWriter vocab;
    vocab.BeginObject();
    for (int byte = 0; byte < 256; ++byte) {
      const char character = static_cast<char>(byte);
      vocab.Key(BytesToAlphabet({&character, 1})).Int(byte);
    }
    for (size_t i = 0; i < tokens.size(); ++i) {
      vocab.Key(tokens[i]).Int(static_cast<int64_t>(256 + i));
    }
    vocab.EndObject();
    return R"({"version":"1.0","added_tokens":)" + added_tokens + R"(,"normalizer":)" + normalizer +
           R"(,"pre_tokenizer":)" + pre_tokenizer + R"(,"post_processor":)" + post_processor +
           R"(,"decoder":)" + decoder + R"(,"model":{"type":"BPE",)" + model_fields +
           R"("vocab":)" + vocab.text() + R"(,"merges":)" + merges + "}}";
  }
};

}  // namespace pmkvq::testing_support
