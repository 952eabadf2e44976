// Reads tokenizer.json.
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/text/bpe.h"
#include "pmkvq/text/tokenizer_parts.h"

namespace pmkvq {
namespace {

constexpr size_t kMaxEndTokens = 64;  // Before or after a text.

AddedToken ParseAddedToken(const JsonValue& json) {
  AddedToken token = ParseTokenFlags(json);
  token.id = static_cast<int32_t>(json.At("id").AsInt(0, Vocabulary::kMaxId));
  return token;
}

void CheckVersion(const JsonValue& root) {
  if (!root.Has("version")) return;
  const JsonValue version = root.At("version");
  if (version.AsString() != "1.0") {
    throw Unsupported(version.Where(), fmt::format("found {}, expected 1.0", version.Dump()));
  }
}

// ByteLevel, alone or as the only part of a Sequence.
void CheckByteLevelDecoder(const JsonValue& json) {
  const std::string type = json.At("type").AsString();
  if (type == "ByteLevel") return;
  if (type == "Sequence") {
    const JsonValue parts = json.At("decoders");
    if (parts.IsArray() && parts.size() == 1) return CheckByteLevelDecoder(parts.At(size_t{0}));
    throw Unsupported(parts.Where(),
                      fmt::format("found {} parts, expected ByteLevel only", parts.size()));
  }
  throw Unsupported(json.Where(), fmt::format("found \"{}\", expected ByteLevel", type));
}

// Ids that are put before and after a text.
struct Ends {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};

// Those of a TemplateProcessing, around its sequence "A".
Ends TemplateEnds(const JsonValue& json) {
  const JsonValue parts = json.At("single");
  if (!parts.IsArray()) parts.Fail("an array");
  Ends ends;
  bool has_sequence = false;
  for (size_t i = 0; i < parts.size(); ++i) {
    const JsonValue part = parts.At(i);
    if (part.Has("Sequence") && !has_sequence) {
      has_sequence = true;
    } else if (part.Has("SpecialToken")) {
      const std::string name = part.At("SpecialToken").At("id").AsString();
      const JsonValue ids = json.At("special_tokens").At(name).At("ids");
      if (!ids.IsArray()) ids.Fail("an array of ids");
      std::vector<int32_t>& side = has_sequence ? ends.suffix : ends.prefix;
      for (size_t k = 0; k < ids.size(); ++k) {
        side.push_back(static_cast<int32_t>(ids.At(k).AsInt(0, Vocabulary::kMaxId)));
      }
      if (side.size() > kMaxEndTokens) ids.Fail(fmt::format("at most {} ids", kMaxEndTokens));
    } else {
      throw Unsupported(part.Where(), fmt::format("found {}, expected special tokens around one "
                                                  "sequence",
                                                  part.Dump().substr(0, 80)));
    }
  }
  return ends;
}

Ends EndsOf(const JsonValue& json) {
  if (json.IsNull()) return {};
  const std::string type = json.At("type").AsString();
  if (type == "ByteLevel") return {};  // Changes offsets only.
  if (type == "TemplateProcessing") return TemplateEnds(json);
  if (type != "Sequence") {
    throw Unsupported(
        json.Where(),
        fmt::format("found \"{}\", expected ByteLevel, TemplateProcessing or Sequence", type));
  }
  const JsonValue parts = json.At("processors");
  if (!parts.IsArray()) parts.Fail("an array");
  Ends ends;
  for (size_t i = 0; i < parts.size(); ++i) {
    // A later processor puts its tokens around those of the earlier ones.
    const Ends outer = EndsOf(parts.At(i));
    ends.prefix.insert(ends.prefix.begin(), outer.prefix.begin(), outer.prefix.end());
    ends.suffix.insert(ends.suffix.end(), outer.suffix.begin(), outer.suffix.end());
    if (ends.prefix.size() + ends.suffix.size() > kMaxEndTokens) {
      parts.Fail(fmt::format("at most {} special tokens", kMaxEndTokens));
    }
  }
  return ends;
}

// Byte-level, or pieces with byte fallback.
TokenAlphabet AlphabetOf(const JsonValue& root) {
  const JsonValue model = root.At("model");
  const JsonValue type = model.Find("type");
  if (!type.IsNull() && type.AsString() != "BPE") type.Refuse("BPE");
  if (!model.BoolOr("byte_fallback", false)) return TokenAlphabet::kBytes;
  const JsonValue decoder = root.At("decoder");
  if (decoder.Find("type").IsString() && decoder.At("type").AsString() == "ByteLevel") {
    model.At("byte_fallback").Refuse("false beside a ByteLevel decoder");
  }
  return TokenAlphabet::kPieces;
}

JsonValue AddedTokensOf(const JsonValue& root) {
  const JsonValue tokens = root.Find("added_tokens");
  if (tokens.IsNull()) return tokens;
  if (!tokens.IsArray()) tokens.Fail("an array");
  if (tokens.size() > limits::kAddedTokens) {
    tokens.Fail(fmt::format("at most {} added tokens", limits::kAddedTokens));
  }
  return tokens;
}

std::vector<int32_t> IdsOf(const JsonValue& added_tokens) {
  std::vector<int32_t> ids;
  for (size_t i = 0; i < added_tokens.size(); ++i) {
    ids.push_back(static_cast<int32_t>(added_tokens.At(i).At("id").AsInt(0, Vocabulary::kMaxId)));
  }
  return ids;
}

}  // namespace

std::unique_ptr<TokenizerParts> PartsOfJson(const JsonValue& root,
                                            const std::vector<ConfigToken>& config) {
  if (!root.IsObject()) root.Fail("an object");
  CheckVersion(root);
  const TokenAlphabet alphabet = AlphabetOf(root);
  const bool byte_level = alphabet == TokenAlphabet::kBytes;
  const JsonValue model = root.At("model");
  const JsonValue added = AddedTokensOf(root);
  auto parts = std::make_unique<TokenizerParts>(
      root.Where(), Vocabulary(model.At("vocab"), alphabet, IdsOf(added)));
  parts->model = std::make_unique<BpeModel>(model, &parts->vocabulary);
  parts->normalizer = Normalizer(root.Find("normalizer"));
  parts->pre_tokenizer = PreTokenizer(root.Find("pre_tokenizer"), byte_level);
  if (byte_level) {
    CheckByteLevelDecoder(root.At("decoder"));
  } else {
    parts->pieces = PieceText(root.At("decoder"));
    parts->merges_stay_in_words =
        !parts->vocabulary.has_inner_mark() && !model.BoolOr("ignore_merges", false);
  }
  for (size_t i = 0; i < added.size(); ++i) {
    const JsonValue json = added.At(i);
    AddedToken token = ParseAddedToken(json);
    ApplyConfig(config, &token);
    parts->Add(std::move(token), [&](const char* field, const std::string& expected) {
      json.At(field).Fail(expected);
    });
  }
  parts->AddFromConfig(config);
  Ends ends = EndsOf(root.Find("post_processor"));
  for (const std::vector<int32_t>* side : {&ends.prefix, &ends.suffix}) {
    for (const int32_t id : *side) {
      if (!parts->vocabulary.IsValid(id)) {
        root.At("post_processor").Fail(fmt::format("no unknown id {}", id));
      }
    }
  }
  parts->prefix = std::move(ends.prefix);
  parts->suffix = std::move(ends.suffix);
  return parts;
}

}  // namespace pmkvq
