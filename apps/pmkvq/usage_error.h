// What the program says about a command line that it does not understand.
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

// The one line for `error`: an unknown command or option with the nearest name or what it is
// called here, before anything else that is wrong; and where help is. `arguments` are those of the
// program, without its name.
std::string DescribeUsageError(CLI::App& app, const CLI::ParseError& error,
                               const std::vector<std::string>& arguments);

// Throws CLI::ValidationError for "--name=" of an option: CLI11 would take the next argument as the
// value.
void RefuseEmptyAssignments(const CLI::App& app, const std::vector<std::string>& arguments);

// Throws CLI::ValidationError for "--kv-budget 6 MiB", whose unit would be taken for a prompt.
void RefuseSplitSizes(const std::vector<std::string>& arguments);

// Whether `error`, thrown by the library, is about an option's value that is wrong whatever the
// files hold, as the SPEC of --kv: exit code 2. A value that does not suit the model or a file, a
// budget too small for a prompt, say, is a failure: exit code 1.
bool IsWrongUsage(const Error& error);

// The line for a command that does not exist in `parent`, whose path is `path`.
std::string DescribeUnknownCommand(const CLI::App& parent, const std::string& path,
                                   const std::string& name);

}  // namespace pmkvq::cli
