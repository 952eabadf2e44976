// Chat prompts: a conversation, rendered by the Jinja template of the model (text/jinja/template.h
// lists the known part of Jinja).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pmkvq/io/json.h"
#include "pmkvq/text/marked_text.h"

namespace pmkvq {

namespace jinja {
class Template;
struct Date;
}  // namespace jinja

struct ChatMessage {
  std::string role;  // "system", "user", "assistant", or another role of the template.
  std::string content;
  // More members for the template: tool_calls, tool_call_id, name. Null: none.
  std::shared_ptr<const JsonValue> more = nullptr;
};

// Immutable but for its setters; cheap to copy. Render may be called from several threads.
class ChatTemplate {
 public:
  // No template: the prompt is the contents of the messages, one after the other.
  ChatTemplate() = default;
  // From Jinja text; `source` names it in errors. Throws InvalidInput or Unsupported with the line.
  static ChatTemplate FromJinja(std::string_view jinja, const std::string& source);
  // A template that comes with this library: chatml, qwen2.5, qwq, qwen3, deepseek-r1, llama3,
  // llama3.1, longcot. They have no tools. Throws InvalidInput listing the names for others.
  static ChatTemplate BuiltIn(std::string_view name);
  static bool IsBuiltIn(std::string_view name);
  static std::string BuiltInNames();

  bool IsNone() const { return template_ == nullptr; }
  // The Jinja text; "" for none.
  std::string Text() const { return text_ == nullptr ? "" : *text_; }

  // A special token that templates know as a variable: "bos_token", "eos_token", ...
  void SetSpecialToken(const std::string& name, const std::string& text);
  // The text that was set last under `name`; "" for none.
  std::string SpecialToken(std::string_view name) const;
  // More variables of the template, e.g. {"enable_thinking": false}. Throws InvalidInput where
  // `object` is no JSON object, and for the names "messages" and "add_generation_prompt".
  void SetVariables(const JsonValue& object);
  // The day that strftime_now takes for today, as "2026-01-31", or "today". Default: 2026-01-01,
  // because a prompt must not depend on the day. Throws InvalidInput.
  void SetDate(const std::string& date);

  // The prompt for `messages`, ready for the assistant's turn when `add_generation_prompt`. It
  // contains the BOS token where the template writes one: encode it with Tokenizer::Encode, without
  // prefix_ids(), except when IsNone(). Text from messages and variables is marked as input, except
  // the tags around thinking and tool calls in messages of the assistant.
  // Throws InvalidInput for no messages, for text that is not UTF-8, and where the template raises
  // an error (naming its line).
  MarkedText Render(const std::vector<ChatMessage>& messages, bool add_generation_prompt) const;

  // Tells templates apart in records of runs: "none", the name of a built-in one (also of a model's
  // template with the same text), or a hash; and variables and date where they were set.
  std::string Identity() const;

 private:
  std::shared_ptr<const jinja::Template> template_;
  std::shared_ptr<const std::string> text_;
  std::string name_ = "none";  // First part of the identity.
  std::vector<std::pair<std::string, std::string>> special_tokens_;
  std::shared_ptr<const JsonValue> variables_;
  std::shared_ptr<const jinja::Date> date_;
  std::string date_text_;
};

// The template of a model: the file chat_template.jinja in `folder`, or else chat_template in
// tokenizer_config.json (a string, or the one named "default" of a list), or else
// tokenizer.chat_template of a GGUF file, which `folder` may also be. `name`: another one of
// that list, the file additional_chat_templates/NAME.jinja, or tokenizer.chat_template.NAME.
// Special tokens come from tokenizer_config.json, special_tokens_map.json and the ids that the GGUF
// file names. No template there: none. Throws InvalidInput and Unsupported naming chat_template,
// and InvalidInput for an unknown name.
ChatTemplate LoadChatTemplate(const std::string& folder, const std::string& name = "");
// The template called `name` for a model: "none", or one of the model's, else a built-in one, else
// a Jinja file of this path. All get the model's special tokens. Throws as LoadChatTemplate, and
// InvalidInput naming `what` (an option, say) where there is no such template.
ChatTemplate FindChatTemplate(const std::string& folder, const std::string& name,
                              const std::string& what);
// True when the model has a template of this name.
bool HasChatTemplate(const std::string& folder, const std::string& name);
// The special tokens of `folder` for a template that does not come from there.
void SetSpecialTokensOf(const std::string& folder, ChatTemplate* chat_template);

}  // namespace pmkvq
