#include "config_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "file_options.h"
#include "foreign_names.h"
#include "pmkvq/base/error.h"
#include "pmkvq/base/nearest_name.h"
#include "pmkvq/io/json.h"

namespace pmkvq::cli {
namespace {

constexpr char kName[] = "--config";
constexpr size_t kMostNameBytes = 80;  // Of an unknown name in an error.

// What a command line says of its command.
struct CommandLine {
  CLI::App* command = nullptr;
  size_t num_commands = 0;                // Arguments that are names of commands.
  std::set<const CLI::Option*> options;   // Given ones.
  std::vector<std::string> config_files;  // Values of --config.
};

CommandLine Read(CLI::App& app, const std::vector<std::string>& arguments) {
  CommandLine line{&app, 0, {}, {}};
  for (; line.num_commands < arguments.size(); ++line.num_commands) {
    const std::vector<CLI::App*> below = line.command->get_subcommands(
        [&](const CLI::App* other) { return other->get_name() == arguments[line.num_commands]; });
    if (below.empty()) break;
    line.command = below.front();
  }
  const CLI::Option* const config = line.command->get_option_no_throw(kName);
  for (size_t i = line.num_commands; i < arguments.size() && arguments[i] != "--"; ++i) {
    const std::string& argument = arguments[i];
    if (!argument.starts_with('-')) continue;
    const size_t equals = argument.starts_with("--") ? argument.find('=') : std::string::npos;
    const CLI::Option* option = line.command->get_option_no_throw(argument.substr(0, equals));
    if (option == nullptr) continue;
    line.options.insert(option);
    const bool takes_next = equals == std::string::npos && option->get_items_expected_max() > 0;
    if (takes_next && i + 1 == arguments.size()) break;
    if (option == config) {
      line.config_files.push_back(takes_next ? arguments[i + 1] : argument.substr(equals + 1));
    }
    if (takes_next) ++i;
  }
  return line;
}

// The nearest name, or ours for that of another program; "": none.
std::string Hint(const CLI::App& command, const std::string& name) {
  const auto has_option = [&](std::string_view ours) {
    return command.get_option_no_throw(std::string(ours)) != nullptr;
  };
  if (const ForeignName* foreign = FindForeignOption("--" + name, has_option)) {
    if (has_option(foreign->ours)) {
      return fmt::format(" (here it is {})", foreign->ours.substr(2));
    }
  }
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    if (!option->get_configurable()) continue;
    for (const std::string& one : option->get_lnames()) names.push_back(one);
  }
  return DidYouMean(name, names);
}

[[noreturn]] void FailUnknown(const CLI::App& command, const std::string& path,
                              const std::string& name) {
  JsonWriter quoted;
  quoted.String(name.substr(0, kMostNameBytes));
  throw CLI::ValidationError(
      fmt::format("[{}] found the name {}, expected options of {} without "
                  "dashes{}",
                  path, quoted.text(), command.get_name(), Hint(command, name)));
}

bool IsFlag(const CLI::Option& option) { return option.get_items_expected_max() == 0; }

// The value as on a command line. Throws InvalidInput for one of a wrong type.
std::string TextOf(const JsonValue& value, const CLI::Option& option) {
  const std::string type = option.get_type_name();
  const bool is_number = type == "INT" || type == "UINT" || type == "FLOAT";
  const bool is_text = type == "TEXT" || type == "FILE" || type == "PATH" || type == "DIR";
  const char* const expected = is_number ? "a number" : is_text ? "a string" : "a string or number";
  const bool fits = value.IsString() ? !is_number : value.IsNumber() && !is_text;
  if (!fits) value.Fail(expected);
  const std::string text = value.AsTextOrNumber();
  const bool has_control =
      std::any_of(text.begin(), text.end(), [](unsigned char c) { return c < ' ' || c == 0x7f; });
  if (text.empty() || has_control)
    value.Fail("a string with characters, but no control characters");
  return text;
}

// Asks the option itself, so that the error is about the file and not about the command line.
void Check(CLI::Option& option, const std::string& text, const std::string& where) {
  option.clear();
  std::string wrong;
  try {
    option.add_result(text);
    option.run_callback();
  } catch (const CLI::ConversionError&) {
    wrong = fmt::format("found '{}', expected {}", text, option.get_type_name());
  } catch (const CLI::ParseError& error) {
    wrong = error.what();
    const std::string name = option.get_name() + ": ";
    if (wrong.starts_with(name)) wrong.erase(0, name.size());
  }
  option.clear();
  if (!wrong.empty()) throw CLI::ValidationError(fmt::format("{}: {}", where, wrong));
}

std::vector<std::string> OptionsOf(const std::string& path, const CommandLine& line) {
  JsonLimits limits;
  limits.max_bytes = kMostConfigBytes;
  const JsonValue file = JsonValue::ParseFile(path, limits);
  if (!file.IsObject()) file.Fail("an object with options");
  std::vector<std::string> options;
  file.ForEachMember([&](std::string_view member, const JsonValue& value) {
    const std::string name(member);
    if (name == "config") value.Fail("no configuration file in a configuration file");
    CLI::Option* const option = line.command->get_option_no_throw("--" + name);
    if (option == nullptr || !option->get_configurable()) FailUnknown(*line.command, path, name);
    const bool is_given = line.options.count(option) > 0;
    if (IsFlag(*option)) {
      if (!value.IsBool()) value.Fail("true or false");
      if (value.AsBool() && !is_given) options.push_back("--" + name);
      return;
    }
    const std::string text = TextOf(value, *option);
    Check(*option, text, fmt::format("[{}] {}", path, name));
    if (!is_given) options.push_back(fmt::format("--{}={}", name, text));
  });
  return options;
}

}  // namespace

CLI::Option* AddConfig(CLI::App& command, std::string& path) {
  CLI::Option* option = NamesFile(
      command.add_option(kName, path,
                         "JSON object with options, names without dashes; what the command line "
                         "says wins"),
      FileKind::kInput);
  option->configurable(false);
  return option;
}

std::vector<std::string> WithOptionsOfConfig(CLI::App& app,
                                             const std::vector<std::string>& arguments) {
  const CommandLine line = Read(app, arguments);
  // More than one, and an empty name, are errors of the parser.
  if (line.config_files.size() != 1 || line.config_files.front().empty() ||
      line.options.count(line.command->get_help_ptr()) > 0) {
    return arguments;
  }
  std::vector<std::string> options;
  try {
    options = OptionsOf(line.config_files.front(), line);
  } catch (const InvalidInput& error) {
    throw CLI::ValidationError(error.what());
  }
  const auto behind_commands = arguments.begin() + static_cast<std::ptrdiff_t>(line.num_commands);
  std::vector<std::string> all(arguments.begin(), behind_commands);
  all.insert(all.end(), options.begin(), options.end());
  all.insert(all.end(), behind_commands, arguments.end());
  return all;
}

}  // namespace pmkvq::cli
