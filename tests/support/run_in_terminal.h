// Runs the program under test in a terminal of a given width, and keeps what it sent there.
#pragma once

#include <iterator>
#include <string>
#include <vector>

#include "support/terminal_program.h"

namespace pmkvq::testing_support {

struct TerminalOptions {
  int columns = 80;
  std::string term = "xterm";
  bool no_color = false;
  std::string stdout_path = {};  // Standard output goes to this file; "": to the terminal.
  int narrower_after_bytes = 0;  // Halves the width once so much was sent; 0: never.
};

struct TerminalResult {
  int exit_code = -1;
  std::string sent;
};

inline TerminalResult RunInTerminal(const std::vector<std::string>& args,
                                    const TerminalOptions& options) {
  TerminalProgram::Terminal terminal;
  terminal.columns = static_cast<unsigned short>(options.columns);
  terminal.environment = {{"TERM", options.term}};
  if (options.no_color) terminal.environment.emplace_back("NO_COLOR", "1");
  terminal.stdout_path = options.stdout_path;
  TerminalProgram program(args, terminal);
  bool is_narrower = options.narrower_after_bytes == 0;
  while (program.Read()) {
    if (is_narrower || std::ssize(program.screen()) < options.narrower_after_bytes) continue;
    program.Resize(static_cast<unsigned short>(options.columns / 2));
    is_narrower = true;
  }
  return {program.Wait(), program.screen()};
}

// The lengths of what stood on a row at any time: pieces between line breaks and returns, without
// escape sequences.
inline std::vector<int> RowLengths(const std::string& sent) {
  std::vector<int> lengths = {0};
  for (size_t i = 0; i < sent.size(); ++i) {
    if (sent[i] == '\033') {
      if (i + 1 < sent.size() && sent[i + 1] == '[') {
        ++i;
        while (i + 1 < sent.size() && (sent[i + 1] < '@' || sent[i + 1] > '~')) ++i;
      }
      ++i;
    } else if (sent[i] == '\r' || sent[i] == '\n') {
      lengths.push_back(0);
    } else {
      ++lengths.back();
    }
  }
  return lengths;
}

}  // namespace pmkvq::testing_support
