#include "chat_template_options.h"

#include <fmt/format.h>

#include "pmkvq/io/json.h"
#include "terminal.h"

namespace pmkvq::cli {

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
  ChatTemplate result = options.name.empty()
                            ? LoadChatTemplate(model)
                            : FindChatTemplate(model, options.name, "--chat-template");
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
