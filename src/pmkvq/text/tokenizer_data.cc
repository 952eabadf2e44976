// Makes a tokenizer of plain data (vocabulary_data.h).
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/limits.h"
#include "pmkvq/io/utf8.h"
#include "pmkvq/text/bpe.h"
#include "pmkvq/text/piece_model.h"
#include "pmkvq/text/split_patterns.h"
#include "pmkvq/text/tokenizer_parts.h"

namespace pmkvq {
namespace {

constexpr size_t kMaxQuotedBytes = 80;

// The data of one tokenizer, with checks that name its fields.
class DataReader {
 public:
  DataReader(const TokenizerData& data, const std::string& source) : data_(data), source_(source) {}

  [[noreturn]] void Fail(const std::string& field, const std::string& found,
                         const std::string& expected) const {
    throw InvalidInput(source_, fmt::format("{}{}: found {}, expected {}", data_.field_prefix,
                                            field, found, expected));
  }

  [[noreturn]] void FailToken(size_t id, const std::string& expected) const {
    const std::string_view text = data_.tokens[id].substr(0, kMaxQuotedBytes);
    Fail(fmt::format("tokens[{}]", id),
         fmt::format("\"{}\"", text.substr(0, ValidUtf8Prefix(text))), expected);
  }

  void CheckSizes() const {
    const size_t count = data_.tokens.size();
    const auto check = [&](const char* field, size_t found) {
      if (found == count) return;
      Fail(field, fmt::format("{} values", found), fmt::format("{}, one per token", count));
    };
    if (count == 0) Fail("tokens", "none", "at least one token");
    if (count > limits::kTokens) {
      Fail("tokens", fmt::format("{} tokens", count), fmt::format("at most {}", limits::kTokens));
    }
    if (data_.merges.size() > limits::kMerges) {
      Fail("merges", fmt::format("{} merges", data_.merges.size()),
           fmt::format("at most {}", limits::kMerges));
    }
    if (!data_.types.empty()) check("token_type", data_.types.size());
    if (data_.kind == TokenizerKind::kSentencePieceBpe) check("scores", data_.scores.size());
  }

  void CheckNumbers() const {
    for (size_t i = 0; i < data_.types.size(); ++i) {
      const auto type = static_cast<int32_t>(data_.types[i]);
      if (type < 1 || type > 6) {
        Fail(fmt::format("token_type[{}]", i), fmt::format("{}", type), "1 to 6");
      }
    }
    for (size_t i = 0; i < data_.scores.size(); ++i) {
      if (!std::isfinite(data_.scores[i])) {
        Fail(fmt::format("scores[{}]", i), fmt::format("{}", data_.scores[i]), "a finite number");
      }
    }
    const std::pair<const char*, int32_t> ids[] = {
        {"bos_token_id", data_.bos},     {"eos_token_id", data_.eos},
        {"eot_token_id", data_.eot},     {"eom_token_id", data_.eom},
        {"unknown_token_id", data_.unk}, {"padding_token_id", data_.pad},
    };
    for (const auto& [field, id] : ids) {
      if (id == TokenizerData::kNoId) continue;
      if (id < 0 || static_cast<size_t>(id) >= data_.tokens.size()) {
        Fail(field, fmt::format("{}", id), fmt::format("0 to {}", data_.tokens.size() - 1));
      }
    }
  }

  Vocabulary ReadVocabulary() const {
    const bool bytes = data_.kind == TokenizerKind::kByteLevelBpe;
    size_t num_bytes = 0;
    for (const std::string_view token : data_.tokens) num_bytes += token.size();
    Vocabulary vocabulary(bytes ? TokenAlphabet::kBytes : TokenAlphabet::kPieces,
                          data_.tokens.size(), num_bytes);
    for (size_t i = 0; i < data_.tokens.size(); ++i) {
      const std::string_view token = data_.tokens[i];
      if (ValidUtf8Prefix(token) != token.size()) FailToken(i, "UTF-8");
      const auto result = vocabulary.Insert(token, static_cast<int32_t>(i));
      if (result != Vocabulary::InsertResult::kInserted) {
        FailToken(i, vocabulary.Expected(result));
      }
    }
    return vocabulary;
  }

