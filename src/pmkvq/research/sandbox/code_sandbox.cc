#include "pmkvq/research/sandbox/code_sandbox.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "pmkvq/research/sandbox/sandbox_child.h"
#include "pmkvq/research/sandbox/sandbox_filter.h"
#include "pmkvq/research/sandbox/sandbox_landlock.h"
#include "pmkvq/research/sandbox/sandbox_python.h"
#include "pmkvq/research/sandbox/sandbox_streams.h"

namespace pmkvq {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr std::chrono::milliseconds kFolderLook(100);
constexpr std::chrono::milliseconds kThreadLook(10);

// The program's own folder. It holds files only: the rules allow no folders in it.
class WorkFolder {
 public:
  WorkFolder() {
    std::error_code error;
    const fs::path parent = fs::temp_directory_path(error);
    if (error) throw IoError("TMPDIR", "no folder for temporary files: " + error.message());
    path_ = (fs::absolute(parent) / "pmkvq-code-XXXXXX").string();
    if (mkdtemp(path_.data()) == nullptr) FailSandbox("make the folder " + path_);
  }
  ~WorkFolder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;

  const std::string& path() const { return path_; }

  void Write(const std::string& name, std::string_view content) const {
    const std::string path = path_ + "/" + name;
    const Descriptor file(open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
    if (file.get() < 0) FailSandbox("make " + path);
    if (!WriteAll(file.get(), content)) FailSandbox("write " + path);
  }

  bool IsTooLarge(const SandboxLimits& limits) const {
    std::error_code error;
    uintmax_t bytes = 0;
    int64_t files = 0;
    for (fs::directory_iterator it(path_, error), end; !error && it != end; it.increment(error)) {
      struct stat status = {};
      if (lstat(it->path().c_str(), &status) != 0) continue;
      bytes += static_cast<uintmax_t>(status.st_blocks) * 512;
      if (++files > limits.folder_files || bytes > limits.folder_bytes) return true;
    }
    return false;
  }

 private:
  std::string path_;
};

std::vector<char*> Pointers(const std::vector<std::string>& strings) {
  std::vector<char*> pointers;
  for (const std::string& text : strings) pointers.push_back(const_cast<char*>(text.c_str()));
  pointers.push_back(nullptr);
  return pointers;
}

// Not -I: that would ignore the hash seed, and with it the order of sets would change from run to
// run. The environment is ours alone, and -s leaves out the user's packages.
std::vector<std::string> Arguments(const std::string& program, std::string_view script) {
  return {program, "-s", "-B", "-X", "utf8", "-c", std::string(script)};
}

std::vector<std::string> Environment(const std::string& folder) {
  return {"PYTHONHASHSEED=0", "LANG=C.UTF-8",           "HOME=" + folder,
          "TMPDIR=" + folder, "OPENBLAS_NUM_THREADS=1", "OMP_NUM_THREADS=1"};
}

// The child process from fork to its end. The destructor kills a child that still runs.
class Child {
 public:
  explicit Child(const SandboxChild& setup) : pid_(fork()) {
    if (pid_ == 0) BecomeSandboxed(setup);
    if (pid_ < 0) FailSandbox("start a process");
  }
  ~Child() {
    if (status_) return;
    Kill();
    int status = 0;
    while (waitpid(pid_, &status, 0) < 0 && errno == EINTR) {
    }
  }
  Child(const Child&) = delete;
  Child& operator=(const Child&) = delete;

  // The child cannot start processes, so one signal ends everything.
  void Kill() const { kill(pid_, SIGKILL); }

  // Of the running program.
  int64_t NumThreads() const {
    constexpr std::string_view kField = "\nThreads:";
    const std::string path = fmt::format("/proc/{}/status", pid_);
    const Descriptor file(open(path.c_str(), O_RDONLY | O_CLOEXEC));
    if (file.get() < 0) FailSandbox("count threads in " + path);
    const std::string status = ReadUntilEnd(file.get());
    const size_t field = status.find(kField);
    if (field == std::string::npos) return 0;  // It has just ended.
    return std::strtoll(status.c_str() + field + kField.size(), nullptr, 10);
  }

