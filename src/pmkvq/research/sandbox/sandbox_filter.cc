#include "pmkvq/research/sandbox/sandbox_filter.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "pmkvq/base/error.h"

namespace pmkvq {
namespace {

#if defined(__x86_64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_X86_64;
#elif defined(__aarch64__)
constexpr uint32_t kArchitecture = AUDIT_ARCH_AARCH64;
#else
constexpr uint32_t kArchitecture = 0;
#endif

// futex_waitv of Linux 5.16, the newest call of this list; x86's x32 calls have larger numbers.
constexpr uint32_t kLastKnownCall = 449;

// Numbers that are the same on all architectures and that older headers lack.
constexpr int kMemfdSecret = 447;
constexpr int kProcessMrelease = 448;
constexpr int kQuotactlFd = 443;
constexpr int kMountSetattr = 442;
constexpr int kProcessMadvise = 440;
constexpr int kPidfdGetfd = 438;
constexpr int kOpenat2 = 437;
constexpr int kClone3 = 435;

constexpr uint32_t kPrSetVma = 0x53564d41;  // The C library names its mappings.

// Always refused.
constexpr int kRefused[] = {
    // Network.
    SYS_socket,
    SYS_socketpair,
    SYS_connect,
    SYS_bind,
    SYS_listen,
    SYS_accept,
    SYS_accept4,
    SYS_sendto,
    SYS_sendmsg,
    SYS_sendmmsg,
    SYS_recvfrom,
    SYS_recvmsg,
    SYS_recvmmsg,
    // Other processes.
    SYS_execveat,
    SYS_kill,
    SYS_tkill,
    SYS_tgkill,
    SYS_rt_sigqueueinfo,
    SYS_rt_tgsigqueueinfo,
    SYS_pidfd_open,
    SYS_pidfd_send_signal,
    kPidfdGetfd,
    SYS_ptrace,
    SYS_process_vm_readv,
    SYS_process_vm_writev,
    kProcessMadvise,
    kProcessMrelease,
    SYS_kcmp,
    SYS_setpriority,
    SYS_ioprio_set,
    SYS_sched_setaffinity,
    SYS_sched_setparam,
    SYS_sched_setscheduler,
    SYS_sched_setattr,
    SYS_migrate_pages,
    SYS_move_pages,
    SYS_setsid,
    SYS_setpgid,
    // Memory that no limit counts, and IPC objects that outlive the process.
    SYS_memfd_create,
    kMemfdSecret,
    SYS_shmget,
    SYS_shmat,
    SYS_shmctl,
    SYS_semget,
    SYS_semop,
    SYS_semtimedop,
    SYS_semctl,
    SYS_msgget,
    SYS_msgsnd,
    SYS_msgrcv,
    SYS_msgctl,
    SYS_mq_open,
    SYS_mq_unlink,
    SYS_add_key,
    SYS_request_key,
    SYS_keyctl,
    // The system.
    SYS_mount,
    SYS_umount2,
    SYS_pivot_root,
    SYS_chroot,
    SYS_unshare,
    SYS_setns,
    SYS_open_tree,
    SYS_move_mount,
    SYS_fsopen,
    SYS_fsconfig,
    SYS_fsmount,
    SYS_fspick,
    kMountSetattr,
    SYS_swapon,
    SYS_swapoff,
    SYS_reboot,
    SYS_kexec_load,
    SYS_init_module,
    SYS_finit_module,
    SYS_delete_module,
    SYS_acct,
    SYS_quotactl,
    kQuotactlFd,
    SYS_settimeofday,
    SYS_clock_settime,
    SYS_adjtimex,
    SYS_clock_adjtime,
    SYS_sethostname,
    SYS_setdomainname,
    SYS_syslog,
    SYS_vhangup,
    SYS_bpf,
    SYS_perf_event_open,
    SYS_userfaultfd,
    SYS_seccomp,
    SYS_personality,
    SYS_capset,
    SYS_sync,
    SYS_syncfs,
    SYS_fanotify_init,
    SYS_fanotify_mark,
    SYS_lookup_dcookie,
    SYS_name_to_handle_at,
    SYS_open_by_handle_at,
    // What Landlock does not see: changes of a file's attributes, wherever it is.
    SYS_truncate,
    SYS_fchmod,
    SYS_fchmodat,
    SYS_fchown,
    SYS_fchownat,
    SYS_utimensat,
    SYS_setxattr,
    SYS_lsetxattr,
    SYS_fsetxattr,
    SYS_removexattr,
    SYS_lremovexattr,
    SYS_fremovexattr,
    SYS_mknodat,
#ifdef SYS_kexec_file_load
    SYS_kexec_file_load,
#endif
#ifdef SYS_nfsservctl
    SYS_nfsservctl,
#endif
#if defined(__x86_64__)  // Older forms, which newer architectures do not have.
    SYS_fork,
    SYS_vfork,
    SYS_chmod,
    SYS_chown,
    SYS_lchown,
    SYS_utime,
    SYS_utimes,
    SYS_futimesat,
    SYS_mknod,
    SYS_iopl,
    SYS_ioperm,
    SYS_modify_ldt,
    SYS_uselib,
    SYS_ustat,
    SYS_sysfs,
#endif
};

// Refused as if the kernel did not know them: the C library then does without.
constexpr int kUnknown[] = {
    kClone3,  // Its flags lie in memory, where the filter cannot read them.
    kOpenat2,     SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
    SYS_io_setup, SYS_io_submit,
};

// Changes of folders.
constexpr int kFolderChanges[] = {
    SYS_mkdirat,  SYS_unlinkat, SYS_renameat2, SYS_linkat, SYS_symlinkat,
#ifdef SYS_renameat
    SYS_renameat,
#endif
#if defined(__x86_64__)
    SYS_mkdir,    SYS_rmdir,    SYS_unlink,    SYS_rename, SYS_link,      SYS_symlink, SYS_creat,
#endif
};

constexpr uint32_t kRefuse = SECCOMP_RET_ERRNO | EPERM;
constexpr uint32_t kNotThere = SECCOMP_RET_ERRNO | ENOSYS;
constexpr uint32_t kKill = SECCOMP_RET_KILL_PROCESS;
constexpr uint32_t kAllow = SECCOMP_RET_ALLOW;

class Filter {
 public:
  using Code = std::vector<sock_filter>;

