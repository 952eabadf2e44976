#include "usage_error.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cctype>
#include <optional>

#include "foreign_names.h"
#include "pmkvq/base/nearest_name.h"

namespace pmkvq::cli {
namespace {

// With dashes. Hidden options are named as well: who types one nearly right knows it.
std::vector<std::string> OptionNames(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

bool HasOption(const CLI::App& command, std::string_view name) {
  return command.get_option_no_throw(std::string(name)) != nullptr;
}

bool LooksLikeOption(const std::string& argument) {
  return argument.size() > 1 && argument[0] == '-' &&
         std::isdigit(static_cast<unsigned char>(argument[1])) == 0;
}

// The commands that have the option, for messages: "run, eval".
std::string CommandsWith(const CLI::App& app, std::string_view option) {
  std::vector<std::string> names;
  for (const CLI::App* command : app.get_subcommands({})) {
    if (HasOption(*command, option)) names.push_back(command->get_name());
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

std::string Answer(const ForeignName& foreign, const CLI::App& app, const CLI::App& command) {
  std::string text = fmt::format("unknown option {}: ", foreign.name);
  if (foreign.ours.empty()) return text + std::string(foreign.note);
  if (HasOption(command, foreign.ours)) {
    text += fmt::format("here it is {}", foreign.ours);
  } else {
    text += fmt::format("{} does it in pmkvq {}", foreign.ours, CommandsWith(app, foreign.ours));
  }
  if (!foreign.note.empty()) text += fmt::format(" ({})", foreign.note);
  return text;
}

std::string DescribeUnknownOption(const CLI::App& app, const CLI::App& command,
                                  const std::string& argument) {
  const std::string name = argument.substr(0, argument.find('='));
  if (const ForeignName* foreign = FindForeignOption(
          name, [&](std::string_view ours) { return HasOption(command, ours); })) {
    return Answer(*foreign, app, command);
  }
  const std::vector<std::string> names = OptionNames(command);
  const std::string nearest = NearestName(name, names);
  if (!nearest.empty()) return fmt::format("unknown option {}: did you mean {}?", name, nearest);
  const std::string others = HasOption(app, name) ? "" : CommandsWith(app, name);
  if (!others.empty()) {
    return fmt::format("unknown option {} for {}, it is one of {}", name, command.get_name(),
                       others);
  }
  return fmt::format("unknown option {}", name);
}

// -hf begins like -h, so CLI11 shows the help. One dash and several letters that
// are in the table are meant as in the table.
const ForeignName* FindForeignShortOption(const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    const bool is_short = argument.size() > 2 && argument[0] == '-' && argument[1] != '-';
    if (!is_short) continue;
    if (const ForeignName* foreign = FindForeignOption(argument)) return foreign;
  }
  return nullptr;
}

// CLI11's messages reworded: the value found and the values expected.
std::string InOurWords(const CLI::ParseError& error) {
  const std::string text = error.what();
  const std::string name = text.substr(0, text.find(':'));
  if (error.get_name() == "ArgumentMismatch") {
    const size_t to = text.find(" arguments to ");  // "Expected exactly 1 arguments to --x, got 2"
    if (to != std::string::npos) {
      const size_t begin = to + 14;
      return text.substr(begin, text.find(',', begin) - begin) +
             ": given more than once, expected it once";
    }
    if (text.find("At Most") != std::string::npos) {
      return name + ": given more than once, expected it once";
    }
    return name + ": found nothing behind it, expected a value";
  }
  if (error.get_name() == "ConversionError") {
    return "a value is out of the range of its option: " + text;
  }
  if (error.get_name() == "ExcludesError") {
    const size_t at = text.find(" excludes ");
    if (at != std::string::npos) {
      return fmt::format("{} does not go with {}, expected exactly one of them", text.substr(0, at),
                         text.substr(at + 10));
    }
  }
  return text;
}

std::optional<std::string> DescribeUnknown(CLI::App& app, const ChosenCommand& command,
                                           const std::vector<std::string>& arguments) {
  const std::vector<std::string> left = command.app->remaining();
  const bool is_group = command.app->get_require_subcommand_min() > 0;
  if (is_group && !left.empty() && !LooksLikeOption(left.front())) {
    return DescribeUnknownCommand(*command.app, command.path, left.front());
  }
  const auto unknown = std::find_if(left.begin(), left.end(), LooksLikeOption);
  if (unknown != left.end()) return DescribeUnknownOption(app, *command.app, *unknown);
  if (const ForeignName* foreign = FindForeignShortOption(arguments)) {
    return Answer(*foreign, app, *command.app);
  }
  if (left.empty()) return std::nullopt;
  return fmt::format("found '{}' behind the options, expected {}", left.front(),
                     HasOption(*command.app, "--prompt") ? "one text (put it in quotes)"
                                                         : "options only (they begin with --)");
}

}  // namespace

ChosenCommand FindChosenCommand(CLI::App& app) {
  ChosenCommand chosen{&app, "pmkvq"};
  while (!chosen.app->get_subcommands().empty()) {
    chosen.app = chosen.app->get_subcommands().front();
    chosen.path += " " + chosen.app->get_name();
  }
  return chosen;
}

std::string DescribeUnknownCommand(const CLI::App& parent, const std::string& path,
                                   const std::string& name) {
  std::vector<std::string> names;
  for (const CLI::App* command : parent.get_subcommands({})) names.push_back(command->get_name());
  std::string text = fmt::format("there is no command '{}' in {}", name, path);
  const ForeignName* foreign = parent.get_parent() == nullptr ? FindForeignCommand(name) : nullptr;
  if (foreign == nullptr) {
    const std::string guess = DidYouMean(name, names);
    return text +
           (guess.empty() ? fmt::format(", expected one of {}", fmt::join(names, ", ")) : guess);
  }
  if (foreign->ours.empty()) return fmt::format("{}: {}", text, foreign->note);
  text += fmt::format(": here it is pmkvq {}", foreign->ours);
  return foreign->note.empty() ? text : fmt::format("{} ({})", text, foreign->note);
}

bool IsWrongUsage(const Error& error) {
  constexpr std::string_view kOptions[] = {"[--kv] ",
                                           "[--kv-dtype] ",
                                           "[--policy] ",
                                           "[--attention] ",
                                           "[--weights] ",
                                           "[--benchmark] ",
                                           "[--n-sink-token] ",
                                           "[--n-window-token] ",
                                           "[--n-init-kv-bits] ",
                                           "[--chat-template] ",
                                           "[--task] ",
                                           "[--shape] ",
                                           "[--bits] ",
                                           "[--depth] ",
                                           "[--reference-accounting] "};
  const std::string text = error.what();
  return std::any_of(std::begin(kOptions), std::end(kOptions),
                     [&](std::string_view option) { return text.starts_with(option); });
}

void RefuseEmptyAssignments(const CLI::App& app, const std::vector<std::string>& arguments) {
  for (const std::string& argument : arguments) {
    if (argument == "--") return;
    if (!argument.starts_with("--") || !argument.ends_with('=')) continue;
    const std::string name = argument.substr(0, argument.size() - 1);
    if (!CommandsWith(app, name).empty()) {
      throw CLI::ValidationError(name, "found an empty value, expected one (is a variable unset?)");
    }
  }
}

void RefuseSplitSizes(const std::vector<std::string>& arguments) {
  const auto is = [](const std::string& text, std::string_view characters) {
    return !text.empty() && text.find_first_not_of(characters) == std::string::npos;
  };
  for (size_t i = 0; i + 2 < arguments.size(); ++i) {
    const std::string& name = arguments[i];
    const std::string& number = arguments[i + 1];
    const std::string& unit = arguments[i + 2];
    if (name != "--kv-budget" && name != "--memory-budget") continue;
    if (!is(number, "0123456789.") || !is(unit, "kKmMgGtTiIbB") || unit.size() > 3) continue;
    throw CLI::ValidationError(
        name, fmt::format("found '{0}' and '{1}' apart: did you mean {0}{1}?", number, unit));
  }
}

bool HasForeignShortOption(const std::vector<std::string>& arguments) {
  return FindForeignShortOption(arguments) != nullptr;
}

std::string DescribeUsageError(CLI::App& app, const CLI::ParseError& error,
                               const std::vector<std::string>& arguments) {
  const ChosenCommand command = FindChosenCommand(app);
  const std::string text = DescribeUnknown(app, command, arguments).value_or(InOurWords(error));
  return fmt::format("pmkvq: {}{} see {} --help\n", text, text.ends_with('?') ? "" : ";",
                     command.path);
}

}  // namespace pmkvq::cli
