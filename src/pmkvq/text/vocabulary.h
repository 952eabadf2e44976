// Ids, token strings and the bytes that they stand for. Internal to text/.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/added_tokens.h"

namespace pmkvq {

// What the token strings of a vocabulary are written in.
enum class TokenAlphabet {
  kBytes,   // Byte-level BPE: each character is a byte (byte_alphabet.h).
  kPieces,  // SentencePiece: text with U+2581 for a space; <0x0A> is a byte.
};

class Vocabulary {
 public:
  static constexpr int32_t kNoToken = -1;
  // Ids index arrays, so a wrong file must not be able to ask for gigabytes: besides this bound,
  // an id is below 4 x the number of tokens + 65536.
  static constexpr int32_t kMaxId = (1 << 22) - 1;
  static constexpr size_t kMaxTokenBytes = size_t{1} << 14;

  // Empty; `num_tokens` and `num_bytes` (of all strings) are what the following Inserts bring.
  Vocabulary(TokenAlphabet alphabet, size_t num_tokens, size_t num_bytes);
  // `model_vocab`: the object "model.vocab", token string -> id. Throws InvalidInput for ids that
  // are out of range or used twice, for strings that are too long, and for more than
  // limits::kTokens. With pieces, also for an id below the largest one that no token has, unless it
  // is in `added` (ids of added tokens, in any order).
  Vocabulary(const JsonValue& model_vocab, TokenAlphabet alphabet,
             const std::vector<int32_t>& added);

  enum class InsertResult { kInserted, kIdIsTaken, kRepeated, kTooLong, kIdTooLarge };
  // A token of the model, valid UTF-8. Empty tokens are never found, and may be repeated.
  [[nodiscard]] InsertResult Insert(std::string_view token, int32_t id);
  // What a value should have been for a result other than kInserted.
  std::string Expected(InsertResult result) const;

  // An added token, whose content is literal text. It may have the id of the equal token string of
  // the model. kIdIsTaken and kRepeated are the conflicts.
  [[nodiscard]] InsertResult Add(const AddedToken& token);

  // Another text for an added token, which is not special any more. Find knows the first one.
  void Respell(int32_t id, std::string_view text);

  // Id of a token string as the file writes it: in the model's vocabulary, ...
  int32_t FindInModel(std::string_view token) const;
  // ... or among the added tokens first and then there. kNoToken when there is none.
  int32_t Find(std::string_view token) const;
  // Id of the model's token for these bytes of a text. With pieces: as FindInModel.
  int32_t FindBytes(std::string_view bytes) const { return FindHashed(bytes, false); }

  // Whether the model's token `id`, which need not be valid, is written as those of two valid ids
  // one after the other.
  bool IsJoined(int32_t id, int32_t left, int32_t right) const;

  bool IsValid(int32_t id) const;
  // The following need a valid id.
  std::string_view Bytes(int32_t id) const;  // With pieces: the piece. Valid as long as this is.
  bool IsSpecial(int32_t id) const { return entries_[static_cast<size_t>(id)].special; }

  TokenAlphabet alphabet() const { return alphabet_; }
  // Largest id + 1.
  int32_t size() const { return static_cast<int32_t>(entries_.size()); }
  // Whether a token of the model has U+2581 behind another character. Where none has, no merge
  // reaches across the beginning of a word.
  bool has_inner_mark() const { return has_inner_mark_; }
  // Of the model's tokens, in bytes of text.
  size_t longest() const { return longest_; }

 private:
  // Where the bytes of a token lie in bytes_.
  struct Entry {
    uint32_t offset = 0;
    uint32_t length = 0;
    bool present = false;
    bool special = false;
    bool added = false;    // Its bytes are in added_bytes_.
    bool literal = false;  // Its string in the file was not of the byte alphabet.
  };
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const { return std::hash<std::string_view>()(text); }
  };
  using Ids = std::unordered_map<std::string, int32_t, Hash, std::equal_to<>>;

  size_t IdBound() const { return 4 * num_tokens_ + 65536; }
  // Null for an id far beyond the number of tokens.
  Entry* EntryOf(int32_t id);
  std::string_view ModelBytes(const Entry& entry) const;
  // A token of the model by the hash of its bytes. The tag is a part of the hash by which most
  // other tokens are told apart without a look at their bytes.
  struct Slot {
    uint32_t tag = 0;
    int32_t id = kNoToken;  // kNoToken: empty.
  };
  // The slot of a token of the model's vocabulary, or the empty one where it belongs.
  size_t SlotOf(std::string_view bytes, bool literal, uint32_t* tag) const;
  int32_t FindHashed(std::string_view bytes, bool literal) const {
    uint32_t tag = 0;
    return slots_[SlotOf(bytes, literal, &tag)].id;
  }

  TokenAlphabet alphabet_;
  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<Slot> slots_;
  size_t num_tokens_ = 0;
  size_t longest_ = 0;
  bool has_inner_mark_ = false;
  Ids added_ids_;
  std::unordered_map<int32_t, std::string> added_bytes_;
};

}  // namespace pmkvq
