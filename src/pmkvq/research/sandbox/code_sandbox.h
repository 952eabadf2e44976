// Runs one untrusted Python program in a confined child process.
//
// On every system (otherwise nothing is run): no network, no other processes (only threads), no
// signals to others, no new rights, CPU time, address space, threads and file sizes limited,
// no open files of this process, a new environment, a new working folder and a new session;
// the kernel ends it when this thread ends. After the wall time it is killed; since it cannot start
// processes, none is left. The folder is removed afterwards.
//
// Threads are counted in /proc, a hundred times a second, and a program with too many is killed:
// that works for any user and in any container. Where there are user name spaces, the kernel itself
// refuses to start more, except for root (RLIMIT_NPROC).
//
// With Landlock (Linux 5.13) the program may read only the interpreter and the system's libraries,
// and make files in its folder. Without Landlock it may read every file that the user may read, and
// write no file, not even in its folder. Where the system allows, it runs in new user, network, IPC
// and host name spaces, as a second line of defence.
//
// Linux on x86-64 and AArch64. Needs python3 (3.8 or later) at run time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

namespace pmkvq {

struct SandboxLimits {
  int64_t cpu_seconds = 6;   // User and system time of all threads.
  int64_t wall_ms = 20'000;  // Longer, since evaluation shares the machine with the model.
  size_t memory_bytes = size_t{4} << 30;   // Address space.
  size_t output_bytes = size_t{16} << 20;  // Standard output.
  size_t file_bytes = size_t{32} << 20;
  // All files in the folder together, looked at ten times a second.
  size_t folder_bytes = size_t{64} << 20;
  int64_t folder_files = 1000;
  int64_t threads = 1024;
};

struct SandboxJob {
  std::string_view script;  // What the interpreter runs (`-c`): trusted, short.
  std::string_view code;    // Put into solution.py in the working folder.
  std::string_view input;   // Standard input.
};

enum class SandboxEnd : uint8_t {
  kExited,       // By itself; see exit_code.
  kSignal,       // A crash.
  kTimeOut,      // CPU or wall time.
  kMemoryLimit,  // An uncaught MemoryError.
  kOutputLimit,
  kFolderLimit,
  kThreadLimit,
};

struct SandboxResult {
  SandboxEnd end = SandboxEnd::kExited;
  int exit_code = 0;   // kExited, kMemoryLimit
  int signal = 0;      // kSignal
  std::string output;  // Standard output, whole unless kOutputLimit.
  std::string report;  // What the script wrote to descriptor 3; has output's limit.
  std::string errors;  // The last 4 KiB of standard error.
};

// Optional features of the kernel. A test sets one to false to run as on a system without it.
struct SandboxFeatures {
  bool landlock = true;
  bool namespaces = true;
};

// An interpreter and the files that it has to read. Runs may come from several threads at once.
class PythonSandbox {
 public:
  // Finds python3 on PATH, and runs a first program. Throws Unsupported when there is none (names
  // the package), when it is too old, or when this system cannot confine it.
  explicit PythonSandbox(const SandboxFeatures& features = {});
  ~PythonSandbox();
  PythonSandbox(const PythonSandbox&) = delete;
  PythonSandbox& operator=(const PythonSandbox&) = delete;

  // The one of this process, made at its first use. Throws as the constructor.
  static const PythonSandbox& Shared();

  // Throws IoError when the system refuses a resource of the run (folder, pipes, process): the
  // program may still be right. Has a CancelPoint (base/interrupt.h) ten times a second: a run that
  // ends with Cancelled leaves no process and no files.
  SandboxResult Run(const SandboxJob& job, const SandboxLimits& limits) const;

  // Whether programs may write files in their working folder (Landlock is there).
  bool CanWriteFiles() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace pmkvq
