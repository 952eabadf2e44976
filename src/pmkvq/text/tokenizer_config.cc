#include "pmkvq/text/tokenizer_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <iterator>
#include <string_view>
#include <unordered_map>

#include "pmkvq/io/file.h"
#include "pmkvq/io/limits.h"

namespace pmkvq {
namespace {

struct TokenizerClass {
  std::string_view name;
  bool add_bos;
  std::string_view bos;
  std::string_view eos;
};
constexpr TokenizerClass kRebuildingClasses[] = {
    {"LlamaTokenizer", true, "<s>", "</s>"},
    {"CodeLlamaTokenizer", true, "<s>", "</s>"},
    {"GemmaTokenizer", true, "<bos>", "<eos>"},
    {"CohereTokenizer", true, "<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"},
    {"GPTNeoXTokenizer", false, "<|endoftext|>", "<|endoftext|>"},
};

// Name of the class without "Fast".
std::string ClassName(const std::string& folder, const JsonValue& config) {
  constexpr std::string_view kFast = "Fast";
  if (config.Has("tokenizer_class")) {
    std::string name = config.At("tokenizer_class").AsString();
    if (name.ends_with(kFast)) name.resize(name.size() - kFast.size());
    return name;
  }
  const std::string path = JoinPath(folder, "config.json");
  if (!FileExists(path)) return "";
  const JsonValue type = JsonValue::ParseFile(path).Find("model_type");
  const bool is_llama =
      type.IsString() && (type.AsStringView() == "llama" || type.AsStringView() == "mistral");
  return is_llama ? "LlamaTokenizer" : "";
}

// The token that `key` names. `from` gets its JSON value, for errors; unchanged for the default.
std::string TokenText(const JsonValue& config, const char* key, std::string_view otherwise,
                      std::optional<JsonValue>* from) {
  const JsonValue value = config.Find(key);
  if (value.IsMissing()) return std::string(otherwise);
  if (value.IsNull()) value.Fail("a token, or false for the field that adds it");
  *from = value;
  return value.IsObject() ? value.At("content").AsString() : value.AsString();
}

}  // namespace

std::optional<TextEnds> ReadTextEnds(const std::string& folder) {
  const std::string path = JoinPath(folder, "tokenizer_config.json");
  if (!FileExists(path)) return std::nullopt;
  const JsonValue config = JsonValue::ParseFile(path);
  if (!config.IsObject()) config.Fail("an object");
  const std::string name = ClassName(folder, config);
  const auto* found = std::find_if(std::begin(kRebuildingClasses), std::end(kRebuildingClasses),
                                   [&](const TokenizerClass& each) { return each.name == name; });
  if (found == std::end(kRebuildingClasses)) return std::nullopt;
  TextEnds ends;
  // A token that is null by default leaves nothing to add; one that is null although it is asked
  // for is an error.
  const bool bos_is_null =
      config.Find("bos_token").IsNull() && !config.Find("bos_token").IsMissing();
  if (config.BoolOr("add_bos_token", found->add_bos && !bos_is_null)) {
    ends.bos = TokenText(config, "bos_token", found->bos, &ends.bos_value);
  }
  if (config.BoolOr("add_eos_token", false)) {
    ends.eos = TokenText(config, "eos_token", found->eos, &ends.eos_value);
  }
  return ends;
}

AddedToken ParseTokenFlags(const JsonValue& json) {
  AddedToken token;
  token.id = -1;
  token.content = json.At("content").AsString();
  if (token.content.empty()) json.At("content").Fail("a token that is not empty");
  token.special = json.BoolOr("special", false);
  token.normalized = json.BoolOr("normalized", !token.special);
  token.single_word = json.BoolOr("single_word", false);
  token.lstrip = json.BoolOr("lstrip", false);
  token.rstrip = json.BoolOr("rstrip", false);
  return token;
}

namespace {

constexpr const char* kRoles[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                  "pad_token", "cls_token", "mask_token"};
constexpr int64_t kMaxTokenId = (1 << 22) - 1;

// Collects tokens, each content once.
class ConfigTokens {
 public:
  void AddDecoder(const JsonValue& entries) {
    if (entries.IsNull()) return;
    if (!entries.IsObject()) entries.Fail("an object of ids and tokens");
    CheckCount(entries);
    entries.ForEachMember([&](std::string_view name, const JsonValue& json) {
      int64_t id = -1;
      const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), id);
      if (error != std::errc() || end != name.data() + name.size() || id < 0 || id > kMaxTokenId) {
        entries.Fail(
            fmt::format("ids from 0 to {} as keys, not \"{}\"", kMaxTokenId, name.substr(0, 40)));
      }
      AddedToken token = ParseTokenFlags(json);
      token.id = static_cast<int32_t>(id);
      Add(std::move(token), json, true);
    });
  }

