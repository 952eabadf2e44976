#include "pmkvq/text/tokenizer_config.h"

#include <algorithm>
#include <iterator>
#include <string_view>

#include "pmkvq/io/file.h"

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

}  // namespace pmkvq
