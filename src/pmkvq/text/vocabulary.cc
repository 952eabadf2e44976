#include "pmkvq/text/vocabulary.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/text/byte_alphabet.h"
#include "pmkvq/text/subword_model.h"

namespace pmkvq {
namespace {

// Bytes of all member names, which is all that the vocabulary stores.
size_t NumBytes(const JsonValue& vocab) {
  size_t num_bytes = 0;
  vocab.ForEachMember([&](std::string_view token, const JsonValue&) { num_bytes += token.size(); });
  return num_bytes;
}

size_t CheckedSize(const JsonValue& vocab) {
  if (!vocab.IsObject()) vocab.Fail("an object of token strings and ids");
  if (vocab.size() > limits::kTokens) vocab.Fail(fmt::format("at most {} tokens", limits::kTokens));
  return vocab.size();
}

}  // namespace

Vocabulary::Vocabulary(TokenAlphabet alphabet, size_t num_tokens, size_t num_bytes)
    : alphabet_(alphabet), num_tokens_(num_tokens) {
  bytes_.reserve(num_bytes);
  entries_.reserve(num_tokens_);
  slots_.resize(num_tokens_ * 10 / 7 + 1);
}

Vocabulary::Vocabulary(const JsonValue& model_vocab, TokenAlphabet alphabet,
                       const std::vector<int32_t>& added)
    : Vocabulary(alphabet, CheckedSize(model_vocab), NumBytes(model_vocab)) {
  model_vocab.ForEachMember([&](std::string_view token, const JsonValue& value) {
    const InsertResult result = Insert(token, static_cast<int32_t>(value.AsInt(0, kMaxId)));
    if (result == InsertResult::kInserted) return;
    if (result == InsertResult::kTooLong) {
      throw InvalidInput(value.Where(), fmt::format("found a token of {} bytes, expected {}",
                                                    token.size(), Expected(result)));
    }
    value.Fail(Expected(result));
  });
  if (alphabet_ != TokenAlphabet::kPieces) return;
  std::vector<int32_t> others = added;
  std::sort(others.begin(), others.end());
  for (int32_t id = 0; id < size(); ++id) {
    if (IsValid(id) || std::binary_search(others.begin(), others.end(), id)) continue;
    model_vocab.Fail(fmt::format("a token for every id below {}, but none has {}", size(), id));
  }
}

Vocabulary::InsertResult Vocabulary::Insert(std::string_view token, int32_t id) {
  if (token.size() > kMaxTokenBytes) return InsertResult::kTooLong;
  Entry* entry = EntryOf(id);
  if (entry == nullptr) return InsertResult::kIdTooLarge;
  if (entry->present) return InsertResult::kIdIsTaken;
  entry->offset = static_cast<uint32_t>(bytes_.size());
  entry->present = true;
  // Strings outside of the byte alphabet cannot come from bytes; they are kept as literal text.
  if (alphabet_ != TokenAlphabet::kBytes || !AppendAlphabetBytes(token, &bytes_)) {
    entry->literal = alphabet_ == TokenAlphabet::kBytes;
    bytes_ += token;
  }
  entry->length = static_cast<uint32_t>(bytes_.size() - entry->offset);
  if (alphabet_ == TokenAlphabet::kPieces) {
    has_inner_mark_ |= WordEnd(token, 0) != token.size();
  }
  longest_ = std::max<size_t>(longest_, entry->length);
  if (token.empty()) return InsertResult::kInserted;
  uint32_t tag = 0;
  const size_t slot = SlotOf(ModelBytes(*entry), entry->literal, &tag);
  if (slots_[slot].id != kNoToken) return InsertResult::kRepeated;
  slots_[slot] = {tag, id};
  return InsertResult::kInserted;
}

std::string Vocabulary::Expected(InsertResult result) const {
  switch (result) {
    case InsertResult::kIdIsTaken:
      return "an id that no other token has";
    case InsertResult::kTooLong:
      return fmt::format("tokens of at most {} bytes", kMaxTokenBytes);
    case InsertResult::kIdTooLarge:
      return fmt::format("an id below {} (4 x {} tokens + 65536)", IdBound(), num_tokens_);
    case InsertResult::kInserted:
    case InsertResult::kRepeated:
      break;
  }
  return "a token that was not there before";
}

Vocabulary::InsertResult Vocabulary::Add(const AddedToken& token) {
  if (token.content.size() > kMaxTokenBytes) return InsertResult::kTooLong;
  Entry* entry = EntryOf(token.id);
  if (entry == nullptr) return InsertResult::kIdTooLarge;
  if (entry->present && FindInModel(token.content) != token.id) return InsertResult::kIdIsTaken;
  if (!added_ids_.emplace(token.content, token.id).second) return InsertResult::kRepeated;
  entry->present = true;
  entry->special = token.special;
  entry->added = true;
  added_bytes_[token.id] = token.content;
  return InsertResult::kInserted;
}

void Vocabulary::Respell(int32_t id, std::string_view text) {
  entries_[static_cast<size_t>(id)].special = false;
  added_bytes_[id] = text;
}

Vocabulary::Entry* Vocabulary::EntryOf(int32_t id) {
  const auto index = static_cast<size_t>(id);
  if (index >= IdBound()) return nullptr;
  if (index >= entries_.size()) entries_.resize(index + 1);
  return &entries_[index];
}

std::string_view Vocabulary::ModelBytes(const Entry& entry) const {
  return std::string_view(bytes_).substr(entry.offset, entry.length);
}

std::string_view Vocabulary::Bytes(int32_t id) const {
  const Entry& entry = entries_[static_cast<size_t>(id)];
  return entry.added ? added_bytes_.at(id) : ModelBytes(entry);
}

size_t Vocabulary::SlotOf(std::string_view bytes, bool literal, uint32_t* tag) const {
  __extension__ using Wide = unsigned __int128;
  const uint64_t hash = std::hash<std::string_view>()(bytes);
  *tag = static_cast<uint32_t>(hash);  // The slot is made of the upper half.
  auto slot = static_cast<size_t>(static_cast<Wide>(hash) * slots_.size() >> 64);
  while (slots_[slot].id != kNoToken) {
    if (slots_[slot].tag == *tag) {
      const Entry& entry = entries_[static_cast<size_t>(slots_[slot].id)];
      if (entry.literal == literal && ModelBytes(entry) == bytes) break;
    }
    slot = slot + 1 == slots_.size() ? 0 : slot + 1;
  }
  return slot;
}

int32_t Vocabulary::FindInModel(std::string_view token) const {
  if (alphabet_ == TokenAlphabet::kPieces) return FindBytes(token);
  std::string bytes;
  const bool literal = !AppendAlphabetBytes(token, &bytes);
  return FindHashed(literal ? token : std::string_view(bytes), literal);
}

bool Vocabulary::IsJoined(int32_t id, int32_t left, int32_t right) const {
  if (!IsValid(id)) return false;
  const Entry& joined = entries_[static_cast<size_t>(id)];
  const Entry& first = entries_[static_cast<size_t>(left)];
  const Entry& second = entries_[static_cast<size_t>(right)];
  if (joined.length != first.length + second.length) return false;
  if (joined.literal != first.literal || joined.literal != second.literal) return false;
  const std::string_view bytes = ModelBytes(joined);
  return bytes.starts_with(ModelBytes(first)) && bytes.ends_with(ModelBytes(second));
}

int32_t Vocabulary::Find(std::string_view token) const {
  const auto found = added_ids_.find(token);
  return found == added_ids_.end() ? FindInModel(token) : found->second;
}

bool Vocabulary::IsValid(int32_t id) const {
  return id >= 0 && id < size() && entries_[static_cast<size_t>(id)].present;
}

}  // namespace pmkvq