  // False: it runs on.
  bool HasEnded(bool wait) {
    while (!status_) {
      int status = 0;
      const pid_t ended = wait4(pid_, &status, wait ? 0 : WNOHANG, &usage_);
      if (ended == 0) return false;
      if (ended == pid_) status_ = status;
      if (ended < 0 && errno != EINTR) FailSandbox("wait for the program");
    }
    return true;
  }
  int status() const { return *status_; }
  double cpu_seconds() const {
    const auto seconds = [](const timeval& time) {
      return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
    };
    return seconds(usage_.ru_utime) + seconds(usage_.ru_stime);
  }

 private:
  pid_t pid_;
  std::optional<int> status_;
  rusage usage_ = {};
};

// A check that is repeated, but not more often than once per `interval`.
class Regularly {
 public:
  explicit Regularly(Clock::duration interval) : interval_(interval) {}
  Clock::time_point next() const { return next_; }
  bool IsDue() {
    const Clock::time_point now = Clock::now();
    if (now < next_) return false;
    next_ = now + interval_;
    return true;
  }

 private:
  Clock::duration interval_;
  Clock::time_point next_ = Clock::now();
};

// Reads the streams until the program ends or breaks a limit. Returns the broken limit.
std::optional<SandboxEnd> Attend(Child* child, Streams* streams, const WorkFolder& folder,
                                 const SandboxLimits& limits) {
  const Clock::time_point deadline = Clock::now() + std::chrono::milliseconds(limits.wall_ms);
  Regularly folder_look(kFolderLook);
  Regularly thread_look(kThreadLook);
  while (true) {
    CancelPoint();
    if (!streams->AnyOpen()) {  // As a rule it is about to end.
      if (child->HasEnded(false)) return std::nullopt;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    } else {
      const Clock::time_point next = std::min({folder_look.next(), thread_look.next(), deadline});
      const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(next - Clock::now());
      streams->Read(static_cast<int>(std::max<int64_t>(left.count(), 0)) + 1);
    }
    if (streams->output.text.size() > limits.output_bytes ||
        streams->report.text.size() > limits.output_bytes) {
      return SandboxEnd::kOutputLimit;
    }
    if (Clock::now() >= deadline) return SandboxEnd::kTimeOut;
    if (thread_look.IsDue() && child->NumThreads() > limits.threads) {
      return SandboxEnd::kThreadLimit;
    }
    if (folder_look.IsDue() && folder.IsTooLarge(limits)) return SandboxEnd::kFolderLimit;
  }
}

// The last line of a traceback names the exception. Python 3.13 may be unable to write the
// traceback where memory has run out; it then writes "lost sys.stderr" instead.
bool EndsInMemoryError(std::string_view errors) {
  const size_t end = errors.find_last_not_of("\r\n");
  if (end == std::string_view::npos) return false;
  errors = errors.substr(0, end + 1);
  const std::string_view last = errors.substr(errors.rfind('\n') + 1);
  return last.starts_with("MemoryError") || last == "lost sys.stderr";
}

void Classify(const Child& child, const SandboxLimits& limits, SandboxResult* result) {
  const int status = child.status();
  if (WIFEXITED(status)) {
    result->exit_code = WEXITSTATUS(status);
    const bool no_memory = result->exit_code != 0 && EndsInMemoryError(result->errors);
    result->end = no_memory ? SandboxEnd::kMemoryLimit : SandboxEnd::kExited;
    return;
  }
  result->signal = WTERMSIG(status);
  result->end = SandboxEnd::kSignal;
  if (result->signal == SIGXCPU) result->end = SandboxEnd::kTimeOut;
  if (result->signal == SIGKILL) {  // By the kernel: SIGXCPU was ignored, or memory ran out.
    const bool slow = child.cpu_seconds() >= static_cast<double>(limits.cpu_seconds);
    result->end = slow ? SandboxEnd::kTimeOut : SandboxEnd::kMemoryLimit;
  }
}

// Returns when the child has become the program.
void WaitForExec(int status) {
  ChildFailure failure = {};
  ssize_t count = 0;
  do {
    count = read(status, &failure, sizeof failure);
  } while (count < 0 && errno == EINTR);
  if (count == sizeof failure) FailSandbox(ChildStepName(failure.step), failure.error);
}

}  // namespace

struct PythonSandbox::Impl {
  explicit Impl(const SandboxFeatures& features)
      : landlock(features.landlock && LandlockVersion() >= 1), namespaces(features.namespaces) {}