 private:
  const TokenizerData& data_;
  const std::string& source_;
};

const SplitPatterns& PatternsOf(const TokenizerData& data, const std::string& source) {
  const SplitPatterns* patterns = FindSplitPatterns(data.pre);
  if (patterns != nullptr) return *patterns;
  throw Unsupported(
      source,
      fmt::format("{}pre: found \"{}\", expected one of {}; --tokenizer takes a "
                  "tokenizer.json of the model instead",
                  data.field_prefix, data.pre.substr(0, kMaxQuotedBytes), SplitPatternNames()));
}

void AddByteLevel(const TokenizerData& data, TokenizerParts* parts) {
  const SplitPatterns& patterns = PatternsOf(data, parts->source);
  parts->model =
      std::make_unique<BpeModel>(data.merges, parts->source, data.field_prefix + "merges",
                                 patterns.ignores_merges, &parts->vocabulary);
  if (patterns.nfc) parts->normalizer.AddNfc();
  parts->pre_tokenizer = PreTokenizer(patterns.patterns, parts->source);
}

void AddSentencePiece(const TokenizerData& data, const DataReader& reader, TokenizerParts* parts) {
  const ByteIds byte_ids = FindByteIds(parts->vocabulary);
  const auto missing = std::find(byte_ids.begin(), byte_ids.end(), Vocabulary::kNoToken);
  if (missing != byte_ids.end()) {
    reader.Fail(
        "tokens", "no token for some bytes",
        fmt::format("<0x{:02X}>: a vocabulary with byte fallback", missing - byte_ids.begin()));
  }
  parts->model = std::make_unique<PieceModel>(data.scores, data.types, &parts->vocabulary);
  parts->merges_stay_in_words = !parts->vocabulary.has_inner_mark();
  const bool prefix = data.add_space_prefix.value_or(true);
  if (!data.character_map.empty()) {
    AddedTokenMatcher kept;
    for (size_t id = 0; id < data.types.size(); ++id) {
      if (data.types[id] != TokenType::kUserDefined || data.tokens[id].empty()) continue;
      AddedToken token;
      token.content = data.tokens[id];
      kept.Add(token);
    }
    parts->normalizer.AddCharacterMap(
        CharacterMap(data.character_map, parts->source + ": normalizer_spec.precompiled_charsmap"),
        std::move(kept));
  }
  if (data.removes_extra_spaces) parts->normalizer.AddTrimSpaces();
  if (prefix) parts->normalizer.AddPrefix(" ");
  parts->normalizer.AddReplace(" ", kSpaceMark);
  // SentencePiece drops what looks like a space by now.
  if (data.removes_extra_spaces) parts->normalizer.AddTrimEnd(kSpaceMark);
  parts->pieces = PieceText(data.removes_extra_spaces ? PieceText::kMostStripped : size_t{prefix});
}

// Control and unknown tokens are special; user-defined ones are not. Tokens of other types are
// made of text.
void AddTokens(const TokenizerData& data, const std::vector<ConfigToken>& config,
               const DataReader& reader, TokenizerParts* parts) {
  size_t num_added = 0;
  for (size_t id = 0; id < data.types.size(); ++id) {
    const TokenType type = data.types[id];
    const bool special = type == TokenType::kControl || type == TokenType::kUnknown;
    if ((!special && type != TokenType::kUserDefined) || data.tokens[id].empty()) continue;
    if (++num_added > limits::kAddedTokens) {
      reader.Fail("token_type", "more control and user-defined tokens",
                  fmt::format("at most {}", limits::kAddedTokens));
    }
    AddedToken token;
    token.id = static_cast<int32_t>(id);
    token.content = data.tokens[id];
    token.special = special;
    ApplyConfig(config, &token);
    if (!special && !data.cuts_user_defined) {
      parts->AddInNormalizedText(token);
      continue;
    }
    parts->Add(std::move(token),
               [&](const char*, const std::string& expected) { reader.FailToken(id, expected); });
  }
  parts->AddFromConfig(config);
}

}  // namespace

std::unique_ptr<TokenizerParts> PartsOfData(const TokenizerData& data, const std::string& source,
                                            const std::vector<ConfigToken>& config) {
  const DataReader reader(data, source);
  reader.CheckSizes();
  reader.CheckNumbers();
  auto parts = std::make_unique<TokenizerParts>(source, reader.ReadVocabulary());
  bool adds_bos = true;
  if (data.kind == TokenizerKind::kByteLevelBpe) {
    AddByteLevel(data, parts.get());
    adds_bos = PatternsOf(data, source).adds_bos;
  } else {
    AddSentencePiece(data, reader, parts.get());
  }
  AddTokens(data, config, reader, parts.get());
  const auto end = [&](const char* field, const std::optional<bool>& asked, bool otherwise,
                       int32_t id, std::vector<int32_t>* side) {
    if (!asked.value_or(otherwise)) return;
    if (id != TokenizerData::kNoId) {
      side->push_back(id);
    } else if (asked.has_value()) {
      reader.Fail(field, "none", "the id of a token, since it is to be added to texts");
    }
  };
  end("bos_token_id", data.add_bos, adds_bos, data.bos, &parts->prefix);
  end("eos_token_id", data.add_eos, false, data.eos, &parts->suffix);
  return parts;
}

}  // namespace pmkvq
