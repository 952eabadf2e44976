#include "command_tree.h"

#include <algorithm>
#include <string_view>

#include "file_options.h"
#include "help_format.h"
#include "pmkvq/research/methods/registry.h"
#include "pmkvq/text/chat_template.h"

namespace pmkvq::cli {
namespace {

// "a,b" and "a, b" in pieces.
std::vector<std::string> SplitNames(std::string_view text) {
  std::vector<std::string> names;
  while (!text.empty()) {
    const size_t end = std::min(text.find(','), text.size());
    names.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
    while (text.starts_with(' ')) text.remove_prefix(1);
  }
  return names;
}

std::vector<std::string> ChoicesOf(const OptionInfo& option) {
  if (option.value.starts_with('{')) {
    return SplitNames(std::string_view(option.value).substr(1, option.value.size() - 2));
  }
  const std::string name = option.names.empty() ? "" : option.names.back();
  if (name == "--kv" || option.argument == "NAME") {  // NAME: of `pmkvq methods`.
    std::vector<std::string> names;
    for (const MethodInfo& method : ListMethods()) names.push_back(method.name);
    return names;
  }
  if (name == "--chat-template") return SplitNames("none," + ChatTemplate::BuiltInNames());
  if (name == "--device") return SplitNames("cpu,cuda,auto");
  return {};
}

ValueKind KindOf(const CLI::Option& option, const OptionInfo& info) {
  if (info.value.empty()) return ValueKind::kNone;
  if (const std::optional<FileKind> kind = FindFileKind(option)) {
    return *kind == FileKind::kOutputFolder ? ValueKind::kFolder : ValueKind::kFile;
  }
  const std::string& name = info.names.empty() ? info.argument : info.names.back();
  if (name == "--chat-template") return ValueKind::kFile;
  // Texts are often names of files, too.
  const bool is_text = info.value == "TEXT" && info.choices.empty();
  return is_text ? ValueKind::kFile : ValueKind::kAnyText;
}

OptionInfo Describe(const CLI::Option& option) {
  OptionInfo info;
  for (const std::string& name : option.get_snames()) info.names.push_back("-" + name);
  for (const std::string& name : option.get_lnames()) info.names.push_back("--" + name);
  if (option.get_positional()) info.argument = option.get_name(true);
  info.is_required = option.get_required();
  const std::string value = OptionValueText(&option);
  if (!value.empty()) info.value = value.substr(1);
  info.help = OptionHelp(&option);
  info.group = option.get_group();
  info.choices = ChoicesOf(info);
  info.kind = KindOf(option, info);
  return info;
}

CommandInfo Describe(const CLI::App& app, const std::string& parent) {
  CommandInfo info;
  info.name = app.get_name();
  info.path = parent.empty() ? info.name : parent + " " + info.name;
  info.help = app.get_description();
  info.footer = app.get_footer();
  info.groups = app.get_groups();
  for (const CLI::Option* option : app.get_options()) {
    if (!option->get_group().empty()) info.options.push_back(Describe(*option));  // Else hidden.
  }
  // As in --help: groups of options without a name are no commands.
  for (const CLI::App* command :
       app.get_subcommands([](const CLI::App* other) { return !other->get_name().empty(); })) {
    info.commands.push_back(Describe(*command, info.path));
  }
  return info;
}

void List(const CommandInfo& command, std::vector<const CommandInfo*>& all) {
  all.push_back(&command);
  for (const CommandInfo& inner : command.commands) List(inner, all);
}

}  // namespace

CommandInfo DescribeCommands(const CLI::App& app) { return Describe(app, ""); }

std::vector<const CommandInfo*> ListCommands(const CommandInfo& root) {
  std::vector<const CommandInfo*> all;
  List(root, all);
  return all;
}

}  // namespace pmkvq::cli
