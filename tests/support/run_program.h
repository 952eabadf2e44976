// Runs the program under test as a user would, and keeps what it printed.
#pragma once

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <ctime>
#include <filesystem>
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
  int64_t peak_rss_kib = 0;         // Largest resident set of the process.
  int64_t cpu_ms = 0;               // Processor time of all its threads.
  int64_t cpu_ms_after_signal = 0;  // The part of it after the first signal; 0 without one.
  int64_t ms_between_signals = 0;   // At most; 0 unless they were doubled.
};

// How a run ends early: by a signal when all that is set here holds; never where nothing is set.
// None of it is a time of a clock, which says nothing of a program on a busy machine.
struct Interrupt {
  int after_cpu_ms = -1;  // The program has used so much processor time.
  bool doubled = false;   // Two signals, as of a launcher that passes Ctrl-C on.
  int signal = SIGINT;
  std::function<bool()> when = {};
  bool once_asleep = false;  // All threads have slept for 0.1 s: the program waits for something.
};

// Processor time of a process and all its threads; 0 of one that has ended.
inline int64_t CpuMsOf(pid_t process) {
  clockid_t clock = {};
  timespec time = {};
  if (clock_getcpuclockid(process, &clock) != 0 || clock_gettime(clock, &time) != 0) return 0;
  return int64_t{time.tv_sec} * 1000 + time.tv_nsec / 1'000'000;
}

inline bool SleepsNow(pid_t process) {
  std::error_code ended;
  const std::filesystem::directory_iterator threads("/proc/" + std::to_string(process) + "/task",
                                                    ended);
  for (const auto& thread : threads) {
    const std::string stat = Slurp(thread.path() / "stat");
    const size_t name_end = stat.rfind(')');
    if (name_end == std::string::npos || stat.compare(name_end, 3, ") S") != 0) return false;
  }
  return true;
}

inline bool HasSlept(pid_t process) {
  for (int i = 0; i < 20; ++i) {
    if (!SleepsNow(process)) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  return true;
}

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
  ProgramResult result;
  int64_t cpu_ms_at_signal = -1;
  if (interrupt.after_cpu_ms >= 0 || interrupt.when || interrupt.once_asleep) {
    using Clock = std::chrono::steady_clock;
    const auto deadline = Clock::now() + std::chrono::minutes(5);
    const auto has_ended = [&] {
      siginfo_t info = {};  // Left for wait4.
      return waitid(P_PID, static_cast<id_t>(child), &info, WEXITED | WNOHANG | WNOWAIT) != 0 ||
             info.si_pid != 0;
    };
    const auto is_time = [&] {
      return CpuMsOf(child) >= interrupt.after_cpu_ms && (!interrupt.when || interrupt.when()) &&
             (!interrupt.once_asleep || HasSlept(child));
    };
    while (!is_time() && !has_ended() && Clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const auto before = Clock::now();
    cpu_ms_at_signal = CpuMsOf(child);
    kill(child, interrupt.signal);
    if (interrupt.doubled) {
      std::this_thread::sleep_for(std::chrono::microseconds(500));
      kill(child, interrupt.signal);
      result.ms_between_signals =
          std::chrono::ceil<std::chrono::milliseconds>(Clock::now() - before).count();
    }
  }
  int status = 0;
  rusage usage = {};
  if (wait4(child, &status, 0, &usage) != child) throw std::runtime_error("wait4 failed");
  for (const timeval& time : {usage.ru_utime, usage.ru_stime}) {
    result.cpu_ms += int64_t{time.tv_sec} * 1000 + time.tv_usec / 1000;
  }
  if (cpu_ms_at_signal >= 0) result.cpu_ms_after_signal = result.cpu_ms - cpu_ms_at_signal;
  result.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  result.out = Slurp(streams.File("out"));
  result.err = Slurp(streams.File("err"));
  result.peak_rss_kib = usage.ru_maxrss;
  return result;
}

}  // namespace pmkvq::testing_support
