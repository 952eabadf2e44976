#include "pmkvq/research/sandbox/sandbox_child.h"

#include <fcntl.h>
#include <linux/capability.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>

#include "pmkvq/research/sandbox/sandbox_landlock.h"

namespace pmkvq {
namespace {

constexpr int kStatus = 4;
constexpr int kLandlock = 5;

[[noreturn]] void GiveUp(ChildStep step) {
  const ChildFailure failure = {step, errno};
  [[maybe_unused]] const ssize_t written = write(kStatus, &failure, sizeof failure);
  _exit(127);
}

void Check(bool done, ChildStep step) {
  if (!done) GiveUp(step);
}

void CloseFrom(unsigned first) {
  constexpr long kCloseRange = 436;  // Linux 5.9
  if (syscall(kCloseRange, first, ~0U, 0) == 0) return;
  rlimit limit = {};
  getrlimit(RLIMIT_NOFILE, &limit);
  const auto end = static_cast<unsigned>(limit.rlim_cur < 65536 ? limit.rlim_cur : 65536);
  for (unsigned descriptor = first; descriptor < end; ++descriptor) {
    close(static_cast<int>(descriptor));
  }
}

void PlaceStreams(const SandboxChild& child) {
  dup3(child.status, kStatus, O_CLOEXEC);
  for (int i = 0; i < 4; ++i) Check(dup2(child.streams[i], i) == i, ChildStep::kStreams);
  if (child.landlock >= 0) {
    Check(dup3(child.landlock, kLandlock, O_CLOEXEC) == kLandlock, ChildStep::kStreams);
  }
  CloseFrom(child.landlock >= 0 ? kLandlock + 1 : kStatus + 1);
}

// exec resets handlers only: signals that this process ignores or blocks would stay so in the
// child.
void ResetSignals() {
  for (int number = 1; number < NSIG; ++number) signal(number, SIG_DFL);
  sigset_t none;
  sigemptyset(&none);
  sigprocmask(SIG_SETMASK, &none, nullptr);
}

// Where memory runs out, this process goes first. Not important enough to fail for.
void OfferToOomKiller() {
  const int file = open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC);
  if (file < 0) return;
  [[maybe_unused]] const ssize_t written = write(file, "1000", 4);
  close(file);
}

bool Limit(int resource, rlim_t soft, rlim_t hard) {
  rlimit limit = {};
  if (getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return false;
  limit.rlim_max = hard < limit.rlim_max ? hard : limit.rlim_max;
  limit.rlim_cur = soft < limit.rlim_max ? soft : limit.rlim_max;
  return setrlimit(static_cast<__rlimit_resource>(resource), &limit) == 0;
}

void SetLimits(const SandboxLimits& limits, bool own_user_namespace) {
  const auto cpu = static_cast<rlim_t>(limits.cpu_seconds);
  // SIGXCPU first; SIGKILL for programs that ignore it.
  bool done = Limit(RLIMIT_CPU, cpu, cpu + 1);
  done = done && Limit(RLIMIT_AS, limits.memory_bytes, limits.memory_bytes);
  // Deep recursion is usual in contest programs, also in C (functools).
  constexpr rlim_t kStackBytes = rlim_t{512} << 20;
  done = done && Limit(RLIMIT_STACK, kStackBytes, RLIM_INFINITY);
  done = done && Limit(RLIMIT_FSIZE, limits.file_bytes, limits.file_bytes);
  done = done && Limit(RLIMIT_NOFILE, 64, 64);
  done = done && Limit(RLIMIT_CORE, 0, 0) && Limit(RLIMIT_MEMLOCK, 0, 0);
  // In a new name space only the program's threads count; elsewhere all threads of the user do.
  // It never limits root. The parent counts threads in any case.
  const auto threads = static_cast<rlim_t>(limits.threads);
  if (own_user_namespace) done = done && Limit(RLIMIT_NPROC, threads, threads);
  Check(done, ChildStep::kLimits);
}

// Root keeps its user number but none of its powers, and nothing that is run can gain any.
void DropRights(pid_t parent) {
  __user_cap_header_struct header = {_LINUX_CAPABILITY_VERSION_3, 0};
  __user_cap_data_struct none[2] = {};
  Check(syscall(SYS_capset, &header, none) == 0, ChildStep::kRights);
  Check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, ChildStep::kRights);
  // After the changes of rights, which reset it.
  Check(prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) == 0, ChildStep::kRights);
  if (getppid() != parent) _exit(127);  // Ended meanwhile.
}

}  // namespace

const char* ChildStepName(ChildStep step) {
  switch (step) {
    case ChildStep::kStreams:
      return "set up standard streams";
    case ChildStep::kFolder:
      return "enter the working folder";
    case ChildStep::kLimits:
      return "set resource limits";
    case ChildStep::kRights:
      return "drop rights";
    case ChildStep::kLandlock:
      return "restrict files (Landlock)";
    case ChildStep::kFilter:
      return "restrict system calls (seccomp)";
    case ChildStep::kExec:
      return "start the interpreter";
  }
  return "start";
}

void BecomeSandboxed(const SandboxChild& child) {
  PlaceStreams(child);
  ResetSignals();
  setsid();
  umask(077);
  OfferToOomKiller();
  Check(chdir(child.folder) == 0, ChildStep::kFolder);
  // Where this is forbidden, the filter alone keeps the network away. User numbers are not mapped:
  // the name space is not for being root in.
  const bool namespaces =
      child.namespaces && unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS) == 0;
  DropRights(child.parent);
  SetLimits(*child.limits, namespaces);
  if (child.landlock >= 0) Check(EnterLandlock(kLandlock), ChildStep::kLandlock);
  Check(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &child.filter, 0, 0) == 0, ChildStep::kFilter);
  execve(child.program, child.arguments, child.environment);
  GiveUp(ChildStep::kExec);
}

}  // namespace pmkvq
