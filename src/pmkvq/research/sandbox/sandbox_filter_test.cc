#include "pmkvq/research/sandbox/sandbox_filter.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/audit.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstring>
#include <initializer_list>
#include <stdexcept>

namespace pmkvq {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kHere = AUDIT_ARCH_X86_64;
constexpr uint32_t kElsewhere = AUDIT_ARCH_I386;
#else
constexpr uint32_t kHere = AUDIT_ARCH_AARCH64;
constexpr uint32_t kElsewhere = AUDIT_ARCH_ARM;
#endif
constexpr uint32_t kRefused = SECCOMP_RET_ERRNO | EPERM;
constexpr uint32_t kUnknown = SECCOMP_RET_ERRNO | ENOSYS;
const char* const kProgram = "/usr/bin/python3";

// What the kernel does with the filter, for the instructions that it is made of.
uint32_t Decide(const std::vector<sock_filter>& filter, const seccomp_data& call) {
  uint32_t accumulator = 0;
  for (size_t at = 0; at < filter.size(); ++at) {
    const sock_filter& step = filter[at];
    switch (step.code) {
      case BPF_LD | BPF_W | BPF_ABS:
        std::memcpy(&accumulator, reinterpret_cast<const char*>(&call) + step.k, 4);
        break;
      case BPF_ALU | BPF_AND | BPF_K:
        accumulator &= step.k;
        break;
      case BPF_JMP | BPF_JEQ | BPF_K:
        at += accumulator == step.k ? step.jt : step.jf;
        break;
      case BPF_JMP | BPF_JGT | BPF_K:
        at += accumulator > step.k ? step.jt : step.jf;
        break;
      case BPF_RET | BPF_K:
        return step.k;
      default:
        throw std::runtime_error("another instruction");
    }
  }
  throw std::runtime_error("no decision");
}

class SandboxFilterTest : public testing::Test {
 protected:
  uint32_t Call(int number, std::initializer_list<uint64_t> arguments = {},
                uint32_t architecture = kHere) const {
    return Decide(filter_, Data(number, arguments, architecture));
  }
  uint32_t CallReadOnly(int number, std::initializer_list<uint64_t> arguments = {}) const {
    return Decide(read_only_, Data(number, arguments, kHere));
  }

 private:
  static seccomp_data Data(int number, std::initializer_list<uint64_t> arguments,
                           uint32_t architecture) {
    seccomp_data data = {};
    data.nr = number;
    data.arch = architecture;
    std::copy(arguments.begin(), arguments.end(), data.args);
    return data;
  }

