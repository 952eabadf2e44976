#include "pmkvq/text/gguf_tokenizer.h"

#include <fmt/format.h>

#include <optional>
#include <string_view>
#include <vector>

namespace pmkvq {
namespace {

constexpr char kTokens[] = "tokenizer.ggml.tokens";
constexpr char kTemplate[] = "tokenizer.chat_template";

GgufValue Field(const GgufSet& file, const std::string& name) {
  return file.Find("tokenizer.ggml." + name);
}

TokenizerKind KindOf(const GgufSet& file) {
  const GgufValue model = Field(file, "model");
  const std::string_view name = model.AsString();
  if (name == "gpt2") return TokenizerKind::kByteLevelBpe;
  if (name == "llama") return TokenizerKind::kSentencePieceBpe;
  model.Refuse("gpt2 or llama");
}

std::vector<std::string_view> Texts(const GgufValue& value) {
  std::vector<std::string_view> texts;
  texts.reserve(static_cast<size_t>(value.size()));
  value.ForEachString([&](uint64_t, std::string_view text) { texts.push_back(text); });
  return texts;
}

// The id of a token with a role. Some writers store -1 for none.
int32_t TokenId(const GgufSet& file, const std::string& role) {
  const GgufValue value = Field(file, role + "_token_id");
  constexpr int64_t kNone = 0xffffffff;
  if (value.IsMissing()) return TokenizerData::kNoId;
  const int64_t id = value.AsInt(-1, kNone);
  if (id == -1 || id == kNone) return TokenizerData::kNoId;
  const auto num_tokens = static_cast<int64_t>(file.Find(kTokens).size());
  if (id >= num_tokens) value.Fail(fmt::format("0 to {}", num_tokens - 1));
  return static_cast<int32_t>(id);
}

// "<0x0A>".
bool IsByteToken(std::string_view text) {
  constexpr std::string_view kForm = "<0x00>";
  const auto is_digit = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f');
  };
  return text.size() == kForm.size() && text.starts_with("<0x") && text.ends_with('>') &&
         is_digit(text[3]) && is_digit(text[4]);
}

std::optional<bool> Flag(const GgufSet& file, const std::string& name) {
  const GgufValue value = Field(file, name);
  if (value.IsMissing()) return std::nullopt;
  return value.AsBool();
}

}  // namespace

TokenizerData GgufTokenizerData(const GgufSet& file) {
  TokenizerData data;
  data.kind = KindOf(file);
  data.tokens = Texts(file.Find(kTokens));
  const GgufValue types = Field(file, "token_type");
  if (!types.IsMissing()) {
    types.CheckArray(data.tokens.size(), "integers, one for each token");
    data.types.reserve(data.tokens.size());
    for (uint64_t i = 0; i < types.size(); ++i) {
      data.types.push_back(static_cast<TokenType>(types.IntAt(
          i, static_cast<int64_t>(TokenType::kNormal), static_cast<int64_t>(TokenType::kByte))));
      if (data.kind != TokenizerKind::kSentencePieceBpe) continue;
      if (data.types.back() != TokenType::kByte || IsByteToken(data.tokens[i])) continue;
      file.Find(kTokens).FailAt(i, QuotedText(data.tokens[i]),
                                "a byte, <0x00> to <0xFF>, as its type says");
    }
  }
  if (data.kind == TokenizerKind::kSentencePieceBpe) {
    const GgufValue scores = Field(file, "scores");
    scores.CheckArray(data.tokens.size(), "f32, one for each token");
    data.scores.reserve(data.tokens.size());
    for (uint64_t i = 0; i < scores.size(); ++i) data.scores.push_back(scores.FloatAt(i));
  } else {
    data.merges = Texts(Field(file, "merges"));
    const GgufValue pre = Field(file, "pre");
    data.pre = pre.AsString();
  }
  data.bos = TokenId(file, "bos");
  data.eos = TokenId(file, "eos");
  data.eot = TokenId(file, "eot");
  data.eom = TokenId(file, "eom");
  data.unk = TokenId(file, "unknown");
  data.pad = TokenId(file, "padding");
  data.add_bos = Flag(file, "add_bos_token");
  data.add_eos = Flag(file, "add_eos_token");
  data.add_space_prefix = Flag(file, "add_space_prefix");
  return data;
}

std::string GgufChatTemplate(const GgufSet& file, const std::string& name) {
  const GgufValue value =
      file.Find(name.empty() ? std::string(kTemplate) : fmt::format("{}.{}", kTemplate, name));
  return value.IsMissing() ? "" : std::string(value.AsString());
}

std::string GgufSpecialToken(const GgufSet& file, const std::string& role) {
  const GgufValue id = Field(file, role + "_token_id");
  const GgufValue tokens = file.Find(kTokens);
  if (id.IsMissing() || !tokens.IsArray()) return "";
  constexpr int64_t kMost = 0xffffffff;
  const int64_t wanted = id.AsInt(-1, kMost);
  std::string text;
  tokens.ForEachString([&](uint64_t index, std::string_view token) {
    if (static_cast<int64_t>(index) == wanted) text = token;
  });
  return text;
}

}  // namespace pmkvq
