// Where a model keeps its templates and special tokens.
#include <fmt/format.h>

#include <array>
#include <optional>
#include <utility>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/gguf/gguf_file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/text/chat_template.h"
#include "pmkvq/text/gguf_tokenizer.h"

namespace pmkvq {
namespace {

constexpr std::array<const char*, 7> kSpecialTokens = {
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"};

std::optional<JsonValue> ReadJson(const std::string& folder, const std::string& file) {
  const std::string path = JoinPath(folder, file);
  if (!FileExists(path)) return std::nullopt;
  return JsonValue::ParseFile(path);
}

struct Source {
  std::string jinja;
  std::string name;  // For errors.
};

std::optional<Source> FromFile(const std::string& path) {
  if (!FileExists(path)) return std::nullopt;
  return Source{ReadFile(path), path};
}

// A template of tokenizer_config.json; `name` empty for its default one.
std::optional<Source> FromConfig(const std::string& folder, const std::string& name) {
  const std::optional<JsonValue> config = ReadJson(folder, "tokenizer_config.json");
  if (!config || !config->Has("chat_template")) return std::nullopt;
  const JsonValue value = config->At("chat_template");
  if (!value.IsArray()) {
    if (!name.empty()) return std::nullopt;
    return Source{value.AsString(), value.Where()};
  }
  for (size_t i = 0; i < value.size(); ++i) {
    const JsonValue item = value.At(i);
    if (item.At("name").AsString() != (name.empty() ? "default" : name)) continue;
    return Source{item.At("template").AsString(), item.At("template").Where()};
  }
  if (name.empty()) value.Fail("a template named \"default\"");
  return std::nullopt;
}

std::optional<Source> FromGguf(const std::string& model, const std::string& name) {
  const std::string path = FindGgufFile(model);
  if (path.empty()) return std::nullopt;
  std::string jinja = GgufChatTemplate(GgufSet::Open(path), name);
  if (jinja.empty()) return std::nullopt;
  return Source{std::move(jinja),
                path + ": tokenizer.chat_template" + (name.empty() ? "" : "." + name)};
}

// Files beside a GGUF file come before what is in it.
std::optional<Source> FindSource(const std::string& folder, const std::string& name) {
  // A name is one part of a path, never a way out of the folder.
  if (name.find('/') != std::string::npos || name.starts_with('.')) return std::nullopt;
  const std::string file =
      name.empty() ? "chat_template.jinja" : "additional_chat_templates/" + name + ".jinja";
  const std::optional<Source> own = FromFile(JoinPath(folder, file));
  if (own) return own;
  const std::optional<Source> in_config = FromConfig(folder, name);
  return in_config ? in_config : FromGguf(folder, name);
}

void SetSpecialTokensOfGguf(const std::string& path, ChatTemplate* chat_template) {
  const GgufSet file = GgufSet::Open(path);
  constexpr std::pair<const char*, const char*> kRoles[] = {{"bos_token", "bos"},
                                                            {"eos_token", "eos"},
                                                            {"unk_token", "unknown"},
                                                            {"pad_token", "padding"}};
  for (const auto& [name, role] : kRoles) {
    const std::string text = GgufSpecialToken(file, role);
    if (!text.empty()) chat_template->SetSpecialToken(name, text);
  }
}

}  // namespace

void SetSpecialTokensOf(const std::string& folder, ChatTemplate* chat_template) {
  const std::string gguf = FindGgufFile(folder);
  if (!gguf.empty()) SetSpecialTokensOfGguf(gguf, chat_template);
  const std::optional<JsonValue> config = ReadJson(folder, "tokenizer_config.json");
  const std::optional<JsonValue> map = ReadJson(folder, "special_tokens_map.json");
  for (const char* name : kSpecialTokens) {
    for (const std::optional<JsonValue>& json : {config, map}) {
      if (!json || !json->Has(name)) continue;
      const JsonValue token = json->At(name);
      chat_template->SetSpecialToken(
          name, token.IsObject() ? token.At("content").AsString() : token.AsString());
      break;
    }
  }
}

bool HasChatTemplate(const std::string& folder, const std::string& name) {
  return FindSource(folder, name).has_value();
}

ChatTemplate LoadChatTemplate(const std::string& folder, const std::string& name) {
  const std::optional<Source> source = FindSource(folder, name);
  if (!source && !name.empty()) {
    throw InvalidInput(folder, fmt::format("has no chat_template named \"{}\"", name));
  }
  ChatTemplate result;
  if (source) result = ChatTemplate::FromJinja(source->jinja, source->name);
  SetSpecialTokensOf(folder, &result);
  return result;
}

ChatTemplate FindChatTemplate(const std::string& folder, const std::string& name,
                              const std::string& what) {
  if (name == "none") return {};
  if (HasChatTemplate(folder, name)) return LoadChatTemplate(folder, name);
  ChatTemplate result;
  if (ChatTemplate::IsBuiltIn(name)) {
    result = ChatTemplate::BuiltIn(name);
  } else if (FileExists(name)) {
    result = ChatTemplate::FromJinja(ReadFile(name), name);
  } else {
    throw InvalidInput(what, fmt::format("found \"{}\", expected none, a Jinja file, a template of "
                                         "the model, or one of {}",
                                         name, ChatTemplate::BuiltInNames()));
  }
  SetSpecialTokensOf(folder, &result);
  return result;
}

}  // namespace pmkvq
