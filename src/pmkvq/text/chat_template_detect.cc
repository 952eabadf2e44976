// Which family a Jinja template belongs to. A template is recognised by what sets its output
// apart from that of its relatives; one that only looks similar must be refused, because a prompt
// in a slightly wrong form makes a model worse without any sign of it.
#include <fmt/format.h>

#include <initializer_list>
#include <optional>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "pmkvq/text/chat_template.h"

namespace pmkvq {
namespace {

// Jinja text in which the escape \n inside strings is a real newline, so that both ways of writing
// one look the same.
std::string Unescape(std::string_view jinja) {
  std::string text;
  for (size_t i = 0; i < jinja.size(); ++i) {
    if (jinja.substr(i, 2) == "\\n") {
      text += '\n';
      ++i;
    } else {
      text += jinja[i];
    }
  }
  return text;
}

class Recogniser {
 public:
  explicit Recogniser(std::string_view jinja) : text_(Unescape(jinja)) {}

  std::optional<ChatFormat> Format() const {
    if (HasAll({"<｜User｜>", "<｜Assistant｜>"})) return Deepseek();
    if (HasAll({"<|start_header_id|>", "<|eot_id|>"})) return Llama3();
    if (HasAll({"<|im_start|>", "<|im_end|>"})) return Chatml();
    return std::nullopt;
  }

 private:
  bool Has(std::string_view part) const { return text_.find(part) != std::string::npos; }

  bool HasAll(std::initializer_list<std::string_view> parts) const {
    for (const std::string_view part : parts) {
      if (!Has(part)) return false;
    }
    return true;
  }

  bool HasAny(std::initializer_list<std::string_view> parts) const {
    for (const std::string_view part : parts) {
      if (Has(part)) return true;
    }
    return false;
  }

  // R1 and its distillations drop earlier thinking; V3 has none, V3.1 switches it by a variable.
  std::optional<ChatFormat> Deepseek() const {
    if (!Has("split('</think>')[-1]") || Has("thinking is defined")) return std::nullopt;
    return ChatFormat::kDeepseekR1;
  }

  std::optional<ChatFormat> Llama3() const {
    if (Has("Cutting Knowledge Date: December 2023")) return ChatFormat::kLlama31;
    // Llama 3's own is one loop over all messages.
    if (HasAny({"You are ", "tool", "== 'system'"})) return std::nullopt;
    return ChatFormat::kLlama3;
  }

  std::optional<ChatFormat> Chatml() const {
    const bool opens_thinking = Has("<|im_start|>assistant\n<think>\n");
    if (Has("last_query_index")) {
      // The thinking-only and the instruct-only successors of Qwen3 lack the switch.
      if (opens_thinking || !Has("enable_thinking is false")) return std::nullopt;
      return ChatFormat::kQwen3;
    }
    if (Has("You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")) {
      if (Has("</think>")) return std::nullopt;
      return ChatFormat::kQwen25;
    }
    // Other default system turns.
    if (HasAny({"You are a ", "You are Qwen", "Please reason"})) return std::nullopt;
    if (Has("split('</think>')[-1].lstrip('\n')")) {
      if (!opens_thinking) return std::nullopt;
      return ChatFormat::kQwq;
    }
    // Plain ChatML is one loop over all messages that treats every role alike.
    if (HasAny({"system", "tool", "</think>", "raise_exception"})) return std::nullopt;
    return opens_thinking ? ChatFormat::kLongcot : ChatFormat::kChatml;
  }

  std::string text_;
};

std::string BosTokenOf(const JsonValue& config) {
  const JsonValue bos = config.Find("bos_token");
  if (bos.IsNull()) return "";
  return bos.IsObject() ? bos.At("content").AsString() : bos.AsString();
}

// The Jinja text of a tokenizer_config.json, if it has one.
std::optional<std::string> TemplateOf(const JsonValue& config) {
  const JsonValue value = config.Find("chat_template");
  if (value.IsNull()) return std::nullopt;
  if (!value.IsArray()) return value.AsString();
  for (size_t i = 0; i < value.size(); ++i) {
    const JsonValue item = value.At(i);
    if (item.At("name").AsString() == "default") return item.At("template").AsString();
  }
  value.Fail("a template named \"default\"");
}

std::optional<JsonValue> ReadConfig(const std::string& folder) {
  const std::string path = JoinPath(folder, "tokenizer_config.json");
  if (!FileExists(path)) return std::nullopt;
  return JsonValue::ParseFile(path);
}

}  // namespace

ChatTemplate RecogniseChatTemplate(std::string_view jinja, const std::string& bos_token,
                                   const std::string& source) {
  const std::optional<ChatFormat> format = Recogniser(jinja).Format();
  if (!format) {
    throw Unsupported(source,
                      "chat_template is of no family that is known here; choose one with "
                      "--chat-template, or none");
  }
  return {*format, bos_token};
}

ChatTemplate DetectChatTemplate(const std::string& folder) {
  const std::optional<JsonValue> config = ReadConfig(folder);
  const std::string bos_token = config ? BosTokenOf(*config) : "";
  const std::string jinja_path = JoinPath(folder, "chat_template.jinja");
  if (FileExists(jinja_path)) {
    return RecogniseChatTemplate(ReadFile(jinja_path), bos_token, jinja_path);
  }
  const std::optional<std::string> jinja = config ? TemplateOf(*config) : std::nullopt;
  if (!jinja) return {ChatFormat::kNone, bos_token};
  return RecogniseChatTemplate(*jinja, bos_token, JoinPath(folder, "tokenizer_config.json"));
}

std::string ReadBosToken(const std::string& folder) {
  const std::optional<JsonValue> config = ReadConfig(folder);
  return config ? BosTokenOf(*config) : "";
}

}  // namespace pmkvq
