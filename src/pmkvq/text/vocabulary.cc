#include "pmkvq/text/vocabulary.h"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/text/byte_alphabet.h"

namespace pmkvq {

Vocabulary::Vocabulary(const JsonValue& model_vocab) {
  if (!model_vocab.IsObject()) model_vocab.Fail("an object of token strings and ids");
  const std::vector<std::string> tokens = model_vocab.Keys();
  model_ids_.reserve(tokens.size());
  entries_.reserve(tokens.size());
  for (const std::string& token : tokens) {
    const JsonValue value = model_vocab.At(token);
    const auto id = static_cast<int32_t>(value.AsInt(0, kMaxId));
    Entry& entry = EntryOf(id);
    if (entry.present) value.Fail("an id that no other token has");
    // Strings outside of the alphabet cannot come from bytes; they are kept as literal text.
    std::optional<std::string> bytes = AlphabetToBytes(token);
    entry.bytes = bytes ? *std::move(bytes) : token;
    entry.present = true;
    model_ids_.emplace(token, id);
  }
}

void Vocabulary::Add(const AddedToken& token, const JsonValue& json) {
  Entry& entry = EntryOf(token.id);
  if (entry.present && FindInModel(token.content) != token.id) {
    json.At("id").Fail("an id that no other token has");
  }
  if (!added_ids_.emplace(token.content, token.id).second) {
    json.At("content").Fail("a token that was not added before");
  }
  entry = {token.content, true, token.special};
}

Vocabulary::Entry& Vocabulary::EntryOf(int32_t id) {
  const auto index = static_cast<size_t>(id);
  if (index >= entries_.size()) entries_.resize(index + 1);
  return entries_[index];
}

int32_t Vocabulary::FindInModel(std::string_view token) const {
  const auto found = model_ids_.find(token);
  return found == model_ids_.end() ? kNoToken : found->second;
}

int32_t Vocabulary::Find(std::string_view token) const {
  const auto found = added_ids_.find(token);
  return found == added_ids_.end() ? FindInModel(token) : found->second;
}

bool Vocabulary::IsValid(int32_t id) const {
  return id >= 0 && id < size() && entries_[static_cast<size_t>(id)].present;
}

}  // namespace pmkvq