  // A special token: its text, or an object with flags.
  void AddRole(const JsonValue& json) {
    if (json.IsNull()) return;
    AddedToken token;
    token.id = -1;
    if (json.IsObject()) {
      token = ParseTokenFlags(json);
    } else {
      token.content = json.AsString();
    }
    token.special = true;
    // The empty string stands for none in some files.
    if (!token.content.empty()) Add(std::move(token), json, json.IsObject());
  }

  void AddRoles(const JsonValue& list) {
    if (!list.IsArray()) return;
    CheckCount(list);
    for (size_t i = 0; i < list.size(); ++i) AddRole(list.At(i));
  }

  // added_tokens.json: token -> id, the only flags of which are those of the roles.
  void AddIds(const JsonValue& ids) {
    if (!ids.IsObject()) ids.Fail("an object of tokens and ids");
    CheckCount(ids);
    ids.ForEachMember([&](std::string_view name, const JsonValue& json) {
      const auto id = static_cast<int32_t>(json.AsInt(0, kMaxTokenId));
      const auto found = index_.find(std::string(name));
      if (found != index_.end()) {
        int32_t& known = tokens_[found->second].token.id;
        if (known < 0) known = id;
        return;
      }
      AddedToken token;
      token.content = name;
      token.id = id;
      token.normalized = true;
      if (!name.empty()) Add(std::move(token), json, false);
    });
  }

  std::vector<ConfigToken> Take() { return std::move(tokens_); }

 private:
  static void CheckCount(const JsonValue& json) {
    if (json.size() <= limits::kAddedTokens) return;
    json.Fail(fmt::format("at most {} tokens", limits::kAddedTokens));
  }

  void Add(AddedToken token, const JsonValue& json, bool has_flags) {
    if (!index_.emplace(token.content, tokens_.size()).second) return;
    tokens_.push_back({std::move(token), json, has_flags});
  }

  std::vector<ConfigToken> tokens_;
  std::unordered_map<std::string, size_t> index_;  // By content.
};

}  // namespace

std::vector<ConfigToken> ReadConfigTokens(const std::string& folder) {
  ConfigTokens tokens;
  const std::string path = JoinPath(folder, "tokenizer_config.json");
  if (FileExists(path)) {
    const JsonValue config = JsonValue::ParseFile(path);
    if (!config.IsObject()) config.Fail("an object");
    tokens.AddDecoder(config.Find("added_tokens_decoder"));
    for (const char* role : kRoles) tokens.AddRole(config.Find(role));
    tokens.AddRoles(config.Find("additional_special_tokens"));
  }
  const std::string ids = JoinPath(folder, "added_tokens.json");
  if (FileExists(ids)) tokens.AddIds(JsonValue::ParseFile(ids));
  return tokens.Take();
}

void ApplyConfig(const std::vector<ConfigToken>& tokens, AddedToken* token) {
  for (const ConfigToken& each : tokens) {
    if (!each.has_flags || each.token.content != token->content) continue;
    const int32_t id = token->id;
    *token = each.token;
    token->id = id;
    return;
  }
}

}  // namespace pmkvq
