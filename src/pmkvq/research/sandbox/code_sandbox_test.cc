#include "pmkvq/research/sandbox/code_sandbox.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "pmkvq/base/error.h"
#include "pmkvq/base/interrupt.h"
#include "support/expect_error.h"
#include "support/temp_folder.h"

namespace pmkvq {
namespace {

using testing_support::ExpectError;
using testing_support::TempFolder;

constexpr std::string_view kRunCode =
    "exec(compile(open('solution.py').read(), 'solution.py', 'exec'))";

// Prints "NAME refused" or "NAME done" for each action.
constexpr const char* kTry = R"(
import os
def attempt(name, action):
    try:
        action()
        print(name, "done")
    except OSError:
        print(name, "refused")
)";

// The machine may be busy or slow: only tests of the limits themselves have tight ones.
SandboxLimits WideLimits() {
  SandboxLimits limits;
  limits.cpu_seconds = 20;
  limits.wall_ms = 60'000;
  return limits;
}

SandboxLimits OneCpuSecond() {
  SandboxLimits limits = WideLimits();
  limits.cpu_seconds = 1;
  return limits;
}

SandboxResult RunCode(const std::string& code, const std::string& input = "",
                      const SandboxLimits& limits = WideLimits()) {
  return PythonSandbox::Shared().Run({kRunCode, code, input}, limits);
}

// `printed` by a program that ends well.
void ExpectOutput(const std::string& code, const std::string& printed,
                  const std::string& input = "", const SandboxLimits& limits = WideLimits()) {
  const SandboxResult result = RunCode(code, input, limits);
  EXPECT_EQ(result.end, SandboxEnd::kExited) << result.errors;
  EXPECT_EQ(result.exit_code, 0) << result.errors;
  EXPECT_EQ(result.output, printed) << result.errors;
}

// An environment variable of this process for the time of a test.
class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    if (const char* old = getenv(name)) old_ = old;
    setenv(name, value.c_str(), 1);
  }
  ~Environment() {
    if (old_.empty()) {
      unsetenv(name_);
    } else {
      setenv(name_, old_.c_str(), 1);
    }
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
  std::string old_;
};

bool HasChildren() { return waitpid(-1, nullptr, WNOHANG) >= 0; }

TEST(PythonSandboxTest, InputOutputErrorsAndReport) {
  const SandboxResult result = RunCode(R"(
import os, sys
print("é", input())
print("why", file=sys.stderr)
os.write(3, b"seen")
sys.exit(3)
)",
                                       "日本\n");
  EXPECT_EQ(result.end, SandboxEnd::kExited);
  EXPECT_EQ(result.exit_code, 3);
  EXPECT_EQ(result.output, "é 日本\n");
  EXPECT_EQ(result.errors, "why\n");
  EXPECT_EQ(result.report, "seen");
}

TEST(PythonSandboxTest, LongInputNeedsNoReader) {
  const std::string input(size_t{24} << 20, 'x');
  ExpectOutput("import sys\nprint(len(sys.stdin.read()))", "25165824\n", input);
  ExpectOutput("print('not read')", "not read\n", input);
  ExpectOutput("", "", input);
}

TEST(PythonSandboxTest, LongOutputArrivesWhole) {
  const SandboxResult result = RunCode("print('y' * (3 << 20))");
  EXPECT_EQ(result.output, std::string(3 << 20, 'y') + "\n");
}

TEST(PythonSandboxTest, CpuTimeIsLimited) {
  EXPECT_EQ(RunCode("while True: pass", "", OneCpuSecond()).end, SandboxEnd::kTimeOut);
  EXPECT_FALSE(HasChildren());
}

TEST(PythonSandboxTest, IgnoringTheSignalDoesNotHelp) {
  const SandboxResult result = RunCode(R"(
import signal
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
while True: pass
)",
                                       "", OneCpuSecond());
  EXPECT_EQ(result.end, SandboxEnd::kTimeOut);
  EXPECT_EQ(result.signal, SIGKILL);
}