  static sock_filter Load(size_t offset) {
    return BPF_STMT(BPF_LD | BPF_W | BPF_ABS, static_cast<uint32_t>(offset));
  }
  // The lower or upper half of an argument; both architectures are little-endian.
  static sock_filter LoadArgument(size_t index, bool upper = false) {
    return Load(offsetof(seccomp_data, args) + index * 8 + (upper ? 4 : 0));
  }
  static sock_filter Return(uint32_t action) { return BPF_STMT(BPF_RET | BPF_K, action); }
  // Goes on with the next instruction when equal, else skips `skip`.
  static sock_filter UnlessEqualSkip(uint32_t value, size_t skip) {
    return BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, static_cast<uint8_t>(skip));
  }

  void Append(std::initializer_list<sock_filter> code) {
    code_.insert(code_.end(), code.begin(), code.end());
  }
  // `body` decides call `number`: it ends in a return on every path. The accumulator holds the
  // number before and, for other calls, after.
  void On(int number, const Code& body) {
    code_.push_back(UnlessEqualSkip(static_cast<uint32_t>(number), body.size()));
    code_.insert(code_.end(), body.begin(), body.end());
  }
  void Refuse(const int* begin, const int* end, uint32_t action) {
    for (const int* number = begin; number != end; ++number) On(*number, {Return(action)});
  }
  Code Take() { return std::move(code_); }

