#include "chat_template_options.h"

#include <fmt/format.h>

#include "pmkvq/base/error.h"
#include "pmkvq/io/file.h"
#include "pmkvq/io/json.h"
#include "terminal.h"

namespace pmkvq::cli {
namespace {

ChatTemplate NamedTemplate(const std::string& name, const std::string& model) {
  if (name == "none") return {};
  if (HasChatTemplate(model, name)) return LoadChatTemplate(model, name);
  ChatTemplate result;
  if (ChatTemplate::IsBuiltIn(name)) {
    result = ChatTemplate::BuiltIn(name);
  } else if (FileExists(name)) {
    result = ChatTemplate::FromJinja(ReadFile(name), name);
  } else {
    throw InvalidInput("--chat-template",
                       fmt::format("found \"{}\", expected none, a Jinja file, a template of the "
                                   "model, or one of {}",
                                   name, ChatTemplate::BuiltInNames()));
  }
  // Every template gets the special tokens of the model.
  SetSpecialTokensOf(model, &result);
  return result;
}

}  // namespace

void ChatTemplateCommandOptions::Register(CLI::App& command) {
  const std::string group = "Chat template";
  command
      .add_option("--chat-template", name,
                  fmt::format("Jinja file, none, or the name of a template: the model's, or {} "
                              "(default: the model's)",
                              ChatTemplate::BuiltInNames()))
      ->group(group);
  command
      .add_option("--chat-template-kwargs", kwargs,
                  "variables of the template, as JSON: '{\"enable_thinking\": false}'")
      ->group(group);
  command
      .add_option("--template-date", date,
                  "day that templates take for today: 2026-01-31, or today (default: 2026-01-01, "
                  "so that prompts do not depend on the day)")
      ->group(group);
}

ChatTemplate ResolveChatTemplate(const ChatTemplateCommandOptions& options,
                                 const std::string& model) {
  ChatTemplate result =
      options.name.empty() ? LoadChatTemplate(model) : NamedTemplate(options.name, model);
  if (options.name.empty() && result.IsNone()) {
    StderrLog().Warning(
        model +
        ": found no chat template (tokenizer_config.json, chat_template.jinja, or in a GGUF "
        "file tokenizer.chat_template): "
        "prompts are given as they are; --chat-template none says so");
  }
  if (!options.kwargs.empty()) {
    result.SetVariables(JsonValue::Parse(options.kwargs, "--chat-template-kwargs"));
  }
  if (!options.date.empty()) result.SetDate(options.date);
  return result;
}

}  // namespace pmkvq::cli
