// Writes a tokenizer.model: the message ModelProto of SentencePiece, field by field.
#pragma once

#include <fmt/format.h>

#include <bit>
#include <cstdint>
#include <string>
#include <string_view>

#include "pmkvq/text/vocabulary_data.h"

namespace pmkvq::testing_support {

class ProtoWriter {
 public:
  ProtoWriter& Number(uint32_t field, uint64_t value) {
    Varint(field << 3);
    Varint(value);
    return *this;
  }
  ProtoWriter& Bytes(uint32_t field, std::string_view value) {
    Varint(field << 3 | 2);
    Varint(value.size());
    bytes_ += value;
    return *this;
  }
  ProtoWriter& Float(uint32_t field, float value) {
    Varint(field << 3 | 5);
    const auto bits = std::bit_cast<uint32_t>(value);
    for (int shift = 0; shift < 32; shift += 8) bytes_ += static_cast<char>(bits >> shift & 255);
    return *this;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void Varint(uint64_t value) {
    for (; value >= 0x80; value >>= 7) bytes_ += static_cast<char>((value & 0x7f) | 0x80);
    bytes_ += static_cast<char>(value);
  }

  std::string bytes_;
};

// A valid model, of which a test replaces the parts it is about. Ids 0 to 2 are <unk>, <s>, </s>,
// then come the bytes, then what Piece adds.
class SmallSentencePiece {
 public:
  SmallSentencePiece() {
    Piece("<unk>", 0, TokenType::kUnknown);
    Piece("<s>", 0, TokenType::kControl);
    Piece("</s>", 0, TokenType::kControl);
    for (int byte = 0; byte < 256; ++byte) {
      Piece(fmt::format("<0x{:02X}>", byte), 0, TokenType::kByte);
    }
  }

  static constexpr int32_t kFirstByte = 3;
  static constexpr int32_t kFirstPiece = 259;

  SmallSentencePiece& Piece(std::string_view text, float score,
                            TokenType type = TokenType::kNormal) {
    ProtoWriter piece;
    piece.Bytes(1, text).Float(2, score).Number(3, static_cast<uint64_t>(type));
    pieces_.Bytes(1, piece.bytes());
    return *this;
  }

  uint64_t model_type = 2;
  bool byte_fallback = true;
  bool whitespace_as_suffix = false;
  std::string character_map;
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = false;

  std::string Bytes() const {
    ProtoWriter trainer;
    trainer.Number(3, model_type).Number(24, whitespace_as_suffix).Number(35, byte_fallback);
    ProtoWriter normalizer;
    normalizer.Bytes(1, "identity").Bytes(2, character_map).Number(3, add_dummy_prefix);
    normalizer.Number(4, remove_extra_whitespaces).Number(5, 1);
    ProtoWriter rest;
    rest.Bytes(3, normalizer.bytes()).Bytes(2, trainer.bytes());
    return pieces_.bytes() + rest.bytes();
  }

 private:
  ProtoWriter pieces_;
};

}  // namespace pmkvq::testing_support
