// Vocabularies of tokenizer.json and tokenizer.model files as metadata of GGUF files.
#pragma once

#include <string>
#include <vector>

#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/text/sentencepiece_file.h"
#include "support/gguf_writer.h"

namespace pmkvq::testing_support {

// Tokens, types and merges of a byte-level tokenizer.json; `pre` names its split pattern.
inline void AddByteLevelVocabulary(GgufWriter& writer, const std::string& path,
                                   const std::string& pre) {
  const JsonValue json = JsonValue::ParseFile(path);
  std::vector<std::string> tokens;
  std::vector<int32_t> types;
  const auto put = [&](int64_t id, std::string text, int32_t type) {
    const auto index = static_cast<size_t>(id);
    for (size_t i = tokens.size(); i <= index; ++i) {
      tokens.push_back("[PAD" + std::to_string(i) + "]");
      types.push_back(5);
    }
    tokens[index] = std::move(text);
    types[index] = type;
  };
  json.At("model").At("vocab").ForEachMember(
      [&](std::string_view token, const JsonValue& id) { put(id.AsInt(), std::string(token), 1); });
  const JsonValue added = json.At("added_tokens");
  for (size_t i = 0; i < added.size(); ++i) {
    const JsonValue token = added.At(i);
    put(token.At("id").AsInt(), token.At("content").AsString(),
        token.BoolOr("special", false) ? 3 : 4);
  }
  std::vector<std::string> merges;
  const JsonValue list = json.At("model").At("merges");
  for (size_t i = 0; i < list.size(); ++i) {
    const JsonValue merge = list.At(i);
    merges.push_back(merge.IsString() ? merge.AsString()
                                      : merge.At(0).AsString() + " " + merge.At(1).AsString());
  }
  writer.Text("tokenizer.ggml.model", "gpt2").Text("tokenizer.ggml.pre", pre);
  writer.Texts("tokenizer.ggml.tokens", tokens);
  writer.Array("tokenizer.ggml.token_type", GgufType::kI32, types);
  writer.Texts("tokenizer.ggml.merges", merges);
}

// Pieces, scores and types of a tokenizer.model with the usual ids: <unk>, <s>, </s>.
inline void AddPieces(GgufWriter& writer, const std::string& path) {
  const std::string bytes = ReadFile(path);
  const SentencePieceFile model(bytes, path);
  const TokenizerData& data = model.data();
  writer.Text("tokenizer.ggml.model", "llama").Text("tokenizer.ggml.pre", "default");
  writer.Texts("tokenizer.ggml.tokens", {data.tokens.begin(), data.tokens.end()});
  writer.Array("tokenizer.ggml.scores", GgufType::kF32, data.scores);
  std::vector<int32_t> types;
  for (const TokenType type : data.types) types.push_back(static_cast<int32_t>(type));
  writer.Array("tokenizer.ggml.token_type", GgufType::kI32, types);
  writer.U32("tokenizer.ggml.bos_token_id", 1).U32("tokenizer.ggml.eos_token_id", 2);
  writer.U32("tokenizer.ggml.unknown_token_id", 0);
  writer.Bool("tokenizer.ggml.add_bos_token", true).Bool("tokenizer.ggml.add_eos_token", false);
}

}  // namespace pmkvq::testing_support
