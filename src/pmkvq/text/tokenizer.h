// Text to token ids and back: byte-level BPE, and SentencePiece's BPE with byte fallback.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "pmkvq/text/marked_text.h"

namespace pmkvq {

struct TokenizerData;
struct TokenizerParts;

// Immutable after loading; all methods may be called from several threads.
//
// Of a tokenizer.json: model BPE (merges as "a b" strings or as pairs, ignore_merges,
// byte_fallback), normalizers NFC, Prepend and Replace, pre-tokenizers Split (Regex or String, all
// behaviors) and Digits, any of them in a Sequence; added tokens (special or not, lstrip / rstrip /
// single_word / normalized). Byte-level models have the pre-tokenizer and the decoder ByteLevel,
// those with byte_fallback none or Metaspace, and a decoder of Replace, ByteFallback, Fuse, Strip.
// Of a tokenizer.model: SentencePiece's BPE with byte fallback. Anything else is refused by name.
class Tokenizer {
 public:
  // `path`: a tokenizer.json, a tokenizer.model, or a folder that holds one (the first, where there
  // are both); or a GGUF file, or a folder that holds one and no tokenizer beside it. In a folder,
  // tokenizer_config.json decides about the ends of a text where its tokenizer_class does so in
  // transformers, and about the flags of added tokens (tokenizer_config.h). Throws IoError,
  // InvalidInput, Unsupported.
  static std::shared_ptr<const Tokenizer> Load(const std::string& path);
  // Whether `model`, a folder or a GGUF file, has a tokenizer, loadable or not.
  static bool IsIn(const std::string& model);
  // From the text of a tokenizer.json; `source` names it in errors. The fuzz entry point.
  static std::shared_ptr<const Tokenizer> Parse(std::string_view json, const std::string& source);
  // From plain data (vocabulary_data.h), which is not kept. Throws InvalidInput naming the field of
  // a wrong value, Unsupported for a split pattern of unknown name.
  static std::shared_ptr<const Tokenizer> FromData(const TokenizerData& data,
                                                   const std::string& source);
  ~Tokenizer();

  // Text to ids. Added tokens that occur in the text become their ids when `parse_special`;
  // otherwise control tokens (special ones, and those that look like <|this|>) are ordinary text:
  // what a user typed must not end a turn. Nothing is put before or after.
  // Throws InvalidInput when the text is not valid UTF-8 (with the byte offset).
  std::vector<int32_t> Encode(std::string_view text, bool parse_special = true) const;
  // The same, but special tokens stay ordinary text where a user wrote one of their bytes. Other
  // added tokens are found everywhere. Tokens may reach across the borders of the ranges.
  std::vector<int32_t> Encode(const MarkedText& text) const;

  // A text that no chat template has written: prefix_ids(), Encode(text), suffix_ids(). Ends that
  // the text has already are not put there twice.
  std::vector<int32_t> EncodeWhole(std::string_view text, bool parse_special) const;

  // The ids in front of and behind a single text, e.g. the BOS of Llama 3: by the post_processor of
  // tokenizer.json, or by tokenizer_config.json (see Load). Empty for most.
  const std::vector<int32_t>& prefix_ids() const;
  const std::vector<int32_t>& suffix_ids() const;

  // Ids to the bytes of a whole text. Byte-level: usually valid UTF-8 as a whole; not for arbitrary
  // cuts, see StreamDecoder. With byte fallback: always valid, without the space that SentencePiece
  // puts in front of a text. Special added tokens are left out when `skip_special`. Throws
  // InvalidInput for an unknown id.
  std::string Decode(const std::vector<int32_t>& ids, bool skip_special = false) const;

  // Bytes of one token. Throws InvalidInput for an unknown id.
  std::string TokenBytes(int32_t id) const;
  bool IsSpecial(int32_t id) const;
  bool IsValid(int32_t id) const;  // Has a token; a model may have padded rows beyond.
  // -1 when there is no such token (vocabulary or added).
  int32_t TokenId(std::string_view token) const;
  // Largest id + 1.
  int32_t vocab_size() const;
  // Pieces with byte fallback; otherwise byte-level BPE.
  bool is_sentence_piece() const;

 private:
  explicit Tokenizer(std::unique_ptr<const TokenizerParts> parts);
  void CheckId(int32_t id) const;

  std::unique_ptr<const TokenizerParts> parts_;
  friend class StreamDecoder;
};

// Turns a stream of ids into text that is valid UTF-8 at every step: bytes of a character that is
// not complete yet are held back; bytes that can no longer become one turn into U+FFFD. The steps
// together are Decode of all ids, but for bytes that are no UTF-8: there a byte-level tokenizer's
// Decode gives them as they are, and that of a tokenizer.json with byte fallback gives up the whole
// run of byte tokens.
class StreamDecoder {
 public:
  // `continues_text`: the first id goes on with a text, whose leading space is not dropped.
  explicit StreamDecoder(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special = true,
                         bool continues_text = false);
  // Text that became complete with this token (may be empty).
  std::string Push(int32_t id);
  // What is still held back, as U+FFFD per invalid piece (per byte with byte fallback).
  std::string Finish();

 private:
  std::string Take(bool finish);

  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_;
  std::string pending_;
  size_t spaces_to_drop_;  // 0 once there was other text.
};

}  // namespace pmkvq
