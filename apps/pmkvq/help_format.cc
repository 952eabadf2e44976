#include "help_format.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>

#include "pmkvq/base/wrap_text.h"

namespace pmkvq::cli {
namespace {

constexpr size_t kLeftColumns = 24;
constexpr int kLeastColumns = 40;
constexpr int kMostColumns = 120;
constexpr int kColumnsOfAPipe = 80;

// A command line as a shell takes it in lines of 80 characters, broken before options.
std::string WrapCommand(const std::string& command) {
  constexpr size_t kRoom = kColumnsOfAPipe - 4;  // Without the indent of two and " \\".
  std::string text;
  size_t column = 0;
  for (size_t begin = 0; begin < command.size();) {
    const size_t end = std::min(command.find(" --", begin + 1), command.size());
    if (column > 0 && column + end - begin > kRoom) {
      text += " \\\n     ";
      column = 5;
    }
    text += command.substr(begin, end - begin);
    column += end - begin;
    begin = end;
  }
  return text;
}

}  // namespace

// "INT:{8,4,2}" of a choice shows the choices, "INT" only the type; flags have none.
std::string OptionValueText(const CLI::Option* option) {
  if (option->get_type_size() == 0) return "";
  const std::string type = option->get_type_name();
  const size_t colon = type.find(':');
  if (colon == std::string::npos) return " " + type;
  return " " + (type[colon + 1] == '{' ? type.substr(colon + 1) : type.substr(0, colon));
}

std::string OptionHelp(const CLI::Option* option) {
  const std::string text = option->get_description();
  if (option->get_required()) return text + " [required]";
  const std::string value = option->get_default_str();
  return value.empty() ? text : fmt::format("{} [{}]", text, value);
}

std::string HelpFormatter::Row(const std::string& left, const std::string& text) const {
  std::string row = "  " + left.substr(0, left.find_last_not_of(' ') + 1);
  if (row.size() + 2 > kLeftColumns + 2) {
    row += '\n' + std::string(kLeftColumns + 2, ' ');
  } else {
    row.resize(kLeftColumns + 2, ' ');
  }
  return row + WrapWords(text, static_cast<size_t>(columns_), kLeftColumns + 2, kLeftColumns + 2) +
         '\n';
}

std::string HelpFormatter::OptionRow(const CLI::Option* option) const {
  std::string names;
  for (const std::string& name : option->get_snames()) names += ",-" + name;
  for (const std::string& name : option->get_lnames()) names += ",--" + name;
  // An option without a name is a positional argument.
  if (names.empty()) return Row(option->get_name(true), OptionHelp(option));
  return Row(names.substr(1) + OptionValueText(option), OptionHelp(option));
}

std::string HelpFormatter::make_help(const CLI::App* app, std::string name,
                                     CLI::AppFormatMode) const {
  const auto columns = static_cast<size_t>(columns_);
  std::string usage = "Usage: " + name;
  const std::vector<const CLI::App*> commands =
      app->get_subcommands([](const CLI::App* command) { return !command->get_name().empty(); });
  if (!commands.empty()) usage += " COMMAND";
  usage += " [OPTIONS]";
  for (const CLI::Option* option : app->get_options()) {
    if (!option->get_positional()) continue;
    const std::string value = option->get_name(true);
    usage += option->get_required() ? " " + value : fmt::format(" [{}]", value);
  }
  std::string text = WrapWords(app->get_description(), columns, 0, 0) + "\n\n" +
                     WrapWords(usage, columns, 7, 0) + "\n";
  if (!commands.empty()) text += "\nCommands:\n";
  for (const CLI::App* command : commands) {
    text += Row(command->get_name(), command->get_description());
  }
  for (const std::string& group : app->get_groups()) {
    std::string rows;
    for (const CLI::Option* option : app->get_options()) {
      if (!group.empty() && option->get_group() == group) rows += OptionRow(option);
    }
    if (!rows.empty()) text += fmt::format("\n{}:\n{}", group, rows);
  }
  return app->get_footer().empty() ? text : text + "\n" + app->get_footer() + "\n";
}

int HelpColumns() {
  winsize size = {};
  const bool is_known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return is_known ? std::clamp(static_cast<int>(size.ws_col), kLeastColumns, kMostColumns)
                  : kColumnsOfAPipe;
}

void AddExamples(CLI::App& command, const std::vector<std::string>& examples) {
  std::string text = "Examples:";
  for (const std::string& example : examples) text += "\n  " + WrapCommand(example);
  command.footer(text);
}

}  // namespace pmkvq::cli