TEST(PythonSandboxTest, WallTimeIsLimitedForAllThreads) {
  SandboxLimits limits = WideLimits();
  limits.wall_ms = 500;
  const auto start = std::chrono::steady_clock::now();
  const SandboxResult result = RunCode(R"(
import os, threading, time
for i in range(4): threading.Thread(target=lambda: time.sleep(300)).start()
for descriptor in range(4): os.close(descriptor)
time.sleep(300)
)",
                                       "", limits);
  EXPECT_EQ(result.end, SandboxEnd::kTimeOut);
  EXPECT_EQ(result.signal, SIGKILL);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
  EXPECT_FALSE(HasChildren());
}

TEST(PythonSandboxTest, MemoryIsLimited) {
  SandboxLimits limits = WideLimits();
  limits.memory_bytes = size_t{256} << 20;
  EXPECT_EQ(RunCode("x = bytearray(1 << 30)", "", limits).end, SandboxEnd::kMemoryLimit);
  EXPECT_EQ(RunCode("x = []\nwhile True: x.append(bytearray(1 << 20))", "", limits).end,
            SandboxEnd::kMemoryLimit);
  // Caught: the program's own affair.
  ExpectOutput("try: x = bytearray(1 << 30)\nexcept MemoryError: print('small')", "small\n", "",
               limits);
}

TEST(PythonSandboxTest, OutputIsLimited) {
  SandboxLimits limits = WideLimits();
  limits.output_bytes = size_t{1} << 20;
  const SandboxResult output = RunCode("while True: print('x' * 1000)", "", limits);
  EXPECT_EQ(output.end, SandboxEnd::kOutputLimit);
  EXPECT_LE(output.output.size(), limits.output_bytes + 65536);
  const SandboxResult report =
      RunCode("import os\nwhile True: os.write(3, b'x' * 1000)", "", limits);
  EXPECT_EQ(report.end, SandboxEnd::kOutputLimit);
  // Of standard error only the end is kept.
  const SandboxResult errors =
      RunCode("import sys\nfor i in range(100000): print(i, file=sys.stderr)", "", limits);
  EXPECT_EQ(errors.end, SandboxEnd::kExited);
  EXPECT_EQ(errors.errors.size(), 4096U);
  EXPECT_EQ(errors.errors.substr(4096 - 6), "99999\n");
}

TEST(PythonSandboxTest, NoOtherProcesses) {
  ExpectOutput(std::string(kTry) + R"(
import subprocess
attempt("fork", os.fork)
attempt("subprocess", lambda: subprocess.run(["true"]))
attempt("spawn", lambda: os.posix_spawn("/bin/true", ["true"], {}))
attempt("exec", lambda: os.execv("/bin/true", ["true"]))
)",
               "fork refused\nsubprocess refused\nspawn refused\nexec refused\n");
  // A bomb goes off in an empty room.
  SandboxLimits limits = WideLimits();
  limits.wall_ms = 300;
  const SandboxResult bomb =
      RunCode("import os\nwhile True:\n  try: os.fork()\n  except OSError: pass", "", limits);
  EXPECT_EQ(bomb.end, SandboxEnd::kTimeOut);
  EXPECT_FALSE(HasChildren());
}

TEST(PythonSandboxTest, ThreadsWork) {
  ExpectOutput(R"(
import threading
done = []
threads = [threading.Thread(target=done.append, args=(i,)) for i in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(sorted(done))
)",
               "[0, 1, 2, 3]\n");
}

// Starts 20,000 threads that sleep, or as many as it can; prints a byte for each. From the 2,000th
// on it takes more than a minute, in which the judge looks, however busy the machine is.
constexpr const char* kThreadBomb = R"(
import os, threading, time
threading.stack_size(32768)
try:
    for i in range(20000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        os.write(1, b".")
        if i > 2000: time.sleep(0.005)
except RuntimeError: pass
os._exit(0)
)";

// The same beneath Python and the C library: threads on one stack that only wait.
constexpr const char* kRawThreadBomb = R"(
import ctypes, os, time
libc = ctypes.CDLL(None)
pause = ctypes.cast(libc.pause, ctypes.c_void_p)
stack = ctypes.create_string_buffer(1 << 20)
top = ctypes.c_void_p(ctypes.addressof(stack) + (1 << 19) & ~15)
flags = 0x100 | 0x200 | 0x400 | 0x800 | 0x10000  # VM, FS, FILES, SIGHAND, THREAD
for i in range(20000):
    if libc.clone(pause, top, flags, None) < 0: break
    os.write(1, b".")
    if i > 2000: time.sleep(0.005)
