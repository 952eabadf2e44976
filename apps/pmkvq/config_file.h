// --config FILE: options of a command from a JSON object, {"port": 8080, "priorities": true}.
#pragma once

#include <CLI/CLI.hpp>

#include <string>
#include <vector>

namespace pmkvq::cli {

inline constexpr uint64_t kMostConfigBytes = uint64_t{1} << 20;

// Declares --config of `command`. `path` gets the file's name.
CLI::Option* AddConfig(CLI::App& command, std::string& path);

// The arguments of `app`, without the program's name, with the options of the file that --config
// names in front of the command's own ones. Without --config, or with --help: the arguments as they
// are. Options that the arguments give themselves, and flags that are false, are left out. Call
// after ApplyValueRules; aliases must be replaced already.
//
// Names are those of the command's options without dashes. Flags take true and false, options whose
// value is a number take numbers, options of text take strings; choices and sizes take both.
//
// Errors: CLI::ValidationError (wrong usage) "[FILE] NAME: found VALUE, expected ..." for a file
// that is no JSON object, an unknown name, a name that stands twice, "config", a value of a wrong
// type or one that the option refuses, also where the command line has another one. IoError where
// the file cannot be read.
std::vector<std::string> WithOptionsOfConfig(CLI::App& app,
                                             const std::vector<std::string>& arguments);

}  // namespace pmkvq::cli
