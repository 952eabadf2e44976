// The program's commands and options as plain data, for what is made from them: completion of a
// shell's command line, manual pages.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace pmkvq::cli {

// What a shell offers for the value of an option.
enum class ValueKind : uint8_t {
  kNone,     // A flag: there is no value.
  kFile,     // Names of files and folders.
  kFolder,   // Names of folders.
  kAnyText,  // Nothing is offered: a number, a size.
};

struct OptionInfo {
  std::vector<std::string> names;  // "-f", "--file"; empty: a positional argument only.
  std::string argument;            // Name as a positional argument: "text"; "" for none.
  bool is_required = false;
  std::string value;  // "FILE" or "{8,4,2}"; "" for a flag.
  std::string help;   // With the default, or "[required]".
  std::string group;  // Title in --help: "KV cache".
  ValueKind kind = ValueKind::kNone;
  std::vector<std::string> choices;  // Offered before what `kind` says.
};

struct CommandInfo {
  std::string path;  // "pmkvq bench gemv"
  std::string name;  // "gemv"
  std::string help;
  std::string footer;  // Examples and notes.
  std::vector<std::string> groups;
  std::vector<OptionInfo> options;  // As --help orders them, positional arguments among them.
  std::vector<CommandInfo> commands;
};

// Walks `app`, whose commands are all declared.
CommandInfo DescribeCommands(const CLI::App& app);

// `root` and all below, parents first.
std::vector<const CommandInfo*> ListCommands(const CommandInfo& root);

}  // namespace pmkvq::cli
