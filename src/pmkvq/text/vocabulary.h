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

class Vocabulary {
 public:
  static constexpr int32_t kNoToken = -1;
  // Ids index arrays, so a wrong file must not be able to ask for gigabytes: besides this bound,
  // an id is below 4 x the number of tokens + 65536.
  static constexpr int32_t kMaxId = (1 << 22) - 1;

  // `model_vocab`: the object "model.vocab", token string -> id, strings in the byte alphabet.
  // Throws InvalidInput for ids that are out of range or used twice, and for more than
  // limits::kTokens.
  explicit Vocabulary(const JsonValue& model_vocab);

  // An added token, whose content is literal text. It may have the id of the equal token string of
  // the model; `json` (its entry) is named in the InvalidInput for other conflicts.
  void Add(const AddedToken& token, const JsonValue& json);

  // Id of a token string as the file writes it: in the model's vocabulary, ...
  int32_t FindInModel(std::string_view token) const;
  // ... or among the added tokens first and then there. kNoToken when there is none.
  int32_t Find(std::string_view token) const;

  bool IsValid(int32_t id) const;
  // The following need a valid id.
  std::string_view Bytes(int32_t id) const;  // Valid as long as the vocabulary.
  bool IsSpecial(int32_t id) const { return entries_[static_cast<size_t>(id)].special; }

  // Largest id + 1.
  int32_t size() const { return static_cast<int32_t>(entries_.size()); }

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

  // `value` is named in the InvalidInput for an id far beyond the number of tokens.
  Entry& EntryOf(int32_t id, const JsonValue& value);
  std::string_view ModelBytes(const Entry& entry) const;
  // The slot of a token of the model's vocabulary, or the empty one where it belongs.
  size_t SlotOf(std::string_view bytes, bool literal) const;

  std::string bytes_;
  std::vector<Entry> entries_;
  std::vector<int32_t>
      slots_;  // Ids of the model's tokens by hash of their bytes; kNoToken: empty.
  size_t num_tokens_ = 0;
  Ids added_ids_;
  std::unordered_map<int32_t, std::string> added_bytes_;
};

}  // namespace pmkvq
