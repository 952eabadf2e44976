// Messages about command lines that the program does not understand.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

#include "pmkvq/base/error.h"

namespace pmkvq::cli {

// "pmkvq run" and the command that the arguments of `app` chose.
struct ChosenCommand {
  CLI::App* app;
  std::string path;
};
ChosenCommand FindChosenCommand(CLI::App& app);

// The one line for `error`, with the command that shows help. An unknown command or option is named
// first, with the nearest name or with our name for that of another program. `arguments` are those
// that were parsed.
std::string DescribeUsageError(CLI::App& app, const CLI::ParseError& error,
                               const std::vector<std::string>& arguments);

// Whether one of them is an option of another program with one dash and several letters, which
// CLI11 may take for a help flag: "-hf".
bool HasForeignShortOption(const std::vector<std::string>& arguments);

// Throws CLI::ValidationError for "--name=" of an option: CLI11 would take the next argument as the
// value.
void RefuseEmptyAssignments(const CLI::App& app, const std::vector<std::string>& arguments);

// Throws CLI::ValidationError for "--kv-budget 6 MiB", whose unit would be taken for a prompt.
void RefuseSplitSizes(const std::vector<std::string>& arguments);

// Whether `error`, thrown by the library, is about an option's value that is wrong for every model
// and file, such as a SPEC of --kv: exit code 2. A value that does not suit this model or file,
// such as a budget too small for a prompt, is a failure: exit code 1.
bool IsWrongUsage(const Error& error);

// The line for a command that does not exist in `parent`, whose path is `path`.
std::string DescribeUnknownCommand(const CLI::App& parent, const std::string& path,
                                   const std::string& name);

}  // namespace pmkvq::cli
