// Pieces of SentencePiece back to text. Internal to text/.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/io/json.h"

namespace pmkvq {

// How the pieces of one vocabulary are read.
class PieceText {
 public:
  // As SentencePiece does it: U+2581 is a space, and `num_stripped` at the beginning of a text are
  // dropped; not those that byte tokens spell.
  explicit PieceText(size_t num_stripped);
  // The "decoder" of a tokenizer.json: a Sequence of Replace (of a string), ByteFallback, Fuse and
  // Strip (of spaces at the beginning), in this order. Throws Unsupported for anything else.
  explicit PieceText(const JsonValue& json);

  // The bytes of one piece.
  std::string BytesOf(std::string_view piece) const;
  // A whole text of pieces. Bytes of byte tokens that are no UTF-8 become U+FFFD, one each; by a
  // tokenizer.json all of a run of byte tokens, if one of them is wrong.
  std::string Decode(const std::vector<std::string_view>& pieces) const;

  static constexpr size_t kMostStripped = size_t{1} << 20;
  size_t num_stripped() const { return num_stripped_; }
  // Whether a text that begins with this piece keeps all of its spaces.
  bool KeepsSpaces(std::string_view piece) const;

 private:
  void Add(const JsonValue& json);

  enum class Stage { kReplace, kBytes, kFuse, kStrip };
  std::vector<std::pair<std::string, std::string>> replaced_;
  size_t num_stripped_ = 0;
  bool is_json_ = false;
  Stage stage_ = Stage::kReplace;  // While loading.
};

// Appends `bytes`, with U+FFFD for each byte that belongs to no whole character.
void AppendValid(std::string_view bytes, std::string* text);

}  // namespace pmkvq