  std::vector<sock_filter> filter_ = MakeSandboxFilter(kProgram, FilterWrites::kByOtherMeans);
  std::vector<sock_filter> read_only_ = MakeSandboxFilter(kProgram, FilterWrites::kNone);
};

TEST_F(SandboxFilterTest, AllowsWhatProgramsNeed) {
  for (const int number : {SYS_read, SYS_write, SYS_mmap, SYS_brk, SYS_futex, SYS_exit_group,
                           SYS_getrandom, SYS_rt_sigaction, SYS_newfstatat, SYS_sched_yield}) {
    EXPECT_EQ(Call(number), SECCOMP_RET_ALLOW) << number;
    EXPECT_EQ(CallReadOnly(number), SECCOMP_RET_ALLOW) << number;
  }
}

TEST_F(SandboxFilterTest, RefusesNetworkProcessesAndAdministration) {
  for (const int number :
       {SYS_socket,   SYS_socketpair, SYS_connect,  SYS_bind,         SYS_sendto,
        SYS_kill,     SYS_tgkill,     SYS_ptrace,   SYS_execveat,     SYS_mount,
        SYS_unshare,  SYS_setns,      SYS_bpf,      SYS_keyctl,       SYS_reboot,
        SYS_fchmodat, SYS_utimensat,  SYS_setxattr, SYS_memfd_create, SYS_shmget}) {
    EXPECT_EQ(Call(number), kRefused) << number;
  }
#if defined(__x86_64__)
  EXPECT_EQ(Call(SYS_fork), kRefused);
  EXPECT_EQ(Call(SYS_vfork), kRefused);
#endif
}

TEST_F(SandboxFilterTest, HidesCallsThatItCannotJudge) {
  EXPECT_EQ(Call(435), kUnknown);           // clone3
  EXPECT_EQ(Call(437), kUnknown);           // openat2
  EXPECT_EQ(Call(425), kUnknown);           // io_uring_setup
  EXPECT_EQ(Call(449), SECCOMP_RET_ALLOW);  // futex_waitv, the last that it knows
  EXPECT_EQ(Call(450), kUnknown);
  EXPECT_EQ(Call(SYS_read | 0x40000000), kUnknown);  // x32's numbers
}

TEST_F(SandboxFilterTest, KillsOnAnotherArchitecture) {
  EXPECT_EQ(Call(SYS_read, {}, kElsewhere), SECCOMP_RET_KILL_PROCESS);
}

TEST_F(SandboxFilterTest, ThreadsOnly) {
  constexpr uint64_t kThread = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD |
                               CLONE_SYSVSEM | CLONE_SETTLS | CLONE_PARENT_SETTID;
  EXPECT_EQ(Call(SYS_clone, {kThread}), SECCOMP_RET_ALLOW);
  EXPECT_EQ(Call(SYS_clone, {SIGCHLD}), kRefused);
  EXPECT_EQ(Call(SYS_clone, {CLONE_VM | CLONE_VFORK | SIGCHLD}), kRefused);
  EXPECT_EQ(Call(SYS_clone, {kThread | CLONE_NEWNET}), kRefused);
}

TEST_F(SandboxFilterTest, OneProgramOnly) {
  const auto address = reinterpret_cast<uint64_t>(kProgram);
  EXPECT_EQ(Call(SYS_execve, {address}), SECCOMP_RET_ALLOW);
  EXPECT_EQ(Call(SYS_execve, {address + 1}), kRefused);
  EXPECT_EQ(Call(SYS_execve, {address ^ (uint64_t{1} << 40)}), kRefused);
}

TEST_F(SandboxFilterTest, OpenByFlags) {
  for (const uint64_t flags : {O_WRONLY, O_RDWR, O_WRONLY | O_CREAT | O_TRUNC}) {
    EXPECT_EQ(Call(SYS_openat, {0, 0, flags}), SECCOMP_RET_ALLOW) << flags;
    EXPECT_EQ(CallReadOnly(SYS_openat, {0, 0, flags}), kRefused) << flags;
  }
  EXPECT_EQ(Call(SYS_openat, {0, 0, O_RDONLY | O_TRUNC}), kRefused);
  EXPECT_EQ(Call(SYS_openat, {0, 0, O_RDWR | O_TMPFILE}), SECCOMP_RET_ERRNO | EOPNOTSUPP);
  EXPECT_EQ(Call(SYS_openat, {0, 0, O_RDONLY | O_DIRECTORY}), SECCOMP_RET_ALLOW);
  EXPECT_EQ(CallReadOnly(SYS_openat, {0, 0, O_RDWR | O_TMPFILE}), kRefused);
  EXPECT_EQ(CallReadOnly(SYS_openat, {0, 0, O_RDONLY | O_CREAT}), kRefused);
  EXPECT_EQ(CallReadOnly(SYS_openat, {0, 0, O_RDONLY | O_CLOEXEC}), SECCOMP_RET_ALLOW);
#if defined(__x86_64__)
  EXPECT_EQ(CallReadOnly(SYS_open, {0, O_WRONLY}), kRefused);
  EXPECT_EQ(CallReadOnly(SYS_open, {0, O_RDONLY}), SECCOMP_RET_ALLOW);
#endif
  EXPECT_EQ(CallReadOnly(SYS_unlinkat), kRefused);
  EXPECT_EQ(Call(SYS_unlinkat), SECCOMP_RET_ALLOW);
}

TEST_F(SandboxFilterTest, ArgumentsOfMixedCalls) {
  EXPECT_EQ(Call(SYS_prlimit64, {0}), SECCOMP_RET_ALLOW);
  EXPECT_EQ(Call(SYS_prlimit64, {1}), kRefused);
  EXPECT_EQ(Call(SYS_fcntl, {0, F_GETFL}), SECCOMP_RET_ALLOW);
  EXPECT_EQ(Call(SYS_fcntl, {0, F_SETOWN}), kRefused);
  EXPECT_EQ(Call(SYS_prctl, {15}), SECCOMP_RET_ALLOW);  // PR_SET_NAME
  EXPECT_EQ(Call(SYS_prctl, {1}), kRefused);            // PR_SET_PDEATHSIG
  EXPECT_EQ(Call(SYS_ioctl, {0, TCGETS}), SECCOMP_RET_ALLOW);
  EXPECT_EQ(Call(SYS_ioctl, {0, TIOCSTI}), SECCOMP_RET_ERRNO | ENOTTY);
}

}  // namespace
}  // namespace pmkvq