 private:
  Code code_;
};

// Action `listed` when the argument is one of `values`, else `other`.
Filter::Code ByArgument(size_t index, std::initializer_list<uint32_t> values, uint32_t listed,
                        uint32_t other) {
  Filter::Code code = {Filter::LoadArgument(index)};
  for (const uint32_t value : values) {
    code.push_back(Filter::UnlessEqualSkip(value, 1));
    code.push_back(Filter::Return(listed));
  }
  code.push_back(Filter::Return(other));
  return code;
}

// Action `equal` when (argument & mask) == value, else `other`.
Filter::Code ByBits(size_t index, uint32_t mask, uint32_t value, uint32_t equal, uint32_t other) {
  return {Filter::LoadArgument(index), BPF_STMT(BPF_ALU | BPF_AND | BPF_K, mask),
          Filter::UnlessEqualSkip(value, 1), Filter::Return(equal), Filter::Return(other)};
}

// Threads share everything with a process that is confined already.
Filter::Code OnClone() {
  constexpr uint32_t kNamespaces = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC |
                                   CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET;
  return ByBits(0, CLONE_THREAD | kNamespaces, CLONE_THREAD, kAllow, kRefuse);
}

Filter::Code OnExecve(const char* program) {
  const auto address = reinterpret_cast<uintptr_t>(program);
  return {Filter::LoadArgument(0),
          Filter::UnlessEqualSkip(static_cast<uint32_t>(address), 3),
          Filter::LoadArgument(0, true),
          Filter::UnlessEqualSkip(static_cast<uint32_t>(address >> 32), 1),
          Filter::Return(kAllow),
          Filter::Return(kRefuse)};
}

// The flag alone, without O_DIRECTORY.
constexpr uint32_t kNameless = O_TMPFILE & ~O_DIRECTORY;

Filter::Code OnOpen(size_t flags_index, FilterWrites writes) {
  if (writes == FilterWrites::kNone) {
    return ByBits(flags_index, O_ACCMODE | O_CREAT | O_TRUNC, O_RDONLY, kAllow, kRefuse);
  }
  // Files without a name would escape the measuring of the folder.
  Filter::Code code = {
      Filter::LoadArgument(flags_index), BPF_STMT(BPF_ALU | BPF_AND | BPF_K, kNameless),
      Filter::UnlessEqualSkip(kNameless, 1), Filter::Return(SECCOMP_RET_ERRNO | EOPNOTSUPP)};
  // O_TRUNC without a right to write empties the file all the same; Landlock sees it only since
  // Linux 6.2.
  const Filter::Code rest =
      ByBits(flags_index, O_ACCMODE | O_TRUNC, O_RDONLY | O_TRUNC, kRefuse, kAllow);
  code.insert(code.end(), rest.begin(), rest.end());
  return code;
}

}  // namespace

std::vector<sock_filter> MakeSandboxFilter(const char* program, FilterWrites writes) {
  if (kArchitecture == 0) {
    throw Unsupported("sandbox", "processor: expected x86-64 or AArch64 to run untrusted code on");
  }
  Filter filter;
  filter.Append({Filter::Load(offsetof(seccomp_data, arch)),
                 BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, kArchitecture, 1, 0), Filter::Return(kKill),
                 Filter::Load(offsetof(seccomp_data, nr)),
                 BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, kLastKnownCall, 0, 1),
                 Filter::Return(kNotThere)});
  filter.Refuse(std::begin(kUnknown), std::end(kUnknown), kNotThere);
  filter.Refuse(std::begin(kRefused), std::end(kRefused), kRefuse);
  if (writes == FilterWrites::kNone) {
    filter.Refuse(std::begin(kFolderChanges), std::end(kFolderChanges), kRefuse);
  }
#if defined(__x86_64__)
  filter.On(SYS_open, OnOpen(1, writes));
#endif
  filter.On(SYS_openat, OnOpen(2, writes));
  filter.On(SYS_clone, OnClone());
  filter.On(SYS_execve, OnExecve(program));
  // Limits of this process alone; they can only be lowered.
  filter.On(SYS_prlimit64, ByArgument(0, {0}, kAllow, kRefuse));
  // PR_SET_PDEATHSIG, for one, would let the program outlive its judge.
  filter.On(SYS_prctl, ByArgument(0, {PR_SET_NAME, PR_GET_NAME, kPrSetVma}, kAllow, kRefuse));
  // Signals on behalf of a file: to any process, and any signal.
  filter.On(SYS_fcntl, ByArgument(1, {F_SETOWN, F_SETOWN_EX, F_SETSIG}, kRefuse, kAllow));
  filter.On(SYS_ioctl, ByArgument(1, {TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIOCLEX, FIONCLEX},
                                  kAllow, SECCOMP_RET_ERRNO | ENOTTY));
  filter.Append({Filter::Return(kAllow)});
  return filter.Take();
}

}  // namespace pmkvq
