// Runs the program under test in a pseudo terminal, as a person at a keyboard does.
#pragma once

#include <fcntl.h>
#include <poll.h>
#include <pty.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace pmkvq::testing_support {

class TerminalProgram {
 public:
  struct Terminal {
    unsigned short columns = 80;
    unsigned short rows = 24;
    std::vector<std::pair<std::string, std::string>> environment = {{"TERM", "xterm"}};
    std::string stdout_path = {};  // Standard output goes to this file; "": to the terminal.
  };

  TerminalProgram(const std::vector<std::string>& args, const Terminal& terminal) {
    size_.ws_col = terminal.columns;
    size_.ws_row = terminal.rows;
    child_ = forkpty(&terminal_, nullptr, nullptr, &size_);
    if (child_ < 0) throw std::runtime_error("forkpty failed");
    if (child_ == 0) {
      if (!terminal.stdout_path.empty()) {
        dup2(open(terminal.stdout_path.c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
      }
      unsetenv("NO_COLOR");
      for (const auto& [name, value] : terminal.environment) {
        setenv(name.c_str(), value.c_str(), 1);
      }
      std::vector<char*> argv = {const_cast<char*>(PMKVQ_PROGRAM)};
      for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
      argv.push_back(nullptr);
      execv(PMKVQ_PROGRAM, argv.data());
      _exit(127);
    }
  }
  ~TerminalProgram() {
    if (child_ > 0 && !ended_) {
      kill(child_, SIGKILL);
      waitpid(child_, nullptr, 0);
    }
    close(terminal_);
  }
  TerminalProgram(const TerminalProgram&) = delete;
  TerminalProgram& operator=(const TerminalProgram&) = delete;

  void Type(const std::string& keys) {
    if (write(terminal_, keys.data(), keys.size()) != static_cast<ssize_t>(keys.size())) {
      throw std::runtime_error("cannot write to the terminal");
    }
  }

  // The terminal hands on each key at once, without editing or echo by the terminal itself.
  bool KeysComeAtOnce() const {
    termios settings = {};
    return tcgetattr(terminal_, &settings) == 0 && (settings.c_lflag & (ICANON | ECHO)) == 0;
  }

  void Resize(unsigned short columns) {
    size_.ws_col = columns;
    ioctl(terminal_, TIOCSWINSZ, &size_);
  }

  // Takes in what has come, waiting up to 0.1 s for more; false at the end of the program.
  bool Read() {
    pollfd poll_for = {terminal_, POLLIN, 0};
    if (poll(&poll_for, 1, 100) <= 0) return !ended_ && kill(child_, 0) == 0;
    char bytes[4096];
    const ssize_t count = read(terminal_, bytes, sizeof(bytes));
    if (count <= 0) return false;
    screen_.append(bytes, static_cast<size_t>(count));
    return true;
  }

  // Reads until `text` has come after everything that earlier calls found; false after a minute or
  // at the end of the program.
  bool WaitFor(const std::string& text) {
    const auto deadline = Clock::now() + std::chrono::seconds(60);
    while (true) {
      const size_t at = screen_.find(text, seen_);
      if (at != std::string::npos) {
        seen_ = at + text.size();
        return true;
      }
      if (Clock::now() > deadline || !Read()) return false;
    }
  }

  // Exit code (128 + signal), once the program has ended by itself; -1 after a minute.
  int Wait() {
    const auto deadline = Clock::now() + std::chrono::seconds(60);
    int status = 0;
    while (waitpid(child_, &status, WNOHANG) == 0) {
      if (Clock::now() > deadline) return -1;
      Read();
    }
    while (Read()) {
    }
    ended_ = true;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }

  // All that came so far, with the terminal's control sequences.
  const std::string& screen() const { return screen_; }

 private:
  using Clock = std::chrono::steady_clock;

  winsize size_ = {};
  pid_t child_ = -1;
  int terminal_ = -1;
  bool ended_ = false;
  std::string screen_;
  size_t seen_ = 0;
};

}  // namespace pmkvq::testing_support
