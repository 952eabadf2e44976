// The options about chat templates, of every command that makes prompts.
#pragma once

#include <CLI/CLI.hpp>

#include <string>

#include "pmkvq/text/chat_template.h"

namespace pmkvq::cli {

// --chat-template, --chat-template-kwargs, --template-date.
struct ChatTemplateCommandOptions {
  std::string name;    // none, a file, a template of the model, or a built-in one; "": the model's.
  std::string kwargs;  // A JSON object, or "".
  std::string date;    // "": the fixed one.

  // This must outlive the parsing of `command`.
  void Register(CLI::App& command);
};

// The template that the options name, for the model in folder `model`. A name is looked for among
// the model's templates first, then among the built-in ones, then as a file. Throws InvalidInput
// naming the option, and as LoadChatTemplate.
ChatTemplate ResolveChatTemplate(const ChatTemplateCommandOptions& options,
                                 const std::string& model);

}  // namespace pmkvq::cli