time.sleep(60)
)";

TEST(PythonSandboxTest, ThreadBombsOfUsersAreRefusedInANameSpace) {
  const SandboxResult result = RunCode(kThreadBomb);
  // Elsewhere the program was killed, as the next test says.
  if (result.end == SandboxEnd::kThreadLimit) GTEST_SKIP() << "root, or no user name spaces";
  EXPECT_EQ(result.end, SandboxEnd::kExited) << result.errors;
  EXPECT_LE(result.output.size(), 1024u);
}

TEST(PythonSandboxTest, ThreadBombsAreKilledWithoutNameSpaces) {
  const PythonSandbox plain({.namespaces = false});
  const SandboxLimits limits = WideLimits();
  for (const char* bomb : {kThreadBomb, kRawThreadBomb}) {
    const SandboxResult result = plain.Run({kRunCode, bomb, ""}, limits);
    if (result.end == SandboxEnd::kExited && result.output.size() < 1024) {
      GTEST_SKIP() << "this system lets no program start 1,024 threads";
    }
    EXPECT_EQ(result.end, SandboxEnd::kThreadLimit) << result.errors;
    // What starts between two looks comes on top: far from all.
    EXPECT_GT(result.output.size(), 1000u);
    EXPECT_LT(result.output.size(), 15000u);
  }
}

TEST(PythonSandboxTest, ForkBombsDoNotStart) {
  const PythonSandbox plain({.namespaces = false});
  const char* const bomb = R"(
import os
while True:
    try: os.fork()
    except OSError as error: print(error.errno); break
)";
  const SandboxResult result = plain.Run({kRunCode, bomb, ""}, WideLimits());
  EXPECT_EQ(result.end, SandboxEnd::kExited);
  EXPECT_EQ(result.output, "1\n");  // EPERM
}

TEST(PythonSandboxTest, CancelledRunsEndAtOnce) {
  CancelFlag flag = false;
  std::thread signal([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    flag = true;
  });
  const auto start = std::chrono::steady_clock::now();
  {
    const CancelScope scope(&flag, "grading");
    EXPECT_THROW(RunCode("import time\ntime.sleep(55)"), Cancelled);
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(50));
  signal.join();
}

