// A tokenizer as plain data: what a GGUF file says in its metadata (tokenizer.ggml.*), or a
// tokenizer.model. Tokenizer::FromData makes a tokenizer of it; no file format is known here.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace pmkvq {

enum class TokenizerKind {
  kByteLevelBpe,      // "gpt2": tokens in the byte alphabet, merges by rank, a named split pattern.
  kSentencePieceBpe,  // "llama": pieces with U+2581 for a space, merged by score; byte tokens
                      // <0x00> to <0xFF>.
};

// The numbers of token_type in GGUF, which are those of SentencePiece.
enum class TokenType : int32_t {
  kNormal = 1,
  kUnknown = 2,
  kControl = 3,
  kUserDefined = 4,
  kUnused = 5,
  kByte = 6,
};

// The texts that the views point to need to live until FromData returns.
struct TokenizerData {
  static constexpr int32_t kNoId = -1;

  TokenizerKind kind = TokenizerKind::kByteLevelBpe;
  std::vector<std::string_view> tokens;  // By id.
  std::vector<TokenType> types;          // One per token; empty: all are normal.
  std::vector<float> scores;             // SentencePiece: one per token, higher ones merge first.
  std::vector<std::string_view> merges;  // Byte-level: "a b", in order of rank.
  // Byte-level: the name of the split pattern ("llama-bpe", "qwen2", ...). SentencePiece: ignored.
  std::string pre;

  // Ids of tokens with a role; kNoId: the file names none.
  int32_t bos = kNoId;
  int32_t eos = kNoId;
  int32_t eot = kNoId;  // End of a turn.
  int32_t eom = kNoId;  // End of a message.
  int32_t unk = kNoId;
  int32_t pad = kNoId;

  // Absent: as llama.cpp assumes it. BOS: SentencePiece, and patterns of models that were trained
  // with it; EOS: never; the space in front: SentencePiece.
  std::optional<bool> add_bos;
  std::optional<bool> add_eos;
  std::optional<bool> add_space_prefix;

  // User-defined tokens (type 4) are cut out of the text as it is given, and text behind
  // them starts anew: GGUF. Otherwise they are found after spaces became U+2581, and the text
  // around them is one: a tokenizer.model.
  bool cuts_user_defined = true;
  // tokenizer.model: what characters become first (character_map.h); empty: nothing changes.
  std::string_view character_map;
  // tokenizer.model: runs of spaces become one, and those at both ends of a text are dropped.
  bool removes_extra_spaces = false;

  // Names the fields in errors: "<prefix>tokens[5]".
  std::string field_prefix = "tokenizer.ggml.";
};

}  // namespace pmkvq
