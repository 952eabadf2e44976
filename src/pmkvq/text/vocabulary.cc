#include "pmkvq/text/vocabulary.h"

#include <fmt/format.h>

#include <optional>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/text/byte_alphabet.h"

namespace pmkvq {
namespace {

// The bytes that a token string of a file spells. Strings outside of the alphabet cannot come
// from bytes; they are kept as literal text.
std::string BytesOf(std::string_view token, bool* literal) {
  std::optional<std::string> bytes = AlphabetToBytes(token);
  *literal = !bytes.has_value();
  return bytes ? *std::move(bytes) : std::string(token);
}

}  // namespace

Vocabulary::Vocabulary(const JsonValue& model_vocab) {
  if (!model_vocab.IsObject()) model_vocab.Fail("an object of token strings and ids");
  num_tokens_ = model_vocab.size();
  if (num_tokens_ > limits::kTokens) {
    model_vocab.Fail(fmt::format("at most {} tokens", limits::kTokens));
  }
  size_t num_bytes = 0;
  model_vocab.ForEachMember(
      [&](std::string_view token, const JsonValue&) { num_bytes += token.size(); });
  bytes_.reserve(num_bytes);
  entries_.reserve(num_tokens_);
  slots_.assign(num_tokens_ * 10 / 7 + 1, kNoToken);
  model_vocab.ForEachMember([&](std::string_view token, const JsonValue& value) {
    const auto id = static_cast<int32_t>(value.AsInt(0, kMaxId));
    Entry& entry = EntryOf(id, value);
    if (entry.present) value.Fail("an id that no other token has");
    bool literal = false;
    const std::string bytes = BytesOf(token, &literal);
    const size_t slot = SlotOf(bytes, literal);
    entry.offset = static_cast<uint32_t>(bytes_.size());
    entry.length = static_cast<uint32_t>(bytes.size());
    entry.present = true;
    entry.literal = literal;
    bytes_ += bytes;
    slots_[slot] = id;
  });
}

void Vocabulary::Add(const AddedToken& token, const JsonValue& json) {
  Entry& entry = EntryOf(token.id, json.At("id"));
  if (entry.present && FindInModel(token.content) != token.id) {
    json.At("id").Fail("an id that no other token has");
  }
  if (!added_ids_.emplace(token.content, token.id).second) {
    json.At("content").Fail("a token that was not added before");
  }
  entry.present = true;
  entry.special = token.special;
  entry.added = true;
  added_bytes_[token.id] = token.content;
}

Vocabulary::Entry& Vocabulary::EntryOf(int32_t id, const JsonValue& value) {
  const auto index = static_cast<size_t>(id);
  const size_t bound = 4 * num_tokens_ + 65536;
  if (index >= bound) {
    value.Fail(fmt::format("an id below {} (4 x {} tokens + 65536)", bound, num_tokens_));
  }
  if (index >= entries_.size()) entries_.resize(index + 1);
  return entries_[index];
}

std::string_view Vocabulary::ModelBytes(const Entry& entry) const {
  return std::string_view(bytes_).substr(entry.offset, entry.length);
}

std::string_view Vocabulary::Bytes(int32_t id) const {
  const Entry& entry = entries_[static_cast<size_t>(id)];
  return entry.added ? added_bytes_.at(id) : ModelBytes(entry);
}

size_t Vocabulary::SlotOf(std::string_view bytes, bool literal) const {
  __extension__ using Wide = unsigned __int128;
  const uint64_t hash = std::hash<std::string_view>()(bytes);
  auto slot = static_cast<size_t>(static_cast<Wide>(hash) * slots_.size() >> 64);
  while (slots_[slot] != kNoToken) {
    const Entry& entry = entries_[static_cast<size_t>(slots_[slot])];
    if (entry.literal == literal && ModelBytes(entry) == bytes) break;
    slot = slot + 1 == slots_.size() ? 0 : slot + 1;
  }
  return slot;
}

int32_t Vocabulary::FindInModel(std::string_view token) const {
  bool literal = false;
  const std::string bytes = BytesOf(token, &literal);
  return slots_[SlotOf(bytes, literal)];
}

int32_t Vocabulary::Find(std::string_view token) const {
  const auto found = added_ids_.find(token);
  return found == added_ids_.end() ? FindInModel(token) : found->second;
}

bool Vocabulary::IsValid(int32_t id) const {
  return id >= 0 && id < size() && entries_[static_cast<size_t>(id)].present;
}

}  // namespace pmkvq
