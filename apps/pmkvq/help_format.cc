#include "help_format.h"

#include <fmt/format.h>

#include <algorithm>
#include <vector>

namespace pmkvq::cli {

std::string HelpFormatter::make_option_opts(const CLI::Option* option) const {
  if (option->get_type_size() == 0) return "";  // A flag.
  // "INT:{8,4,2}" of a choice shows the choices, "INT:NONNEGATIVE" only the type.
  const std::string type = option->get_type_name();
  const size_t colon = type.find(':');
  if (colon == std::string::npos) return " " + type;
  return " " + (type[colon + 1] == '{' ? type.substr(colon + 1) : type.substr(0, colon));
}

std::string HelpFormatter::make_option_desc(const CLI::Option* option) const {
  std::string text = option->get_description();
  std::string notes = option->get_required() ? "required" : "";
  const std::string value = option->get_default_str();
  if (!value.empty()) notes = fmt::format("default: {}", value);
  if (notes.empty()) return text;
  // Behind the first line, where others follow.
  return text.insert(std::min(text.find('\n'), text.size()), fmt::format(" [{}]", notes));
}

std::string FormatUsageError(const CLI::App* app, const CLI::Error& error) {
  const CLI::App* command = app;
  std::string path = "pmkvq";
  while (!command->get_subcommands().empty()) {
    command = command->get_subcommands().front();
    path += " " + command->get_name();
  }
  const std::vector<std::string> unknown = app->remaining();
  const std::string what = command == app && !unknown.empty()
                               ? fmt::format("there is no command '{}'", unknown.front())
                               : error.what();
  return fmt::format("pmkvq: {}; see {} --help\n", what, path);
}

}  // namespace pmkvq::cli