TEST(PythonSandboxTest, NoNetwork) {
  ExpectOutput(std::string(kTry) + R"(
import socket
attempt("tcp", lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
attempt("udp", lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
attempt("unix", lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
attempt("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW))
attempt("pair", socket.socketpair)
)",
               "tcp refused\nudp refused\nunix refused\nnetlink refused\npair refused\n");
}

TEST(PythonSandboxTest, NoSignalsToOthers) {
  ExpectOutput(std::string(kTry) + R"(
import fcntl, resource
parent = os.getppid()
attempt("kill", lambda: os.kill(parent, 0))
attempt("all", lambda: os.kill(-1, 0))
attempt("owner", lambda: fcntl.fcntl(1, fcntl.F_SETOWN, parent))
attempt("limits", lambda: resource.prlimit(parent, resource.RLIMIT_NOFILE))
)",
               "kill refused\nall refused\nowner refused\nlimits refused\n");
}

TEST(PythonSandboxTest, NothingIsInherited) {
  const Environment secret("PMKVQ_TEST_SECRET", "hush");
  const int open_descriptor = open("/dev/null", O_RDONLY);  // Not closed by exec.
  ASSERT_GE(open_descriptor, 0);
  const SandboxResult result = RunCode(R"(
import os
print(os.environ.get("PMKVQ_TEST_SECRET"), "PATH" in os.environ)
def is_open(descriptor):
    try: return bool(os.fstat(descriptor))
    except OSError: return False
print([descriptor for descriptor in range(64) if is_open(descriptor)])
print(os.getsid(0) == os.getpid())
)");
  close(open_descriptor);
  EXPECT_EQ(result.output, "None False\n[0, 1, 2, 3]\nTrue\n") << result.errors;
}

TEST(PythonSandboxTest, RunsRepeat) {
  const std::string code = "print(*{str(i) for i in range(20)})";
  EXPECT_EQ(RunCode(code).output, RunCode(code).output);
}

TEST(PythonSandboxTest, FilesInTheFolder) {
  if (!PythonSandbox::Shared().CanWriteFiles()) GTEST_SKIP() << "no Landlock: no writes at all";
  ExpectOutput(std::string(kTry) + R"(
for mode in "wa":
    with open("a", mode) as file: file.write("text")
print(open("a").read(), sorted(os.listdir(".")))
# What is written stays in sight.
attempt("remove", lambda: os.remove("a"))
attempt("rename", lambda: os.rename("a", "b"))
attempt("nameless", lambda: os.open(".", os.O_TMPFILE | os.O_RDWR))
)",
               "texttext ['a', 'solution.py']\nremove refused\nrename refused\nnameless refused\n");
}

// Everything that would change something outside, tried on a file of ours.
constexpr const char* kOutside = R"(
path = input()
attempt("write", lambda: open(path, "r+"))
attempt("append", lambda: open(path, "a"))
attempt("empty", lambda: os.open(path, os.O_RDONLY | os.O_TRUNC))
attempt("truncate", lambda: os.truncate(path, 0))
attempt("remove", lambda: os.remove(path))
attempt("rename", lambda: os.rename(path, path + "2"))
attempt("link", lambda: os.link(path, "link"))
attempt("mode", lambda: os.chmod(path, 0))
attempt("owner", lambda: os.chown(path, 1, 1))
attempt("time", lambda: os.utime(path))
attempt("attribute", lambda: os.setxattr(path, "user.x", b"x"))
attempt("new", lambda: open(path + "3", "w"))
attempt("folder", lambda: os.mkdir(path + "4"))
attempt("symlink", lambda: os.symlink(path, "symlink"))
attempt("pipe", lambda: os.mkfifo("pipe"))
)";
constexpr const char* kAllRefused =
    "write refused\nappend refused\nempty refused\ntruncate refused\nremove refused\n"
    "rename refused\nlink refused\nmode refused\nowner refused\ntime refused\n"
    "attribute refused\nnew refused\nfolder refused\nsymlink refused\npipe refused\n";

void ExpectOutsideIsSafe(const PythonSandbox& sandbox) {
  const TempFolder folder;
  const std::string path = folder.Write("precious", "content");
  const SandboxResult result =
      sandbox.Run({kRunCode, std::string(kTry) + kOutside, path}, WideLimits());
  EXPECT_EQ(result.output, kAllRefused) << result.errors;
  EXPECT_EQ(folder.NumEntries(), 1U);
  std::stringstream content;
  content << std::ifstream(path).rdbuf();
  EXPECT_EQ(content.str(), "content");
}

TEST(PythonSandboxTest, FilesOutsideStayAsTheyAre) { ExpectOutsideIsSafe(PythonSandbox::Shared()); }

TEST(PythonSandboxTest, WithoutLandlockNothingIsWritten) {
  const PythonSandbox sandbox({.landlock = false});
  EXPECT_FALSE(sandbox.CanWriteFiles());
  ExpectOutsideIsSafe(sandbox);
  const SandboxResult result = sandbox.Run(
      {kRunCode, std::string(kTry) + "attempt('own', lambda: open('a', 'w'))", ""}, WideLimits());
  EXPECT_EQ(result.output, "own refused\n") << result.errors;
}

TEST(PythonSandboxTest, FilesOutsideAreNotRead) {
  if (!PythonSandbox::Shared().CanWriteFiles()) GTEST_SKIP() << "no Landlock";
  const TempFolder folder;
  ExpectOutput(std::string(kTry) + R"(
path = input()
attempt("read", lambda: open(path))
attempt("list", lambda: os.listdir(os.path.dirname(path)))
attempt("process", lambda: open("/proc/self/maps"))
)",
               "read refused\nlist refused\nprocess refused\n", folder.Write("tests", "answers"));
}