  PythonInterpreter interpreter = FindPython();
  bool landlock;
  bool namespaces;
  std::vector<sock_filter> filter = MakeSandboxFilter(
      interpreter.program.c_str(), landlock ? FilterWrites::kByOtherMeans : FilterWrites::kNone);
};

PythonSandbox::PythonSandbox(const SandboxFeatures& features)
    : impl_(std::make_unique<Impl>(features)) {
  const SandboxResult first = Run({"print(open('solution.py').read())", "x = 1", ""}, {});
  if (first.end != SandboxEnd::kExited || first.exit_code != 0 || first.output != "x = 1\n") {
    std::string errors = first.errors.substr(0, first.errors.find_last_not_of('\n') + 1);
    errors.erase(0, errors.rfind('\n') + 1);
    throw Unsupported(
        "sandbox", fmt::format("{}: found that it does not run when confined (exit "
                               "code {}, signal {}): {}",
                               impl_->interpreter.program, first.exit_code, first.signal, errors));
  }
}

PythonSandbox::~PythonSandbox() = default;

const PythonSandbox& PythonSandbox::Shared() {
  static const PythonSandbox shared;
  return shared;
}

bool PythonSandbox::CanWriteFiles() const { return impl_->landlock; }

SandboxResult PythonSandbox::Run(const SandboxJob& job, const SandboxLimits& limits) const {
  const WorkFolder folder;
  folder.Write("solution.py", job.code);
  const Descriptor input = MakeInput(job.input);
  Pipe output = MakePipe();
  Pipe errors = MakePipe();
  Pipe report = MakePipe();
  Pipe status = MakePipe();
  Descriptor rules;
  if (impl_->landlock) {
    rules = MoveUp(MakeLandlockRules(impl_->interpreter.readable, folder.path()));
  }
  const std::vector<std::string> arguments = Arguments(impl_->interpreter.program, job.script);
  const std::vector<std::string> environment = Environment(folder.path());
  const std::vector<char*> argument_pointers = Pointers(arguments);
  const std::vector<char*> environment_pointers = Pointers(environment);

  SandboxChild setup = {};
  setup.program = impl_->interpreter.program.c_str();
  setup.arguments = argument_pointers.data();
  setup.environment = environment_pointers.data();
  setup.folder = folder.path().c_str();
  setup.streams[0] = input.get();
  setup.streams[1] = output.write_end.get();
  setup.streams[2] = errors.write_end.get();
  setup.streams[3] = report.write_end.get();
  setup.status = status.write_end.get();
  setup.landlock = rules.get();
  setup.namespaces = impl_->namespaces;
  setup.filter = {static_cast<unsigned short>(impl_->filter.size()), impl_->filter.data()};
  setup.limits = &limits;
  setup.parent = getpid();
  Child child(setup);
  for (Pipe* pipe : {&output, &errors, &report, &status}) pipe->write_end.Close();
  WaitForExec(status.read_end.get());

  Streams streams;
  streams.output.source = std::move(output.read_end);
  streams.errors.source = std::move(errors.read_end);
  streams.report.source = std::move(report.read_end);
  const std::optional<SandboxEnd> broken = Attend(&child, &streams, folder, limits);
  if (broken) child.Kill();
  child.HasEnded(true);
  SandboxResult result;
  result.output = std::move(streams.output.text);
  result.report = std::move(streams.report.text);
  result.errors = std::move(streams.errors.text);
  Classify(child, limits, &result);
  if (broken) result.end = *broken;
  return result;
}

}  // namespace pmkvq
