// The SentencePiece vocabulary of tests/golden/tokenizers/mistral-v1 in all its forms.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "pmkvq/io/file.h"
#include "pmkvq/text/sentencepiece_file.h"
#include "pmkvq/text/tokenizer.h"

namespace pmkvq::testing_support {

inline std::string MistralPath(const std::string& name) {
  return std::string(PMKVQ_SOURCE_DIR) + "/tests/golden/tokenizers/mistral-v1/" + name;
}

inline void Replace(const std::string& from, const std::string& to, std::string* text) {
  for (size_t at = text->find(from); at != std::string::npos; at = text->find(from, at)) {
    text->replace(at, from.size(), to);
    at += to.size();
  }
}

// Replaces one top-level field of a tokenizer.json by another value; both as text.
inline void SetField(const std::string& field, const std::string& old_value,
                     const std::string& value, std::string* json) {
  const std::string old_text = "\"" + field + "\":" + old_value;
  const size_t at = json->find(old_text);
  if (at != std::string::npos) json->replace(at, old_text.size(), "\"" + field + "\":" + value);
}

// Replaces what stands between the fields `field` and `next` of the file by `value`.
inline void SetValueBefore(const std::string& field, const std::string& next,
                           const std::string& value, std::string* json) {
  const std::string name = "\"" + field + "\":";
  const size_t begin = json->find(name) + name.size();
  const size_t end = json->find(",\"" + next + "\":", begin);
  json->replace(begin, end - begin, value);
}

constexpr char kLegacyNormalizer[] =
    R"({"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"▁"},{"type":"Replace","pattern":{"String":" "},"content":"▁"}]})";

// "legacy" as the file is; "legacy_normalized", whose added tokens are normalised;
// "metaspace_first" and so on.
inline std::string MistralJson(const std::string& form) {
  std::string json = ReadFile(MistralPath("tokenizer.json"));
  const std::string metaspace = "metaspace_";
  if (form == "legacy_normalized") {
    Replace(R"("normalized":false)", R"("normalized":true)", &json);
  } else if (form.starts_with(metaspace)) {
    SetField("normalizer", kLegacyNormalizer, "null", &json);
    SetField("pre_tokenizer", "null",
             R"({"type":"Metaspace","replacement":"▁","prepend_scheme":")" +
                 form.substr(metaspace.size()) + R"(","split":false})",
             &json);
  }
  return json;
}

// The same as data of a GGUF file: tokens, scores and types of its tokenizer.model.
inline std::shared_ptr<const Tokenizer> MistralFromData() {
  const std::string path = MistralPath("tokenizer.model");
  const std::string bytes = ReadFile(path);
  const SentencePieceFile file(bytes, path);
  TokenizerData data = file.data();
  data.cuts_user_defined = true;
  data.field_prefix = TokenizerData().field_prefix;
  return Tokenizer::FromData(data, "x.gguf");
}

}  // namespace pmkvq::testing_support
