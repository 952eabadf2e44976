// Runs the program under test as a user would, and keeps what it printed.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "support/temp_folder.h"

namespace pmkvq::testing_support {

struct ProgramResult {
  int exit_code = -1;  // 128 + signal when a signal ended it.
  std::string out;
  std::string err;
  int64_t peak_rss_kib = 0;     // Largest resident set of the process.
  int64_t ms_after_signal = 0;  // From the first signal to the end; 0 without one.
};

// How a run ends early.
struct Interrupt {
  int after_ms = -1;     // Sends the signal after this time; -1: never.
  bool doubled = false;  // And once more at once, as a launcher does that passes Ctrl-C on.
  int signal = SIGINT;
  // Waits first until this holds, a minute at most: work that is fast on one machine and slow on
  // another has no good `after_ms`.
  std::function<bool()> when = {};
};

// Standard streams are files in a folder of their own, so that no pipe can block.
inline ProgramResult RunProgram(const std::vector<std::string>& args, const std::string& input = "",
                                Interrupt interrupt = {}) {
  const TempFolder streams;
  const std::string in_path = streams.Write("in", input);
  const pid_t child = fork();
  if (child < 0) throw std::runtime_error("fork failed");
  if (child == 0) {
    const int in = open(in_path.c_str(), O_RDONLY);
    const int out = open(streams.File("out").c_str(), O_WRONLY | O_CREAT, 0600);
    const int err = open(streams.File("err").c_str(), O_WRONLY | O_CREAT, 0600);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    std::vector<char*> argv = {const_cast<char*>(PMKVQ_PROGRAM)};
    for (const std::string& arg : args) argv.push_back(const_cast<char*>(arg.c_str()));
    argv.push_back(nullptr);
    execv(PMKVQ_PROGRAM, argv.data());
    _exit(127);
  }
  std::chrono::steady_clock::time_point signalled;
  if (interrupt.when) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::minutes(1);
    siginfo_t ended = {};  // Left for wait4.
    while (!interrupt.when() && std::chrono::steady_clock::now() < deadline &&
           waitid(P_PID, static_cast<id_t>(child), &ended, WEXITED | WNOHANG | WNOWAIT) == 0 &&
           ended.si_pid == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
  }
  if (interrupt.after_ms >= 0) {
    std::this_thread::sleep_for(std::chrono::milliseconds(interrupt.after_ms));
    signalled = std::chrono::steady_clock::now();
    kill(child, interrupt.signal);
    if (interrupt.doubled) {
      std::this_thread::sleep_for(std::chrono::microseconds(500));
      kill(child, interrupt.signal);
    }
  }
  int status = 0;
  rusage usage = {};
  if (wait4(child, &status, 0, &usage) != child) throw std::runtime_error("wait4 failed");
  ProgramResult result;
  if (interrupt.after_ms >= 0) {
    result.ms_after_signal = std::chrono::duration_cast<std::chrono::milliseconds>(
                                 std::chrono::steady_clock::now() - signalled)
                                 .count();
  }
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = Slurp(streams.File("out"));
  result.err = Slurp(streams.File("err"));
  result.peak_rss_kib = usage.ru_maxrss;
  return result;
}

}  // namespace pmkvq::testing_support
