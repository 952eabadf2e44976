#include "pmkvq/text/tokenizer.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/text/gguf_tokenizer.h"
#include "pmkvq/text/sentencepiece_file.h"
#include "pmkvq/text/tokenizer_config.h"
#include "pmkvq/text/tokenizer_parts.h"

namespace pmkvq {
namespace {

bool StartsWith(const std::vector<int32_t>& ids, const std::vector<int32_t>& prefix) {
  return ids.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), ids.begin());
}

bool EndsWith(const std::vector<int32_t>& ids, const std::vector<int32_t>& suffix) {
  return ids.size() >= suffix.size() && std::equal(suffix.rbegin(), suffix.rend(), ids.rbegin());
}

// A tokenizer.json or a tokenizer.model, by its first byte that is no white space: a ModelProto
// begins with a field number and a length.
std::unique_ptr<TokenizerParts> LoadFile(const std::string& path,
                                         const std::vector<ConfigToken>& config) {
  if (path.ends_with(".json")) return PartsOfJson(JsonValue::ParseFile(path), config);
  std::string content = ReadFile(path);
  const size_t first = content.find_first_not_of(" \t\r\n");
  if (first != std::string::npos && content[first] == '{') {
    return PartsOfJson(JsonValue::ParseOwned(std::move(content), path), config);
  }
  const SentencePieceFile file(content, path);
  return PartsOfData(file.data(), path, config);
}

// Some converters store the whole tokenizer.json, too, which says more.
constexpr char kWholeJson[] = "tokenizer.huggingface.json";

std::unique_ptr<TokenizerParts> LoadGguf(const std::string& path) {
  const GgufSet file = GgufSet::Open(path);
  const GgufValue json = file.Find(kWholeJson);
  if (!json.IsMissing()) return PartsOfJson(JsonValue::Parse(json.AsString(), json.Where()), {});
  return PartsOfData(GgufTokenizerData(file), path, {});
}

bool IsInGguf(const std::string& path) {
  const GgufSet file = GgufSet::Open(path);
  return !file.Find(kWholeJson).IsMissing() || !file.Find("tokenizer.ggml.model").IsMissing();
}

bool HasTokenizerFile(const std::string& folder) {
  return FileExists(JoinPath(folder, "tokenizer.json")) ||
         FileExists(JoinPath(folder, "tokenizer.model"));
}

}  // namespace

Tokenizer::Tokenizer(std::unique_ptr<const TokenizerParts> parts) : parts_(std::move(parts)) {}
Tokenizer::~Tokenizer() = default;

bool Tokenizer::IsIn(const std::string& model) {
  if (HasTokenizerFile(model)) return true;
  const std::string gguf = FindGgufFile(model);
  return !gguf.empty() && IsInGguf(gguf);
}

std::shared_ptr<const Tokenizer> Tokenizer::Load(const std::string& path) {
  const std::string gguf = HasTokenizerFile(path) ? "" : FindGgufFile(path);
  if (!gguf.empty()) return std::shared_ptr<const Tokenizer>(new Tokenizer(LoadGguf(gguf)));
  if (!std::filesystem::is_directory(path)) {
    return std::shared_ptr<const Tokenizer>(new Tokenizer(LoadFile(path, {})));
  }
  const std::string json = JoinPath(path, "tokenizer.json");
  const std::string model = JoinPath(path, "tokenizer.model");
  const bool has_model_only = !FileExists(json) && FileExists(model);
  std::unique_ptr<TokenizerParts> parts =
      LoadFile(has_model_only ? model : json, ReadConfigTokens(path));
  const std::optional<TextEnds> ends = ReadTextEnds(path);
  if (ends.has_value()) parts->SetEnds(*ends);
  return std::shared_ptr<const Tokenizer>(new Tokenizer(std::move(parts)));
}

std::shared_ptr<const Tokenizer> Tokenizer::Parse(std::string_view json,
                                                  const std::string& source) {
  return std::shared_ptr<const Tokenizer>(
      new Tokenizer(PartsOfJson(JsonValue::Parse(json, source), {})));
}

std::shared_ptr<const Tokenizer> Tokenizer::FromData(const TokenizerData& data,
                                                     const std::string& source) {
  return std::shared_ptr<const Tokenizer>(new Tokenizer(PartsOfData(data, source, {})));
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool parse_special) const {
  if (parse_special || text.empty()) return parts_->Encode(text, {});
  return parts_->Encode(text, {{0, text.size()}});
}

std::vector<int32_t> Tokenizer::Encode(const MarkedText& text) const {
  return parts_->Encode(text.text, text.input);
}

std::vector<int32_t> Tokenizer::EncodeWhole(std::string_view text, bool parse_special) const {
  std::vector<int32_t> ids = Encode(text, parse_special);
  if (!StartsWith(ids, prefix_ids())) {
    ids.insert(ids.begin(), prefix_ids().begin(), prefix_ids().end());
  }
  if (!EndsWith(ids, suffix_ids())) {
    ids.insert(ids.end(), suffix_ids().begin(), suffix_ids().end());
  }
  return ids;
}

bool Tokenizer::is_sentence_piece() const { return parts_->pieces.has_value(); }

const std::vector<int32_t>& Tokenizer::prefix_ids() const { return parts_->prefix; }
const std::vector<int32_t>& Tokenizer::suffix_ids() const { return parts_->suffix; }

void Tokenizer::CheckId(int32_t id) const {
  if (IsValid(id)) return;
  throw InvalidInput(parts_->source,
                     fmt::format("id {}: no such token, expected less than {}", id, vocab_size()));
}

std::string Tokenizer::Decode(const std::vector<int32_t>& ids, bool skip_special) const {
  std::string text;
  std::vector<std::string_view> pieces;
  for (const int32_t id : ids) {
    CancelPoint();
    CheckId(id);
    if (skip_special && IsSpecial(id)) continue;
    const std::string_view bytes = parts_->vocabulary.Bytes(id);
    if (parts_->pieces.has_value()) {
      pieces.push_back(bytes);
    } else {
      text += bytes;
    }
  }
  return parts_->pieces.has_value() ? parts_->pieces->Decode(pieces) : text;
}

std::string Tokenizer::TokenBytes(int32_t id) const {
  CheckId(id);
  const std::string_view bytes = parts_->vocabulary.Bytes(id);
  return parts_->pieces.has_value() ? parts_->pieces->BytesOf(bytes) : std::string(bytes);
}

bool Tokenizer::IsSpecial(int32_t id) const {
  return IsValid(id) && parts_->vocabulary.IsSpecial(id);
}

bool Tokenizer::IsValid(int32_t id) const { return parts_->vocabulary.IsValid(id); }

int32_t Tokenizer::TokenId(std::string_view token) const { return parts_->vocabulary.Find(token); }

int32_t Tokenizer::vocab_size() const { return parts_->vocabulary.size(); }

}  // namespace pmkvq
