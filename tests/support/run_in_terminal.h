// Runs the program under test in a terminal of a given width, and keeps what it sent there.
#pragma once

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

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
  const int controller = posix_openpt(O_RDWR | O_NOCTTY);
  if (controller < 0 || grantpt(controller) != 0 || unlockpt(controller) != 0) {
    throw std::runtime_error("no pseudo terminal");
  }
  const std::string name = ptsname(controller);
  winsize size = {};
  size.ws_row = 24;
  size.ws_col = static_cast<unsigned short>(options.columns);
  ioctl(controller, TIOCSWINSZ, &size);
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    setsid();
    const int terminal = open(name.c_str(), O_RDWR);
    ioctl(terminal, TIOCSCTTY, 0);
    const int out = options.stdout_path.empty()
                        ? terminal
                        : open(options.stdout_path.c_str(), O_WRONLY | O_CREAT, 0600);
    dup2(terminal, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(terminal, STDERR_FILENO);
    setenv("TERM", options.term.c_str(), 1);
    options.no_color ? setenv("NO_COLOR", "1", 1) : unsetenv("NO_COLOR");
    std::vector<char*> argv = {const_cast<char*>(PMKVQ_PROGRAM)};
    for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    execv(PMKVQ_PROGRAM, argv.data());
    _exit(127);
  }
  TerminalResult result;
  char bytes[4096];
  // The read fails once the program has closed its side.
  for (ssize_t count; (count = read(controller, bytes, sizeof(bytes))) > 0;) {
    result.sent.append(bytes, static_cast<size_t>(count));
    if (options.narrower_after_bytes > 0 && size.ws_col == options.columns &&
        std::ssize(result.sent) >= options.narrower_after_bytes) {
      size.ws_col = static_cast<unsigned short>(options.columns / 2);
      ioctl(controller, TIOCSWINSZ, &size);
    }
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child) throw std::runtime_error("waitpid failed");
  close(controller);
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return result;
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