TEST(PythonSandboxTest, FolderIsLimited) {
  if (!PythonSandbox::Shared().CanWriteFiles()) GTEST_SKIP() << "no Landlock";
  SandboxLimits limits = WideLimits();
  limits.file_bytes = size_t{1} << 20;
  limits.folder_bytes = size_t{2} << 20;
  limits.folder_files = 100;
  ExpectOutput(
      "try:\n  with open('a', 'wb') as file: file.write(bytes(2 << 20))\n"
      "except OSError as error: print(error.errno)",
      "27\n", "", limits);  // EFBIG
  const std::string wait = "\nimport time\ntime.sleep(60)";
  EXPECT_EQ(
      RunCode("for i in range(3): open(str(i), 'wb').write(bytes(1 << 20))" + wait, "", limits).end,
      SandboxEnd::kFolderLimit);
  EXPECT_EQ(RunCode("for i in range(200): open(str(i), 'w').close()" + wait, "", limits).end,
            SandboxEnd::kFolderLimit);
}

TEST(PythonSandboxTest, FolderIsRemoved) {
  const TempFolder folder;
  const Environment temporary("TMPDIR", folder.path());
  SandboxLimits limits = WideLimits();
  limits.wall_ms = 300;
  const SandboxResult result = RunCode(
      "import os\nprint(os.getcwd())\nimport sys\nsys.stdout.flush()\n"
      "try: open('left', 'w').write('x')\nexcept OSError: pass\n"
      "while True: pass",
      "", limits);
  EXPECT_EQ(result.end, SandboxEnd::kTimeOut);
  EXPECT_EQ(folder.NumEntries(), 0U);
  ExpectOutput("import os\nprint(os.path.basename(os.getcwd())[:11])", "pmkvq-code-\n");
  EXPECT_EQ(folder.NumEntries(), 0U);
}

TEST(PythonSandboxTest, CrashIsASignal) {
  const SandboxResult result = RunCode("import ctypes\nctypes.string_at(0)");
  EXPECT_EQ(result.end, SandboxEnd::kSignal);
  EXPECT_EQ(result.signal, SIGSEGV);
}

// Whether some process names it as its parent: the fourth field of /proc/PID/stat.
bool IsParent(pid_t process) {
  for (const auto& entry : std::filesystem::directory_iterator("/proc")) {
    std::string line;
    std::getline(std::ifstream(entry.path() / "stat"), line);
    std::istringstream fields(line.substr(line.rfind(')') + 1));
    std::string state;
    pid_t parent = 0;
    if (fields >> state >> parent && parent == process) return true;
  }
  return false;
}

// A judge that is killed takes the program along: seen by becoming the parent of orphans.
TEST(PythonSandboxTest, EndsWithItsJudge) {
  PythonSandbox::Shared();
  const TempFolder folder;  // For what the judge leaves.
  const Environment temporary("TMPDIR", folder.path());
  ASSERT_EQ(prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), 0);
  const pid_t judge = fork();
  ASSERT_GE(judge, 0);
  if (judge == 0) {
    SandboxLimits limits;
    limits.wall_ms = 120'000;
    RunCode("import time\ntime.sleep(100)", "", limits);
    _exit(0);
  }
  while (!IsParent(judge)) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  std::this_thread::sleep_for(std::chrono::milliseconds(200));
  kill(judge, SIGKILL);
  int status = 0;
  ASSERT_EQ(waitpid(judge, &status, 0), judge);
  const auto start = std::chrono::steady_clock::now();
  const pid_t orphan = waitpid(-1, &status, 0);
  EXPECT_GT(orphan, 0);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(60));
  EXPECT_FALSE(HasChildren());
  prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0);
}

TEST(PythonSandboxTest, SeveralThreads) {
  std::vector<std::string> outputs(6);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < outputs.size(); ++i) {
    threads.emplace_back([&outputs, i] {
      outputs[i] = RunCode("print(int(input()) * 2)", std::to_string(i)).output;
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < outputs.size(); ++i) EXPECT_EQ(outputs[i], std::to_string(2 * i) + "\n");
}

TEST(PythonSandboxTest, NamesWhatIsMissing) {
  const TempFolder empty;
  const Environment path("PATH", empty.path());
  ExpectError<Unsupported>([] { const PythonSandbox sandbox; },
                           {"python3", "PATH", "install the package python3"});
}

TEST(PythonSandboxTest, NoRoomForTheFolderIsNoVerdict) {
  const TempFolder empty;
  const Environment temporary("TMPDIR", empty.path() + "/missing");
  ExpectError<IoError>([] { RunCode("print(1)"); }, {"TMPDIR", "no folder"});
}

}  // namespace
}  // namespace pmkvq
