// What the program's own help says: its commands and their options, for tests that walk all of
// them.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "support/run_program.h"

namespace pmkvq::testing_support {

using Args = std::vector<std::string>;

inline Args Plus(Args args, const Args& more) {
  args.insert(args.end(), more.begin(), more.end());
  return args;
}

inline std::vector<std::string> LinesOf(const std::string& text) {
  std::stringstream stream(text);
  std::vector<std::string> lines;
  for (std::string line; std::getline(stream, line);) lines.push_back(line);
  return lines;
}

// An option of a command as --help shows it.
struct HelpOption {
  std::string name;   // "--top-k"
  std::string value;  // "INT", "FILE", "{f16,bf16,f32}"; "" for a flag.
};

inline std::string HelpOf(const Args& command) {
  const ProgramResult result = RunProgram(Plus(command, {"--help"}));
  EXPECT_EQ(result.exit_code, 0) << result.err;
  return result.out;
}

// Every command that runs something: {"run"}, {"bench", "gemv"}, ...
inline std::vector<Args> AllCommands(const Args& group = {}) {
  std::vector<Args> commands;
  bool in_section = false;
  for (const std::string& line : LinesOf(HelpOf(group))) {
    if (line.ends_with(':')) in_section = line == "Commands:";
    if (!in_section || line.size() < 3 || line.compare(0, 2, "  ") != 0 || line[2] == ' ') continue;
    const Args command = Plus(group, {line.substr(2, line.find(' ', 2) - 2)});
    const std::vector<Args> inner = AllCommands(command);
    if (inner.empty()) {
      commands.push_back(command);
    } else {
      commands.insert(commands.end(), inner.begin(), inner.end());
    }
  }
  return commands;
}

inline std::vector<HelpOption> OptionsOf(const Args& command) {
  std::vector<HelpOption> options;
  for (const std::string& line : LinesOf(HelpOf(command))) {
    if (!line.starts_with("  -")) continue;
    const size_t name = line.find("--");
    if (name == std::string::npos) continue;
    const size_t end = std::min(line.find(' ', name), line.size());
    HelpOption option{line.substr(name, end - name), ""};
    if (end + 1 < line.size() && line[end + 1] != ' ') {
      option.value = line.substr(end + 1, line.find(' ', end + 1) - end - 1);
    }
    if (option.name != "--help") options.push_back(option);
  }
  return options;
}

// Ends with `exit_code` and one line on stderr that holds all of `parts`.
inline void ExpectOneLineError(const ProgramResult& result, int exit_code, const Args& parts) {
  EXPECT_EQ(result.exit_code, exit_code) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_EQ(std::count(result.err.begin(), result.err.end(), '\n'), 1) << result.err;
  for (const std::string& part : parts) {
    EXPECT_NE(result.err.find(part), std::string::npos)
        << "'" << part << "' is not in: " << result.err;
  }
}

}  // namespace pmkvq::testing_support
