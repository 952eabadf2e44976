#include "pmkvq/research/sandbox/sandbox_python.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <filesystem>
#include <string_view>

#include "pmkvq/base/error.h"
#include "pmkvq/research/sandbox/sandbox_streams.h"

namespace pmkvq {
namespace {

namespace fs = std::filesystem;

// One path a line: the program, then the files and folders that it reads. A shim on PATH (pyenv)
// leads to the real one.
constexpr const char* kDescribe = R"(import os, sys
if sys.version_info < (3, 8): sys.exit(3)
real = os.path.realpath(sys.executable)
for path in [sys.executable, real, os.path.dirname(real), sys.prefix, sys.base_prefix,
             sys.exec_prefix, sys.base_exec_prefix] + sys.path: print(path)
)";

int WaitFor(pid_t child) {
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) FailSandbox("wait for python3");
  }
  return status;
}

// What a trusted `python3` from PATH prints.
std::string DescribePython() {
  Pipe out = MakePipe();
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, out.write_end.get(), STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, "/dev/null", O_WRONLY, 0);
  std::array<char*, 5> arguments = {const_cast<char*>("python3"), const_cast<char*>("-I"),
                                    const_cast<char*>("-c"), const_cast<char*>(kDescribe), nullptr};
  pid_t child = 0;
  const int error = posix_spawnp(&child, "python3", &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  out.write_end.Close();
  const std::string text = error == 0 ? ReadUntilEnd(out.read_end.get()) : "";
  const int status = error == 0 ? WaitFor(child) : 0;
  if (error != 0 || !WIFEXITED(status) || WEXITSTATUS(status) != 0) {
    const bool old = error == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 3;
    throw Unsupported(
        "python3", fmt::format("found {}, expected Python 3.8 or later on PATH: code is judged by "
                               "running it; install the package python3",
                               old ? "an older version" : "none that runs"));
  }
  return text;
}

}  // namespace

PythonInterpreter FindPython() {
  PythonInterpreter found;
  // Libraries, the loader's cache, Debian's site hooks, the time zone.
  found.readable = {"/usr",       "/lib",         "/lib32",           "/lib64",
                    "/nix/store", "/gnu/store",   "/etc/ld.so.cache", "/etc/localtime",
                    "/dev/zero",  "/dev/urandom", "/dev/random"};
  std::error_code error;
  for (fs::directory_iterator it("/etc", error), end; !error && it != end; it.increment(error)) {
    if (it->path().filename().string().rfind("python3", 0) == 0) {
      found.readable.push_back(it->path().string());
    }
  }
  const std::string described = DescribePython();
  for (std::string_view rest = described; !rest.empty();) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    const std::string path(rest.substr(0, end));
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (found.program.empty()) found.program = path;
    if (path.size() > 1 && path.front() == '/') found.readable.push_back(path);
  }
  return found;
}

}  // namespace pmkvq
